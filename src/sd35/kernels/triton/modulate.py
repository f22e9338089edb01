"""AdaLN in one pass over a token: gated branch added, LayerNorm, modulation, rounding to FP8.

A token's channels (2,432 in Large) fit one program's registers, so each value is read once and written
once. Unfused, the same work reads and writes every token five times.
"""

import triton
import triton.language as tl
from torch import Tensor

from sd35.kernels.operands import PLAIN, Form, Operand, Residual
from sd35.kernels.reference import NORM_EPSILON
from sd35.kernels.triton.launch import Output, block_for, form_arguments, result_arguments
from sd35.kernels.triton.numbers import load_result, store_row


def settle(stream: Residual) -> Tensor:
    """`reference.settle`."""
    if stream.branch is None:
        return stream.tokens
    return _run(stream, None, PLAIN)[0]


def modulate(stream: Residual, shift: Tensor, scale: Tensor, form: Form) -> tuple[Tensor, Operand]:
    """`reference.modulate`."""
    return _run(stream, (shift, scale), form)


def _run(stream: Residual, modulation: tuple[Tensor, Tensor] | None, form: Form) -> tuple[Tensor, Operand]:
    x = stream.tokens
    batch, tokens, channels = x.shape
    assert x.stride(2) == 1
    after = x if stream.branch is None else x.new_empty(x.shape)
    output = Output.empty(x.shape, form, x) if modulation else Output(x, x, x)
    shift, scale = modulation or (x, x)
    gate = x if stream.gate is None else stream.gate
    modulate_kernel[(batch * tokens,)](
        x, x.stride(0), x.stride(1),
        **result_arguments(stream.branch, x),
        gate=gate, gate_stride=gate.stride(0),
        shift=shift, shift_stride=shift.stride(0),
        scale=scale, scale_stride=scale.stride(0),
        after=after,
        out=output.data, out_scale=output.scale,
        **form_arguments(form, x),
        tokens=tokens, channels=channels, epsilon=NORM_EPSILON,
        BRANCH=stream.branch is not None,
        MODULATED=modulation is not None,
        BLOCK=block_for(channels),
        num_warps=8 if channels > 1024 else 4,
    )  # fmt: skip
    return after, output.operand


@triton.jit
def modulate_kernel(
    x, x_stride_batch, x_stride_token,
    values, row_scale, column_scale, bias,
    gate, gate_stride,
    shift, shift_stride,
    scale, scale_stride,
    after,
    out, out_scale, input_scale,
    tokens, channels, epsilon,
    UNFINISHED: tl.constexpr, BIASED: tl.constexpr,
    BRANCH: tl.constexpr, MODULATED: tl.constexpr,
    FORM: tl.constexpr, NATIVE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a token."""
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // tokens, row % tokens
    offsets = tl.arange(0, BLOCK)
    mask = offsets < channels
    value = tl.load(x + batch * x_stride_batch + token * x_stride_token + offsets, mask=mask, other=0.0)
    value = value.to(tl.float32)
    if BRANCH:
        branch = load_result(
            values + row * channels, row_scale + row, column_scale, bias, offsets, mask, UNFINISHED, BIASED
        )
        gates = tl.load(gate + batch * gate_stride + offsets, mask=mask, other=0.0).to(tl.float32)
        settled = (value + gates * branch).to(after.dtype.element_ty)
        tl.store(after + row * channels + offsets, settled, mask=mask)
        value = settled.to(tl.float32)
    if MODULATED:
        mean = tl.sum(value, axis=0) / channels
        centred = tl.where(mask, value - mean, 0.0)
        variance = tl.sum(centred * centred, axis=0) / channels
        normed = centred * tl.rsqrt(variance + epsilon)
        scales = tl.load(scale + batch * scale_stride + offsets, mask=mask, other=0.0).to(tl.float32)
        shifts = tl.load(shift + batch * shift_stride + offsets, mask=mask, other=0.0).to(tl.float32)
        modulated = normed * (1.0 + scales) + shifts
        store_row(modulated, out + row * channels, out_scale, input_scale, row, offsets, mask, FORM, NATIVE)
