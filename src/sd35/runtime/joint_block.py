"""One joint block of the MMDiT: two streams, each with its own weights, that attend to one another.

The sample stream carries image tokens, the context stream text tokens. Each is normalised, modulated
(AdaLN), projected to q, k, v; the two sets of tokens then attend jointly, and each stream takes its share
of the result through its own output projection and its own MLP. Every branch is scaled by a gate before
it is added. The last block's context stream ends with its q, k, v: nobody reads its result. In Medium's
first blocks ("dual attention") the sample stream has a second attention, among image tokens alone.

Modulations come from outside: they depend only on the timestep and the pooled text, so `MMDiT.condition`
computes them once a request for all steps.

Shapes: B batch, T tokens, C channels, H heads, D head dim. Source: arXiv 2403.03206, figure 2.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sd35.kernels.reference import adaln_modulate, joint_attention, qk_rms_norm
from sd35.variants import HEAD_DIM

# Rows of a modulation table: (shift, scale, gate) for attention and MLP, and for dual attention once more.
MODULATIONS = 6
MODULATIONS_DUAL = 9
MODULATIONS_LAST_CONTEXT = 2  # scale, shift: in this order, alone in the model with the final layer


class Attention(nn.Module):
    """One stream's half of an attention: fused q, k, v with RMSNorm on q and k, and the way out."""

    def __init__(self, channels: int, *, has_out: bool = True) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels)
        self.norm_q = nn.Parameter(torch.empty(HEAD_DIM))
        self.norm_k = nn.Parameter(torch.empty(HEAD_DIM))
        self.out = nn.Linear(channels, channels) if has_out else None

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, C] -> q, k, v, each [B, T, H, D]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, HEAD_DIM)).unbind(dim=2)
        return qk_rms_norm(q, self.norm_q), qk_rms_norm(k, self.norm_k), v


class FeedForward(nn.Module):
    """The MLP: four times as wide inside, GELU in its tanh form."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class JointBlock(nn.Module):
    """Both streams of one layer; `is_last` ends the context stream early, `is_dual` adds dual attention."""

    def __init__(self, channels: int, *, is_last: bool, is_dual: bool) -> None:
        super().__init__()
        sample_rows = MODULATIONS_DUAL if is_dual else MODULATIONS
        context_rows = MODULATIONS_LAST_CONTEXT if is_last else MODULATIONS
        self.sample_modulation = nn.Linear(channels, sample_rows * channels)
        self.context_modulation = nn.Linear(channels, context_rows * channels)
        self.sample_attention = Attention(channels)
        self.context_attention = Attention(channels, has_out=not is_last)
        self.dual_attention = Attention(channels) if is_dual else None
        self.sample_mlp = FeedForward(channels)
        self.context_mlp = None if is_last else FeedForward(channels)

    def modulations(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Condition [..., C] -> this block's tables for the two streams, each [..., rows, C]."""
        channels = condition.shape[-1]
        tables = (self.sample_modulation(condition), self.context_modulation(condition))
        sample, context = (table.unflatten(-1, (-1, channels)) for table in tables)
        return sample, context

    def forward(
        self, sample: Tensor, context: Tensor, sample_table: Tensor, context_table: Tensor
    ) -> tuple[Tensor, Tensor]:
        """sample [B, T, C], context [B, T', C] and one step's tables [B, rows, C] -> both streams after."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate, *dual = sample_table.unbind(dim=1)
        from_sample, from_context = self._attend(
            adaln_modulate(sample, shift, scale), self._modulated_context(context, context_table)
        )
        attended = sample + gate[:, None] * self.sample_attention.out(from_sample)  # type: ignore[misc]
        if self.dual_attention is not None:
            attended = attended + self._dual_branch(sample, *dual)
        mlp = self.sample_mlp(adaln_modulate(attended, mlp_shift, mlp_scale))
        return attended + mlp_gate[:, None] * mlp, self._context_after(context, from_context, context_table)

    def _attend(self, sample: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Joint attention over the tokens of both streams; each gets back its own [B, T, C]."""
        pairs = zip(
            self.sample_attention.project(sample), self.context_attention.project(context), strict=True
        )
        q, k, v = (torch.cat(pair, dim=1) for pair in pairs)
        from_sample, from_context = joint_attention(q, k, v).split((sample.shape[1], context.shape[1]), dim=1)
        return from_sample, from_context

    def _dual_branch(self, sample: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        assert self.dual_attention is not None
        assert self.dual_attention.out is not None
        q, k, v = self.dual_attention.project(adaln_modulate(sample, shift, scale))
        return gate[:, None] * self.dual_attention.out(joint_attention(q, k, v))

    def _modulated_context(self, context: Tensor, table: Tensor) -> Tensor:
        if self.context_mlp is None:
            scale, shift = table.unbind(dim=1)
        else:
            shift, scale = table[:, 0], table[:, 1]
        return adaln_modulate(context, shift, scale)

    def _context_after(self, context: Tensor, from_context: Tensor, table: Tensor) -> Tensor:
        if self.context_mlp is None or self.context_attention.out is None:
            return context
        _, _, gate, mlp_shift, mlp_scale, mlp_gate = table.unbind(dim=1)
        context = context + gate[:, None] * self.context_attention.out(from_context)
        mlp = self.context_mlp(adaln_modulate(context, mlp_shift, mlp_scale))
        return context + mlp_gate[:, None] * mlp
