"""Inputs for every operation, in the widths of SD3.5 and in rows that fill no block."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from sd35.fp8 import BLOCK, ScaledTensor
from sd35.kernels.operands import PLAIN, Form, Heads, Operand, Product, Residual, Result, TiledHeads, key_rows

WIDTHS = (64, 256, 1536, 2432)  # the smallest, the demo's, Medium's and Large's channels
BATCH, TOKENS, ALL_TOKENS, FIRST = 2, 5, 9, 3
# Where a stream in tiles starts and how many tokens come after it: in the middle of a group of keys; at a
# multiple that Triton compiles apart; and with nobody's memory behind it, where v goes in words.
PLACES = ((3, 1), (16, 1), (16, 0))


@dataclass(frozen=True)
class Inputs:
    """A maker of random tensors on one device in one dtype; every call gives fresh ones."""

    device: torch.device
    dtype: torch.dtype
    tokens: int = TOKENS

    def random(self, *shape: int, size: float = 1.0) -> Tensor:
        """Standard normal values times `size`."""
        return (size * torch.randn(shape)).to(self.device, self.dtype)

    def positive(self, *shape: int) -> Tensor:
        """Scales in float32, over two orders of magnitude."""
        return torch.logspace(-2, 0, 17)[torch.randint(17, shape)].to(self.device)

    def weight(self, width: int, dtype: torch.dtype, groups: int) -> ScaledTensor:
        """All codes of an FP8 dtype but for NaN and infinity, again and again, [7, width]."""
        codes = torch.arange(256, dtype=torch.uint8).view(dtype)
        codes = codes[codes.float().isfinite()].view(torch.uint8)
        data = codes[torch.randint(len(codes), (7, width))].view(dtype).to(self.device)
        return ScaledTensor(data, self.positive(7, groups))

    def forms(self) -> list[Form]:
        """Every way in which a layer may want its input."""
        return [PLAIN, Form("dynamic"), Form("static", torch.tensor(0.02, device=self.device))]

    def results(self, width: int) -> list[Result]:
        """What a linear layer may give: a tensor, or a product with and without a bias."""
        shape = (BATCH, self.tokens, width)
        rows, columns = self.positive(BATCH, self.tokens, 1), self.positive(width)
        return [
            self.random(*shape),
            Product(self.random(*shape, size=30), rows, columns, self.random(width)),
            Product(self.random(*shape, size=30), rows, columns, None),
        ]

    def table(self, width: int) -> Tensor:
        """A step's modulations; an operation gets rows of it, which lie apart in memory."""
        return self.random(BATCH, 9, width)

    def streams(self, width: int) -> list[Residual]:
        """Tokens alone, and with each kind of branch."""
        tokens, gate = self.random(BATCH, self.tokens, width), self.table(width)[:, 4]
        return [Residual(tokens), *(Residual(tokens, branch, gate) for branch in self.results(width))]

    def heads(self, width: int, dtype: torch.dtype) -> Heads:
        """Room for more tokens than one stream has, poisoned."""
        heads = Heads.empty((BATCH, self.tokens + 4, width // 64, 64), dtype, self.device)
        for part in (heads.q, heads.k, heads.v):
            part.view(torch.uint8).fill_(0x7F)  # NaN in E4M3; a huge number in the others
        return heads

    def tiles(self, width: int, first: int, after: int) -> TiledHeads:
        """The same in tiles, with room for so many tokens before and after the stream's."""
        tiles = TiledHeads.empty(BATCH, first + self.tokens + after, width // 64, 64, self.device)
        for part in (tiles.q, tiles.k, tiles.v):
            part.view(torch.uint8).fill_(0x7F)
        return tiles


Run = Callable[[ModuleType], list[Operand]]


def runs(inputs: Inputs, width: int) -> Iterator[tuple[str, Run]]:
    """Every operation in every form at this width: a name, and what to call with an implementation."""
    table = inputs.table(width)
    for form in inputs.forms():
        for i, stream in enumerate(inputs.streams(width)):
            yield (
                f"modulate {form.activation} {i}",
                lambda operations, stream=stream, form=form: list(
                    operations.modulate(stream, table[:, 1], table[:, 2], form)
                ),
            )
        for i, hidden in enumerate(inputs.results(4 * width)):
            yield (
                f"gelu {form.activation} {i}",
                lambda operations, hidden=hidden, form=form: [operations.gelu(hidden, form, inputs.dtype)],
            )
        share = inputs.random(BATCH, inputs.tokens + 4, width)[:, 2:-2]
        share[:, 0] = 0  # a token of zeros has the scale 1
        yield (
            f"take {form.activation}",
            lambda operations, share=share, form=form: [operations.take(share, form)],
        )
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        for groups in (1, -(-width // BLOCK)):
            weight = inputs.weight(width, dtype, groups)
            yield (
                f"dequantize_weight {dtype} {groups}",
                lambda operations, weight=weight: [operations.dequantize_weight(weight, inputs.dtype)],
            )
    for i, stream in enumerate(inputs.streams(width)):
        yield f"settle {i}", lambda operations, stream=stream: [operations.settle(stream)]
    norm_q, norm_k = inputs.random(64), inputs.random(64)
    for dtype in (inputs.dtype, torch.float8_e4m3fn):
        for i, qkv in enumerate(inputs.results(3 * width)):
            yield (
                f"place_heads {dtype} {i}",
                lambda operations, qkv=qkv, dtype=dtype: _placed(
                    operations, qkv, norm_q, norm_k, inputs.heads(width, dtype)
                ),
            )
    for (first, after), qkv in zip(PLACES, inputs.results(3 * width), strict=True):
        yield (
            f"place_heads tiles {first} {after}",
            lambda operations, qkv=qkv, first=first, after=after: placed_in_tiles(
                operations, qkv, norm_q, norm_k, inputs.tiles(width, first, after), first
            ),
        )


def _placed(
    operations: ModuleType, qkv: Result, norm_q: Tensor, norm_k: Tensor, heads: Heads
) -> list[Operand]:
    operations.place_heads(qkv, norm_q, norm_k, heads, FIRST)
    return [heads.q, heads.k, heads.v]


def placed_in_tiles(
    operations: ModuleType, qkv: Result, norm_q: Tensor, norm_k: Tensor, tiles: TiledHeads, first: int
) -> list[Operand]:
    """What lies where tokens do; nobody promised the rest."""
    operations.place_heads(qkv, norm_q, norm_k, tiles, first)
    k = tiles.k[:, :, key_rows(tiles.tokens, tiles.k.device)]
    return [tiles.q[:, :, : tiles.tokens], k, tiles.v[..., : tiles.tokens]]


def assert_meets(got: Operand, expected: Operand, tolerance: float) -> None:
    """Equal to the tolerance; in FP8 few values may have tipped over to a neighbouring number.

    A norm's values near 0 are differences of larger ones, so they are held to what those are worth. One such
    difference tips a value over about once in 2^-4 / tolerance.
    """
    if isinstance(expected, ScaledTensor):
        assert isinstance(got, ScaledTensor)
        torch.testing.assert_close(got.scale, expected.scale, rtol=tolerance, atol=0)
        assert_meets(got.data, expected.data, tolerance)
        return
    a, b = got.double(), expected.double()
    if expected.dtype == torch.float8_e4m3fn:
        assert float((a.nan_to_num() != b.nan_to_num()).double().mean()) <= max(1e-3, 8 * tolerance)
        torch.testing.assert_close(a, b, rtol=2**-3, atol=2**-8 + 448 * tolerance, equal_nan=True)
    else:
        torch.testing.assert_close(a, b, rtol=tolerance, atol=4 * tolerance, equal_nan=True)
