"""The operations of the MMDiT and the VAE in plain PyTorch: the definition that every fast kernel must meet.

They run anywhere and on any dtype. Each computes in float32 and rounds once, to the dtype or FP8 format of
what it writes. What is not said here is not promised: a kernel may change the order of additions, never
the place where something is rounded to FP8.

Shapes: B batch, T tokens, S tokens of both streams, H heads, D head dim, C = H * D channels, K and N in and
out channels of a linear layer; a picture's activations are [B, C, H, W] with height and width.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sd35.fp8 import BLOCK, ScaledTensor, quantize, saturate
from sd35.kernels.operands import Form, Heads, Operand, Residual, Result, TiledHeads, finished, key_rows

NORM_EPSILON = 1e-6
LARGEST_CODE = 118  # of a softmax weight, 224: see `attend_tiles`; 127 is NaN


def take(x: Tensor, form: Form, dtype: torch.dtype | None = None) -> Operand:
    """x [B, T, K] as the next layer wants it; plain in `dtype` (x's own when not said)."""
    if form.activation == "dynamic":
        return quantize_rowwise(x)
    if form.activation == "static":
        assert form.scale is not None
        return quantize_static(x, form.scale)
    return x.to(dtype or x.dtype)


def settle(stream: Residual) -> Tensor:
    """tokens + gate * branch, rounded to the tokens' dtype: [B, T, C]."""
    if stream.branch is None:
        return stream.tokens
    assert stream.gate is not None
    branch = stream.gate.float()[:, None] * finished(stream.branch)
    return (stream.tokens.float() + branch).to(stream.tokens.dtype)


def modulate(stream: Residual, shift: Tensor, scale: Tensor, form: Form) -> tuple[Tensor, Operand]:
    """x = settle(stream), and LayerNorm(x) * (1 + scale) + shift in the form asked: shift, scale [B, C].

    The norm has no weights of its own (AdaLN).
    """
    x = settle(stream)
    normed = F.layer_norm(x.float(), (x.shape[-1],), eps=NORM_EPSILON)
    modulated = normed * (1 + scale.float()[:, None]) + shift.float()[:, None]
    return x, take(modulated, form, x.dtype)


def gelu(hidden: Result, form: Form, dtype: torch.dtype) -> Operand:
    """GELU in its tanh form, of an MLP's hidden values [B, T, N]."""
    return take(F.gelu(finished(hidden), approximate="tanh"), form, dtype)


def place_heads(qkv: Result, norm_q: Tensor, norm_k: Tensor, heads: Heads | TiledHeads, first: int) -> None:
    """Write a stream's q, k, v [B, T, 3C] into `heads` from token `first` on; q and k normed by weights [D].

    `heads` in E4M3 get the values unscaled: q and k are of unit size after their norm, v is near it.
    """
    q, k, v = finished(qkv).unflatten(-1, (3, -1, heads.q.shape[-1])).unbind(dim=2)
    q, k, v = (_as(part, heads.q.dtype) for part in (qk_rms_norm(q, norm_q), qk_rms_norm(k, norm_k), v))
    end = first + q.shape[1]
    if isinstance(heads, TiledHeads):
        heads.q[:, :, first:end] = q.transpose(1, 2)
        heads.k[:, :, key_rows(end, k.device)[first:]] = k.transpose(1, 2)
        heads.v[:, :, :, first:end] = v.permute(0, 2, 3, 1)
    else:
        heads.q[:, first:end], heads.k[:, first:end], heads.v[:, first:end] = q, k, v


def qk_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x / rms(x) * weight over the head dim, in float32: x [B, T, H, D], weight [D]."""
    x32 = x.float()
    normed = x32 * torch.rsqrt(x32.square().mean(dim=-1, keepdim=True) + NORM_EPSILON)
    return (normed * weight.float()).to(x.dtype)


def attend_tiles(heads: TiledHeads) -> Tensor:
    """Attention whose softmax weights are E4M3 numbers written down by their codes: float32 [B, S, C].

    An E4M3 number's code, read as an integer, is its logarithm in eighths of an octave, but for the straight
    line that E4M3 draws from each power of two to the next. So the weight 2^t is the code 8 t + constant: no
    exponential, and no conversion to FP8. The constant gives each row's largest score the same code. What
    that costs: the line lies above the curve by 6% of a weight at most, and by 4% in the mean, which dividing
    by the weights' sum takes away. It does for the largest weight too, if that is one that lies 4% above:
    224, code 118, and not 256, which lies on the curve. E4M3's own rounding is as large. Weights under 2^-15
    of a row's largest become 0. Exponentials by integer arithmetic: Schraudolph, "A Fast, Compact
    Approximation of the Exponential Function" (1999).

    Scores, constants and codes are rounded to float16, and codes then to integers, ties to even.
    `attention.norms_refuse` says for which norms they stay within what float16 holds. A kernel that sees keys
    tile by tile takes the constant of the largest score so far, and so rounds other weights other ways.
    """
    k = heads.k[:, :, key_rows(heads.tokens, heads.k.device)]
    q, k, v = (fp8_values(part, torch.float32) for part in (heads.q[:, :, : heads.tokens], k, heads.v))
    weights = softmax_weights(q @ k.transpose(2, 3), q.shape[-1])
    out = weights @ v[..., : heads.tokens].transpose(2, 3) / weights.sum(dim=-1, keepdim=True)
    return out.transpose(1, 2).flatten(2)


def softmax_weights(scores: Tensor, head_dim: int) -> Tensor:
    """Scores q k [..., S] -> exp(score / sqrt(D)) in E4M3's numbers, the largest of each row 224."""
    # In float64 the product and the sum are exact, and rounded once.
    eighths = scores.half().double() * score_step(head_dim)
    shift = (LARGEST_CODE - eighths.amax(dim=-1, keepdim=True)).half().double()
    codes = (eighths + shift).half().double().round().clamp(min=0).to(torch.uint8)
    return fp8_values(codes.view(torch.float8_e4m3fn), torch.float32)


def score_step(head_dim: int) -> float:
    """How many E4M3 codes a score of 1 raises a weight by, 8 log2(e) / sqrt(D), rounded to float16."""
    return float(torch.tensor(8 * math.log2(math.e) / math.sqrt(head_dim)).half())


def quantize_rowwise(x: Tensor) -> ScaledTensor:
    """Each token's channels to E4M3 by the token's own amax: x [..., K] -> data [..., K], scale [..., 1]."""
    return quantize(x, "e4m3fn", "rowwise")


def quantize_static(x: Tensor, scale: Tensor) -> ScaledTensor:
    """All tokens to E4M3 by one scale, saturating: x [..., K], scale [] -> data [..., K], scale [..., 1]."""
    data = saturate(x.float() / scale, torch.float8_e4m3fn)
    return ScaledTensor(data, scale.float().reshape(1).expand(*x.shape[:-1], 1).contiguous())


def scaled_mm(x: ScaledTensor, weight: ScaledTensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """dequantize(x) @ dequantize(weight).T + bias: x [..., K], weight [N, K] -> [..., N] in `dtype`.

    `weight.scale` is [N, 1], or [N, K/128] when blocks run along K. FP8 values are exact in bf16, so the
    product is taken in `dtype` (which accumulates in float32) and scaled afterwards, in float32.
    """
    groups = weight.scale.shape[1]
    if groups == 1:
        product = F.linear(fp8_values(x.data, dtype), fp8_values(weight.data, dtype)).float()
        product = product * x.scale * weight.scale.T
    else:
        product = F.linear(fp8_values(x.data, dtype), dequantize_weight(weight, dtype)).float() * x.scale
    return (product if bias is None else product + bias.float()).to(dtype)


def dequantize_weight(weight: ScaledTensor, dtype: torch.dtype) -> Tensor:
    """data * scale for a weight [N, K] whose scale is [N, G]: one value a row, or one a row and K group."""
    scale = weight.scale
    if scale.shape[1] > 1:
        scale = scale.repeat_interleave(BLOCK, dim=1)[:, : weight.data.shape[1]]
    return fp8_values(weight.data, torch.float32).mul_(scale).to(dtype)


def fp8_values(data: Tensor, dtype: torch.dtype) -> Tensor:
    """`data.to(dtype)`, of FP8: read from the table of its 256 values, on a CPU in a fifth of the time."""
    codes = torch.arange(256, dtype=torch.uint8, device=data.device).view(data.dtype)
    values = codes.to(dtype).index_select(0, data.contiguous().view(torch.uint8).flatten().int())
    return values.unflatten(0, data.shape)


def group_statistics(x: Tensor, groups: int, added: Tensor | None = None) -> Tensor:
    """Mean and variance of each group of channels of x + added, [B, groups, 2] in float32.

    x [B, C, H, W]; added [C] is the bias of the convolution that made x, which so needs no pass of its own.
    """
    values = _plus(x, added)
    mean = _group_means(values, groups)
    squares = values.sub_(_spread(mean, x.shape[1])).square_()
    return torch.stack([mean, _group_means(squares, groups)], dim=-1)


def group_norm(
    x: Tensor, statistics: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None = None, *, silu: bool
) -> Tensor:
    """GroupNorm(x + added) by the given statistics, then SiLU if asked: x [B, C, H, W], the others [C].

    The statistics may be those of a larger picture, of which x is a strip.
    """
    mean, variance = (_spread(groups, x.shape[1]) for groups in statistics.unbind(dim=-1))
    slope = weight.float()[:, None, None] * torch.rsqrt(variance + NORM_EPSILON)
    offset = bias.float()[:, None, None] + (0 if added is None else added.float()[:, None, None]) * slope
    normed = torch.addcmul(offset - mean * slope, x.float(), slope)
    return (F.silu(normed, inplace=True) if silu else normed).to(x.dtype)


def add_branch(x: Tensor, branch: Tensor, bias: Tensor) -> Tensor:
    """x + (branch + bias): a residual block's end, [B, C, H, W] twice and [C]."""
    return _plus(branch, bias).add_(x).to(x.dtype)


def _group_means(values: Tensor, groups: int) -> Tensor:
    """[B, C, H, W] -> [B, groups]."""
    return values.flatten(2).mean(dim=2).unflatten(1, (groups, -1)).mean(dim=2)


def _spread(groups: Tensor, channels: int) -> Tensor:
    """One value a group [B, groups] -> one a channel [B, C, 1, 1]."""
    return groups.repeat_interleave(channels // groups.shape[1], dim=1)[:, :, None, None]


def _plus(x: Tensor, added: Tensor | None) -> Tensor:
    """x + added in float32, in new memory."""
    copy = x.to(torch.float32, copy=True)
    return copy if added is None else copy.add_(added[:, None, None])


def _as(values: Tensor, dtype: torch.dtype) -> Tensor:
    return saturate(values, dtype) if dtype == torch.float8_e4m3fn else values.to(dtype)
