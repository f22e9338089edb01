"""q, k and v from a stream's projection to where FP8 tensor cores read them (`TiledHeads`), in one pass.

Reading is most of it: two bytes a value come in, one goes out. A token's head is 128 bytes in a row on the
way in; q and k leave in rows too, k's among other rows. v leaves by columns: its tile is turned over in
shared memory, in E4M3 already, so that a thread again writes many tokens at once. Shared memory moves words
of four bytes: four tokens of a dimension make one before they are turned over, where the stream starts and
ends at a multiple of four, or has nobody's memory behind its end. The other streams, of odd sizes of
pictures, go byte by byte.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sd35.kernels.operands import KEY_GROUP, Product, Result, TiledHeads
from sd35.kernels.reference import NORM_EPSILON
from sd35.kernels.triton.launch import result_arguments, rounds_natively
from sd35.kernels.triton.numbers import e4m3_bits, e4m3_words, load_head, normed_head

ROWS = 128  # of a program: whole lines of memory for v, whose tokens lie side by side


def place_tiles(qkv: Result, norm_q: Tensor, norm_k: Tensor, heads: TiledHeads, first: int) -> None:
    """`reference.place_heads` into `TiledHeads`."""
    values = qkv.values if isinstance(qkv, Product) else qkv
    batch, tokens, _ = values.shape
    assert values.is_contiguous()
    _, count, room, head_dim = heads.q.shape
    end = room - first if first + tokens == heads.tokens else tokens  # v may be written up to here
    in_words = first % 4 == 0 and end % 4 == 0
    q, k, v = (part.view(torch.uint8) for part in (heads.q, heads.k, heads.v))
    place_tiles_kernel[(3 * count, triton.cdiv(tokens, ROWS), batch)](
        **result_arguments(qkv, values),
        norm_q=norm_q, norm_k=norm_k,
        q=q, k=k, v=v.view(torch.int32) if in_words else v,
        tokens=tokens, end=end, room=room, first=first, heads=count, epsilon=NORM_EPSILON,
        NATIVE=rounds_natively(values.device), WORDS=in_words,
        ROWS=ROWS, HEAD_DIM=head_dim, GROUP=KEY_GROUP,
        num_warps=8,
    )  # fmt: skip


@triton.jit
def place_tiles_kernel(
    values, row_scale, column_scale, bias, norm_q, norm_k, q, k, v,
    tokens, end, room, first, heads, epsilon,
    UNFINISHED: tl.constexpr, BIASED: tl.constexpr, NATIVE: tl.constexpr, WORDS: tl.constexpr,
    ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One program for one head's queries, keys or values of ROWS tokens."""
    kind, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    start = (tl.program_id(2).to(tl.int64) * heads + head) * room * HEAD_DIM
    block = tl.program_id(1) * ROWS
    result = (values, row_scale, column_scale, bias)
    if kind < 2:
        place_rows(
            result, norm_q if kind == 0 else norm_k, (q if kind == 0 else k) + start, kind == 1,
            block, tokens, first, heads, epsilon, UNFINISHED, BIASED, NATIVE, ROWS, HEAD_DIM, GROUP,
        )  # fmt: skip
    elif WORDS:
        place_words(
            result, v + start // 4, block, tokens, end, room, first, heads,
            UNFINISHED, BIASED, NATIVE, ROWS, HEAD_DIM,
        )  # fmt: skip
    else:
        place_columns(
            result, v + start, block, tokens, room, first, heads,
            UNFINISHED, BIASED, NATIVE, ROWS, HEAD_DIM,
        )  # fmt: skip


@triton.jit
def place_rows(
    result, norm, out, is_key, block, tokens, first, heads, epsilon,
    UNFINISHED: tl.constexpr, BIASED: tl.constexpr, NATIVE: tl.constexpr,
    ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Queries or keys of the tokens from `block` on."""
    token = block + tl.arange(0, ROWS)
    x = load_head(*result, token, tokens, heads, UNFINISHED, BIASED, HEAD_DIM)
    codes = e4m3_bits(normed_head(x, norm, epsilon, HEAD_DIM), NATIVE)
    place = first + token
    if is_key:
        place = key_row(place, GROUP)
    row = out + place[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    tl.store(row, codes, mask=(token < tokens)[:, None])


@triton.jit
def place_words(
    result, out, block, tokens, end, room, first, heads,
    UNFINISHED: tl.constexpr, BIASED: tl.constexpr, NATIVE: tl.constexpr,
    ROWS: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """Values of the same tokens, four to a word: `out` points at int32."""
    word = block // 4 + tl.arange(0, ROWS // 4)
    token = 4 * word
    codes = e4m3_words(
        load_head(*result, token, tokens, heads, UNFINISHED, BIASED, HEAD_DIM),
        load_head(*result, token + 1, tokens, heads, UNFINISHED, BIASED, HEAD_DIM),
        load_head(*result, token + 2, tokens, heads, UNFINISHED, BIASED, HEAD_DIM),
        load_head(*result, token + 3, tokens, heads, UNFINISHED, BIASED, HEAD_DIM),
        NATIVE,
    )
    column = out + tl.arange(0, HEAD_DIM)[:, None] * (room // 4) + (first // 4 + word)[None, :]
    tl.store(column, tl.trans(codes), mask=(word < end // 4)[None, :])


@triton.jit
def place_columns(
    result, out, block, tokens, room, first, heads,
    UNFINISHED: tl.constexpr, BIASED: tl.constexpr, NATIVE: tl.constexpr,
    ROWS: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """The same, byte by byte."""
    token = block + tl.arange(0, ROWS)
    x = load_head(*result, token, tokens, heads, UNFINISHED, BIASED, HEAD_DIM)
    column = out + tl.arange(0, HEAD_DIM)[:, None] * room + (first + token)[None, :]
    tl.store(column, tl.trans(e4m3_bits(x, NATIVE)), mask=(token < tokens)[None, :])


@triton.jit
def key_row(token, GROUP: tl.constexpr):
    """`operands.key_rows`, of some tokens."""
    place = token & (GROUP - 1)  # bits: a quotient of signed numbers takes ten instructions
    return token - place + (place >> 1 & 1) * 8 + (place >> 2) * 2 + (place & 1)
