"""GELU and rounding to FP8 in one pass over a token's hidden values; and the rounding alone."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sd35.kernels.operands import Form, Operand, Product, Result
from sd35.kernels.triton.launch import Output, form_arguments, parts_of, result_arguments
from sd35.kernels.triton.numbers import PLAIN, load_result, store_operand

ROOT = tl.constexpr(0.7978845608028654)  # sqrt(2 / pi)


def gelu(hidden: Result, form: Form, dtype: torch.dtype) -> Operand:
    """`reference.gelu`."""
    values = hidden.values if isinstance(hidden, Product) else hidden
    assert values.dtype == dtype
    return _run(hidden, values, form, is_gelu=True)


def take(x: Tensor, form: Form) -> Operand:
    """`reference.take`, of bf16 or float32 [B, T, C] whose batches may lie apart."""
    if form.activation == "none":
        return x
    return _run(x, x, form, is_gelu=False)


def _run(result: Result, values: Tensor, form: Form, *, is_gelu: bool) -> Operand:
    batch, tokens, channels = values.shape
    assert values.stride(2) == 1
    output = Output.empty((batch, tokens, channels), form, values)
    gelu_kernel[(batch * tokens,)](
        **result_arguments(result, values),
        stride_batch=values.stride(0), stride_token=values.stride(1),
        out=output.data, out_scale=output.scale,
        **form_arguments(form, values),
        tokens=tokens, channels=channels,
        GELU=is_gelu,
        **parts_of(channels),
        num_warps=4 if is_gelu else 8,  # measured on an H100, at 9,728 and at 2,432 channels
    )  # fmt: skip
    return output.operand


@triton.jit
def gelu_kernel(
    values, stride_batch, stride_token, row_scale, column_scale, bias,
    out, out_scale, input_scale,
    tokens, channels,
    UNFINISHED: tl.constexpr, BIASED: tl.constexpr,
    GELU: tl.constexpr, FORM: tl.constexpr, NATIVE: tl.constexpr,
    FIRST: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """One program a token."""
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // tokens, row % tokens
    a, b = load_result(
        values + batch * stride_batch + token * stride_token,
        row_scale + row, column_scale, bias, channels,
        UNFINISHED, BIASED, FIRST, SECOND,
    )  # fmt: skip
    if GELU:
        # 2^-11 of an error drowns in E4M3's 2^-4, and not in 16 bits.
        APPROXIMATE: tl.constexpr = NATIVE and FORM != PLAIN
        a, b = gelu_tanh(a, APPROXIMATE), gelu_tanh(b, APPROXIMATE)
    store_operand(
        a, b, out + row * channels, out_scale + row, input_scale, channels,
        FORM, NATIVE, FIRST, SECOND,
    )  # fmt: skip


@triton.jit
def gelu_tanh(x, APPROXIMATE: tl.constexpr):
    """x / 2 * (1 + tanh(u)), u = sqrt(2 / pi) (x + 0.044715 x^3), by the card's own tanh or in full.

    In full it is x / (1 + exp(-2 u)): an exponential and a quotient, on the unit that rounds to FP8 too.
    """
    u = x * (ROOT + 0.044715 * ROOT * (x * x))
    if APPROXIMATE:
        tanh = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [u], dtype=tl.float32, is_pure=True, pack=1
        )
        half = 0.5 * x
        y = half * tanh + half
    else:
        y = x / (1.0 + tl.exp(tl.minimum(-2.0 * u, 80.0)))  # exp(80) is far beyond 1 and no infinity
    return y
