"""AdaLN in one pass over a token: gated branch added, LayerNorm, modulation, rounding to FP8.

A token's channels (2,432 in Large) fit one program's registers, so each value is read once and written
once. Unfused, the same work reads and writes every token five times.
"""

import triton
import triton.language as tl
from torch import Tensor

from sd35.kernels.operands import PLAIN, Form, Operand, Residual
from sd35.kernels.reference import NORM_EPSILON
from sd35.kernels.triton.launch import Output, form_arguments, parts_of, result_arguments
from sd35.kernels.triton.numbers import load_result, load_row, store_operand, store_row


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
        **parts_of(channels),
        num_warps=4,
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
    FIRST: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """One program a token."""
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // tokens, row % tokens
    a, b = load_row(x + batch * x_stride_batch + token * x_stride_token, channels, FIRST, SECOND)
    if BRANCH:
        branch_a, branch_b = load_result(
            values + row * channels, row_scale + row, column_scale, bias, channels,
            UNFINISHED, BIASED, FIRST, SECOND,
        )  # fmt: skip
        gate_a, gate_b = load_row(gate + batch * gate_stride, channels, FIRST, SECOND)
        # The norm sees the tokens as they are kept: rounded.
        a = (a + gate_a * branch_a).to(after.dtype.element_ty).to(tl.float32)
        b = (b + gate_b * branch_b).to(after.dtype.element_ty).to(tl.float32)
        store_row(a, b, after + row * channels, channels, FIRST, SECOND)
    if MODULATED:
        mean = (tl.sum(a, axis=0) + tl.sum(b, axis=0)) / channels
        a = a - mean
        b = tl.where(FIRST + tl.arange(0, SECOND) < channels, b - mean, 0.0)
        variance = (tl.sum(a * a, axis=0) + tl.sum(b * b, axis=0)) / channels
        inverse = tl.rsqrt(variance + epsilon)
        scale_a, scale_b = load_row(scale + batch * scale_stride, channels, FIRST, SECOND)
        shift_a, shift_b = load_row(shift + batch * shift_stride, channels, FIRST, SECOND)
        store_operand(
            a * inverse * (1.0 + scale_a) + shift_a, b * inverse * (1.0 + scale_b) + shift_b,
            out + row * channels, out_scale + row, input_scale, channels,
            FORM, NATIVE, FIRST, SECOND,
        )  # fmt: skip
