"""Inside a Triton kernel: tokens in registers, and their way out in the form that a layer wants.

A kernel holds a few rows (tokens) at once, so that what all rows share, such as a layer's scales, is read
once for all of them: from the cache, but a card's cache is no faster than twice its memory. A row is held
as two parts, for Triton's blocks are powers of two and SD3.5's widths are not: 2,432 channels are 2,048 and
384 of 512, where one block of 4,096 would compute for nothing in four of ten lanes. Lanes beyond a row hold
0, and so do rows beyond the last.

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
def load_rows(start, present, width, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """Both parts of rows in float32, [R, FIRST] and [R, SECOND].

    `start` [R, 1] points at each row's first value, `present` [R, 1] says which rows there are.
    """
    a = tl.load(start + tl.arange(0, FIRST)[None, :], mask=present, other=0.0).to(tl.float32)
    columns = FIRST + tl.arange(0, SECOND)[None, :]
    b = tl.load(start + columns, mask=present & (columns < width), other=0.0).to(tl.float32)
    return a, b


@triton.jit
def load_shared(start, width, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """A vector that all rows share, in float32: [1, FIRST] and [1, SECOND]."""
    a = tl.load(start + tl.arange(0, FIRST)[None, :]).to(tl.float32)
    columns = FIRST + tl.arange(0, SECOND)[None, :]
    b = tl.load(start + columns, mask=columns < width, other=0.0).to(tl.float32)
    return a, b


@triton.jit
def store_rows(a, b, start, present, width, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """Write both parts, rounded to what `start` points at."""
    kind: tl.constexpr = start.dtype.element_ty
    tl.store(start + tl.arange(0, FIRST)[None, :], a.to(kind), mask=present)
    columns = FIRST + tl.arange(0, SECOND)[None, :]
    tl.store(start + columns, b.to(kind), mask=present & (columns < width))


@triton.jit
def load_result(
    start, row_scale, column_scale, bias, present, width,
    UNFINISHED: tl.constexpr, BIASED: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """Rows of a linear layer's result, its scales and bias applied where they are still due."""
    a, b = load_rows(start, present, width, FIRST, SECOND)
    if UNFINISHED:
        scale = tl.load(row_scale, mask=present, other=0.0)
        scale_a, scale_b = load_shared(column_scale, width, FIRST, SECOND)
        a = a * scale * scale_a
        b = b * scale * scale_b
        if BIASED:
            bias_a, bias_b = load_shared(bias, width, FIRST, SECOND)
            a = a + bias_a
            b = b + bias_b
    return a, b


@triton.jit
def store_operand(
    a, b, start, row_scale, input_scale, present, width,
    FORM: tl.constexpr, NATIVE: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """Write rows plain, or in E4M3 beside their scales: amax / 448, never 0, or the calibrated one."""
    if FORM == PLAIN:
        store_rows(a, b, start, present, width, FIRST, SECOND)
    else:
        if FORM == DYNAMIC:
            amax = tl.maximum(tl.max(tl.abs(a), axis=1), tl.max(tl.abs(b), axis=1))[:, None]
            scale = tl.where(amax == 0.0, 1.0, tl.maximum(amax / LARGEST, SMALLEST_SCALE))
        else:
            scale = tl.load(input_scale + tl.zeros_like(present).to(tl.int32))
        tl.store(row_scale, scale, mask=present)
        inverse = 1.0 / scale
        bits_a, bits_b = e4m3_bits(a * inverse, NATIVE), e4m3_bits(b * inverse, NATIVE)
        store_rows(bits_a, bits_b, start, present, width, FIRST, SECOND)
