"""What flows between the operations: inputs as a layer wants them, results that are not finished yet.

Two ideas keep the memory traffic of a step low. First, whoever writes a linear layer's input writes it the
way that layer reads it, so each layer says its `Form`. Second, nobody finishes a result that is about to be
read anyway: an FP8 product still needs its scales and bias (`Product`), and a residual stream its gated
branch (`Residual`); the next operation applies them while the values are in its registers.

Shapes: B batch, T tokens, S tokens of both streams, P the same in whole tiles, C channels, H heads, D head
dim, N out channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sd35.fp8 import Activation, ScaledTensor


@dataclass(frozen=True)
class Form:
    """How a linear layer wants its input: plain ("none"), or in E4M3 by each token's scale or by one."""

    activation: Activation = "none"
    scale: Tensor | None = None  # the one scale, float32 [], where the activation is "static"


PLAIN = Form()
TILE_TOKENS = 128  # an attention's tile; `TiledHeads` have room for whole ones
KEY_GROUP = 16  # tokens among which `TiledHeads` move their keys

Operand = Tensor | ScaledTensor  # a linear layer's input: [B, T, C], or the same in E4M3 with scale [B, T, 1]


@dataclass(frozen=True)
class Product:
    """An FP8 product before its last step: values * row_scale * column_scale + bias.

    `values` [B, T, N] is what the tensor cores gave, rounded to the compute dtype; rounding is relative, so
    it does not matter that the scales come later. `row_scale` is [B, T, 1], `column_scale` and `bias` [N].
    """

    values: Tensor
    row_scale: Tensor
    column_scale: Tensor
    bias: Tensor | None

    def kept(self) -> "Product":
        """The same with a column scale and bias of its own, for who reads it when the layer's may be gone."""
        bias = None if self.bias is None else self.bias.clone()
        return Product(self.values, self.row_scale, self.column_scale.clone(), bias)

    def finish(self) -> Tensor:
        """The result in float32."""
        result = self.values.float() * self.row_scale * self.column_scale
        return result if self.bias is None else result + self.bias.float()


Result = Tensor | Product  # what a linear layer gives


def finished(result: Result) -> Tensor:
    """A linear layer's result, in float32."""
    return result.finish() if isinstance(result, Product) else result.float()


@dataclass(frozen=True)
class Residual:
    """A stream of tokens [B, T, C] with a branch still to be added: tokens + gate * branch, gate [B, C]."""

    tokens: Tensor
    branch: Result | None = None
    gate: Tensor | None = None

    def kept(self) -> "Residual":
        """The same without a tensor that is a layer's: see `Product.kept`."""
        branch = self.branch.kept() if isinstance(self.branch, Product) else self.branch
        return Residual(self.tokens, branch, self.gate)


@dataclass(frozen=True)
class Heads:
    """Queries, keys and values of both streams side by side, [B, S, H, D] each: image tokens, then text."""

    q: Tensor
    k: Tensor
    v: Tensor

    @classmethod
    def empty(cls, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> "Heads":
        """Room for them, unwritten."""
        q, k, v = (torch.empty(shape, dtype=dtype, device=device) for _ in range(3))
        return cls(q, k, v)


@dataclass(frozen=True)
class TiledHeads:
    """The same in E4M3 as FP8 tensor cores read them: q, k [B, H, P, D] and v [B, H, D, P], P whole tiles.

    They want the summed dimension contiguous, which for attention's second product is the tokens: v lies
    transposed. Between the products no value should change lanes. Of 16 keys the first product hands lane l
    of four the scores in columns 2l, 2l + 1, 8 + 2l and 8 + 2l + 1; for the second it wants from lane l the
    weights of columns 4l to 4l + 3. So k's rows are moved within each group of 16: token 4l + 2h + i lies in
    row 8h + 2l + i (h, i in 0, 1). The scores that a lane gets are then of the tokens 4l to 4l + 3, whose
    values v, in the tokens' own order as q is, has where the lane's weights go.

    `tokens` is S. What memory holds where no token lies is not promised.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    tokens: int

    @classmethod
    def empty(cls, batch: int, tokens: int, heads: int, head_dim: int, device: torch.device) -> "TiledHeads":
        """Room for them, unwritten."""
        room = -(-tokens // TILE_TOKENS) * TILE_TOKENS
        rows, columns = (batch, heads, room, head_dim), (batch, heads, head_dim, room)
        q, k, v = (
            torch.empty(shape, dtype=torch.float8_e4m3fn, device=device) for shape in (rows, rows, columns)
        )
        return cls(q, k, v, tokens)


def key_rows(tokens: int, device: torch.device) -> Tensor:
    """The row of each token's key in `TiledHeads`, [tokens]."""
    token = torch.arange(tokens, device=device)
    place = token % KEY_GROUP
    lane, half, one = place // 4, place // 2 % 2, place % 2
    return token - place + 8 * half + 2 * lane + one
