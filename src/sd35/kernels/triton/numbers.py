"""Numbers inside a Triton kernel: rounding to E4M3, and a row in the form that the next layer wants.

Cards from sm_89 on round to E4M3 in one instruction. Older ones have none, and neither has Triton's
interpreter a right one, so there it is done in integers. A normal float32 keeps 3 of its 23 mantissa bits:
adding half of the last kept bit (a bit less when that bit is even) carries into the exponent by itself.
A number under 2^-6 becomes a multiple of 2^-9, which adding 2^14 rounds to, for that is float32's own step
up there.
"""

import triton
import triton.language as tl

PLAIN = tl.constexpr(0)
DYNAMIC = tl.constexpr(1)
STATIC = tl.constexpr(2)

LARGEST = tl.constexpr(448.0)
SMALLEST_SCALE = tl.constexpr(1.1754943508222875e-38)  # float32's smallest normal number, as in sd35.fp8


@triton.jit
def e4m3_bits(x, NATIVE: tl.constexpr):
    """float32 -> E4M3 as uint8: to nearest even, saturating, NaN stays NaN."""
    if NATIVE:
        code = x.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    else:
        bits = x.to(tl.int32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
        # 2^14 has the bits 0x46800000.
        small = (tl.abs(x) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
        rounded = tl.where(magnitude < (121 << 23), small, tl.minimum(normal, 0x7E))
        rounded = tl.where(magnitude > 0x7F800000, 0x7F, rounded)
        code = (((bits >> 24) & 0x80) | rounded).to(tl.uint8)
    return code


@triton.jit
def row_scale(x, FORM: tl.constexpr, input_scale):
    """The scale of one row: amax / 448, never 0, or the one that a calibration has found."""
    if FORM == DYNAMIC:
        amax = tl.max(tl.abs(x), axis=0)
        scale = tl.where(amax == 0.0, 1.0, tl.maximum(amax / LARGEST, SMALLEST_SCALE))
    else:
        scale = tl.load(input_scale)
    return scale


@triton.jit
def store_row(x, out, out_scale, input_scale, row, offsets, mask, FORM: tl.constexpr, NATIVE: tl.constexpr):
    """Write one row plain, or in E4M3 with its scale; `out` points at the row."""
    if FORM == PLAIN:
        tl.store(out + offsets, x.to(out.dtype.element_ty), mask=mask)
    else:
        scale = row_scale(x, FORM, input_scale)
        tl.store(out_scale + row, scale)
        tl.store(out + offsets, e4m3_bits(x * (1.0 / scale), NATIVE), mask=mask)


@triton.jit
def load_result(
    values, row_scale, column_scale, bias, offsets, mask, UNFINISHED: tl.constexpr, BIASED: tl.constexpr
):
    """Part of a linear layer's result in float32, its scales and bias applied where they are still due.

    `values` points at the row, `row_scale` at its scale.
    """
    result = tl.load(values + offsets, mask=mask, other=0.0).to(tl.float32)
    if UNFINISHED:
        columns = tl.load(column_scale + offsets, mask=mask, other=0.0)
        result = result * tl.load(row_scale) * columns
        if BIASED:
            result += tl.load(bias + offsets, mask=mask, other=0.0).to(tl.float32)
    return result
