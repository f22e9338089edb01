"""Inside a Triton kernel: a token's row or a head's tile in registers, and the row's way out to a layer.

A row is held as two parts, for Triton's blocks are powers of two and SD3.5's widths are not: 2,432 channels
are 2,048 and 384 of 512, where one block of 4,096 would compute for nothing in four of ten lanes. Lanes of
the second part that lie beyond the row hold 0.

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

# Four values to one register: of Triton's own conversion the compiler may take each byte apart again.
FOUR_CODES = tl.constexpr(
    """{
    .reg .b16 low, high;
    cvt.rn.satfinite.e4m3x2.f32 low, $2, $1;
    cvt.rn.satfinite.e4m3x2.f32 high, $4, $3;
    mov.b32 $0, {low, high};
    }"""
)


@triton.jit
def e4m3_bits(x, NATIVE: tl.constexpr):
    """float32 -> E4M3 as uint8: to nearest even, saturating, NaN stays NaN."""
    if NATIVE:
        code = tl.inline_asm_elementwise(FOUR_CODES, "=r,f,f,f,f", [x], dtype=tl.uint8, is_pure=True, pack=4)
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
def e4m3_words(a, b, c, d, NATIVE: tl.constexpr):
    """The codes of four float32 side by side in an int32, a's in its lowest byte."""
    if NATIVE:
        word = tl.inline_asm_elementwise(
            FOUR_CODES, "=r,f,f,f,f", [a, b, c, d], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        low = e4m3_bits(a, NATIVE).to(tl.int32) | e4m3_bits(b, NATIVE).to(tl.int32) << 8
        high = e4m3_bits(c, NATIVE).to(tl.int32) | e4m3_bits(d, NATIVE).to(tl.int32) << 8
        word = low | high << 16
    return word


@triton.jit
def load_row(row, width, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """Both parts of a row, in float32; `row` points at its first value."""
    a = tl.load(row + tl.arange(0, FIRST)).to(tl.float32)
    offsets = FIRST + tl.arange(0, SECOND)
    b = tl.load(row + offsets, mask=offsets < width, other=0.0).to(tl.float32)
    return a, b


@triton.jit
def store_row(a, b, row, width, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """Write both parts, rounded to what `row` points at."""
    kind: tl.constexpr = row.dtype.element_ty
    tl.store(row + tl.arange(0, FIRST), a.to(kind))
    offsets = FIRST + tl.arange(0, SECOND)
    tl.store(row + offsets, b.to(kind), mask=offsets < width)


@triton.jit
def load_result(
    row, row_scale, column_scale, bias, width,
    UNFINISHED: tl.constexpr, BIASED: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """A row of a linear layer's result, its scales and bias applied where they are still due."""
    a, b = load_row(row, width, FIRST, SECOND)
    if UNFINISHED:
        scale = tl.load(row_scale)
        scale_a, scale_b = load_row(column_scale, width, FIRST, SECOND)
        a = a * (scale * scale_a)
        b = b * (scale * scale_b)
        if BIASED:
            bias_a, bias_b = load_row(bias, width, FIRST, SECOND)
            a = a + bias_a
            b = b + bias_b
    return a, b


@triton.jit
def store_operand(
    a, b, row, row_scale, input_scale, width,
    FORM: tl.constexpr, NATIVE: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """Write a row plain, or in E4M3 beside its scale: amax / 448, never 0, or the calibrated one."""
    if FORM == PLAIN:
        store_row(a, b, row, width, FIRST, SECOND)
    else:
        if FORM == DYNAMIC:
            amax = tl.maximum(tl.max(tl.abs(a), axis=0), tl.max(tl.abs(b), axis=0))
            scale = tl.where(amax == 0.0, 1.0, tl.maximum(amax / LARGEST, SMALLEST_SCALE))
        else:
            scale = tl.load(input_scale)
        tl.store(row_scale, scale)
        inverse = 1.0 / scale
        store_row(e4m3_bits(a * inverse, NATIVE), e4m3_bits(b * inverse, NATIVE), row, width, FIRST, SECOND)


@triton.jit
def load_head(
    values, row_scale, column_scale, bias, token, tokens, heads,
    UNFINISHED: tl.constexpr, BIASED: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """One head's queries, keys or values of some tokens, finished, in float32: [tokens, HEAD_DIM].

    Programs are (3 * heads, blocks of tokens, batch): heads first, so that those that run side by side read
    whole tokens.
    """
    token = token[:, None]
    present = token < tokens
    row = tl.program_id(2).to(tl.int64) * tokens + token
    columns = tl.program_id(0) * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    x = tl.load(values + row * (3 * heads * HEAD_DIM) + columns, mask=present, other=0.0).to(tl.float32)
    if UNFINISHED:
        x = x * tl.load(row_scale + row, mask=present, other=0.0) * tl.load(column_scale + columns)
        if BIASED:
            x = x + tl.load(bias + columns).to(tl.float32)
    return x


@triton.jit
def normed_head(x, weight, epsilon, HEAD_DIM: tl.constexpr):
    """`reference.qk_rms_norm` of a head's queries or keys, [tokens, HEAD_DIM]."""
    inverse = tl.rsqrt(tl.sum(x * x, axis=1) / HEAD_DIM + epsilon)
    return x * inverse[:, None] * tl.load(weight + tl.arange(0, HEAD_DIM)[None, :]).to(tl.float32)
