"""One joint block of the MMDiT: two streams, each with its own weights, that attend to one another.

The sample stream carries image tokens, the context stream text tokens. Each is normalised, modulated
(AdaLN), projected to q, k, v; the two sets of tokens then attend jointly, and each stream takes its share
of the result through its own output projection and its own MLP. Every branch is scaled by a gate before
it is added. The last block's context stream ends with its q, k, v: nobody reads its result. In Medium's
first blocks ("dual attention") the sample stream has a second attention, among image tokens alone.

Modulations come from outside: they depend only on the timestep and the pooled text, so `MMDiT.condition`
computes them once a request for all steps. And a block's last addition is left to the next block, whose
norm has to read the tokens anyway: streams travel as `Residual`.

Shapes: B batch, T tokens, C channels, H heads, D head dim. Source: arXiv 2403.03206, figure 2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sd35.config import Attention as AttentionName
from sd35.kernels import reference
from sd35.kernels.api import Operations
from sd35.kernels.attention import Attend, attend_with, room_for_heads
from sd35.kernels.operands import Heads, Operand, Residual, TiledHeads
from sd35.runtime.linear import form_of
from sd35.variants import HEAD_DIM

# Rows of a modulation table: (shift, scale, gate) for attention and MLP, and for dual attention once more.
MODULATIONS = 6
MODULATIONS_DUAL = 9
MODULATIONS_LAST_CONTEXT = 2  # scale, shift: in this order, alone in the model with the final layer


@dataclass(frozen=True)
class Engine:
    """Who runs a block's operations, and its attention."""

    operations: Operations = reference
    attention: AttentionName = "sdpa"

    def attend(self, heads: Heads | TiledHeads) -> Tensor:
        """[B, S, H, D] each -> [B, S, C]."""
        attend: Attend = attend_with(self.attention)
        return attend(heads)

    def empty_heads(self, batch: int, tokens: int, like: Tensor) -> Heads | TiledHeads:
        """Room for the heads of `tokens` tokens, as the attention wants them."""
        shape = (batch, tokens, like.shape[-1] // HEAD_DIM, HEAD_DIM)
        return room_for_heads(self.attention, shape, like.dtype, like.device)


PLAIN_PYTORCH = Engine()


class Attention(nn.Module):
    """One stream's half of an attention: fused q, k, v with RMSNorm on q and k, and the way out."""

    def __init__(self, channels: int, *, has_out: bool = True) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels)
        self.norm_q = nn.Parameter(torch.empty(HEAD_DIM))
        self.norm_k = nn.Parameter(torch.empty(HEAD_DIM))
        self.out = nn.Linear(channels, channels) if has_out else None

    def project(self, x: Operand, heads: Heads | TiledHeads, first: int, operations: Operations) -> None:
        """Tokens [B, T, C] -> their q, k, v, among the heads from `first` on."""
        operations.place_heads(self.qkv(x), self.norm_q, self.norm_k, heads, first)


class FeedForward(nn.Module):
    """The MLP: four times as wide inside, GELU in its tanh form."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)


class JointBlock(nn.Module):
    """Both streams of one layer; `is_last` ends the context stream early, `is_dual` adds dual attention."""

    def __init__(
        self, channels: int, *, is_last: bool, is_dual: bool, engine: Engine = PLAIN_PYTORCH
    ) -> None:
        super().__init__()
        self.engine = engine
        self.sample_rows = MODULATIONS_DUAL if is_dual else MODULATIONS
        self.context_rows = MODULATIONS_LAST_CONTEXT if is_last else MODULATIONS
        self.sample_modulation = nn.Linear(channels, self.sample_rows * channels)
        self.context_modulation = nn.Linear(channels, self.context_rows * channels)
        self.sample_attention = Attention(channels)
        self.context_attention = Attention(channels, has_out=not is_last)
        self.dual_attention = Attention(channels) if is_dual else None
        self.sample_mlp = FeedForward(channels)
        self.context_mlp = None if is_last else FeedForward(channels)

    def modulations(self, condition: Tensor) -> Tensor:
        """Condition [..., C] -> this block's table [..., rows, C]: the sample's rows, then the context's."""
        table = torch.cat([self.sample_modulation(condition), self.context_modulation(condition)], dim=-1)
        return table.unflatten(-1, (-1, condition.shape[-1]))

    def forward(self, sample: Residual, context: Residual, table: Tensor) -> tuple[Residual, Residual]:
        """sample [B, T, C], context [B, T', C] and one step's table [B, rows, C] -> both streams after."""
        sample_table, context_table = table.split((self.sample_rows, self.context_rows), dim=1)
        image, text, attended = self._attend(sample, context, sample_table, context_table)
        from_image, from_text = attended.split((image.shape[1], text.shape[1]), dim=1)
        text_after = self._context_after(text, from_text, context_table)
        return self._sample_after(image, from_image, sample_table), text_after

    def _attend(
        self, sample: Residual, context: Residual, sample_table: Tensor, context_table: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Both streams' tokens, settled, and what the joint attention gives them [B, T + T', C]."""
        engine = self.engine
        tokens, text_tokens = sample.tokens.shape[1], context.tokens.shape[1]
        heads = engine.empty_heads(len(sample.tokens), tokens + text_tokens, sample.tokens)
        text, text_in = self._modulated_context(context, context_table)
        self.context_attention.project(text_in, heads, tokens, engine.operations)
        shift, scale = sample_table[:, 0], sample_table[:, 1]
        form = form_of(self.sample_attention.qkv)
        image, image_in = engine.operations.modulate(sample, shift, scale, form)
        self.sample_attention.project(image_in, heads, 0, engine.operations)
        return image, text, engine.attend(heads)

    def _sample_after(self, tokens: Tensor, attended: Tensor, table: Tensor) -> Residual:
        _, _, gate, mlp_shift, mlp_scale, mlp_gate, *dual = table.unbind(dim=1)
        stream = self._attention_branch(tokens, attended, gate, self.sample_attention)
        if self.dual_attention is not None:
            stream = self._with_dual_branch(tokens, stream, dual)
        return self._mlp_branch(stream, mlp_shift, mlp_scale, mlp_gate, self.sample_mlp)

    def _context_after(self, tokens: Tensor, attended: Tensor, table: Tensor) -> Residual:
        if self.context_mlp is None:
            return Residual(tokens)
        _, _, gate, mlp_shift, mlp_scale, mlp_gate = table.unbind(dim=1)
        stream = self._attention_branch(tokens, attended, gate, self.context_attention)
        return self._mlp_branch(stream, mlp_shift, mlp_scale, mlp_gate, self.context_mlp)

    def _modulated_context(self, context: Residual, table: Tensor) -> tuple[Tensor, Operand]:
        first, second = table[:, 0], table[:, 1]
        scale, shift = (first, second) if self.context_mlp is None else (second, first)
        form = form_of(self.context_attention.qkv)
        return self.engine.operations.modulate(context, shift, scale, form)

    def _attention_branch(
        self, tokens: Tensor, attended: Tensor, gate: Tensor, attention: Attention
    ) -> Residual:
        assert attention.out is not None
        share = self.engine.operations.take(attended, form_of(attention.out))
        return Residual(tokens, attention.out(share), gate)

    def _with_dual_branch(self, tokens: Tensor, stream: Residual, table: list[Tensor]) -> Residual:
        """Image tokens attend among themselves too; they start from the tokens before the joint attention."""
        assert self.dual_attention is not None
        shift, scale, gate = table
        operations = self.engine.operations
        _, x = operations.modulate(Residual(tokens), shift, scale, form_of(self.dual_attention.qkv))
        heads = self.engine.empty_heads(len(tokens), tokens.shape[1], tokens)
        self.dual_attention.project(x, heads, 0, operations)
        attended = self.engine.attend(heads)
        return self._attention_branch(operations.settle(stream), attended, gate, self.dual_attention)

    def _mlp_branch(
        self, stream: Residual, shift: Tensor, scale: Tensor, gate: Tensor, mlp: FeedForward
    ) -> Residual:
        operations = self.engine.operations
        tokens, x = operations.modulate(stream, shift, scale, form_of(mlp.fc1))
        hidden = operations.gelu(mlp.fc1(x), form_of(mlp.fc2), tokens.dtype)
        return Residual(tokens, mlp.fc2(hidden), gate)
