"""q, k and v from a stream's projection to where FP8 tensor cores read them (`TiledHeads`), in one pass.

Reading is most of it: two bytes a value come in, one goes out. A token's head is 128 bytes in a row on the
way in; q and k leave in rows too, k's among other rows. v leaves by columns: its tile is turned over in
shared memory, in E4M3 already, so that a thread again writes many tokens at once. It can where the stream
starts, and ends, at a multiple of 16 tokens (Triton compiles integers that are such multiples apart); other
streams, a text's, are short.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sd35.kernels.operands import KEY_GROUP, Product, Result, TiledHeads
from sd35.kernels.reference import NORM_EPSILON
from sd35.kernels.triton.launch import result_arguments, rounds_natively
from sd35.kernels.triton.numbers import e4m3_bits, load_head

ROWS = 128  # of a program: whole lines of memory for v, whose tokens lie side by side


def place_tiles(qkv: Result, norm_q: Tensor, norm_k: Tensor, heads: TiledHeads, first: int) -> None:
    """`reference.place_heads` into `TiledHeads`."""
    values = qkv.values if isinstance(qkv, Product) else qkv
    batch, tokens, _ = values.shape
    assert values.is_contiguous()
    _, count, room, head_dim = heads.q.shape
    q, k, v = (part.view(torch.uint8) for part in (heads.q, heads.k, heads.v))
    place_tiles_kernel[(3 * count, triton.cdiv(tokens, ROWS), batch)](
        **result_arguments(qkv, values),
        norm_q=norm_q, norm_k=norm_k,
        q=q, k=k, v=v,
        tokens=tokens, room=room, first=first, heads=count, epsilon=NORM_EPSILON,
        NATIVE=rounds_natively(values.device),
        ROWS=ROWS, HEAD_DIM=head_dim, GROUP=KEY_GROUP,
        num_warps=8,
    )  # fmt: skip


@triton.jit
def place_tiles_kernel(
    values, row_scale, column_scale, bias, norm_q, norm_k, q, k, v,
    tokens, room, first, heads, epsilon,
    UNFINISHED: tl.constexpr, BIASED: tl.constexpr, NATIVE: tl.constexpr,
    ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One program for one head's queries, keys or values of ROWS tokens."""
    x = load_head(
        values, row_scale, column_scale, bias, norm_q, norm_k, tokens, heads, epsilon,
        UNFINISHED, BIASED, ROWS, HEAD_DIM,
    )  # fmt: skip
    codes = e4m3_bits(x, NATIVE)
    kind, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    start = (tl.program_id(2).to(tl.int64) * heads + head) * room * HEAD_DIM
    token = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD_DIM)
    if kind == 2:
        column = v + start + dims[:, None] * room + first + token[None, :]
        tl.store(column, tl.trans(codes), mask=(token < tokens)[None, :])
    else:
        place = first + token
        if kind == 1:
            place = key_row(place, GROUP)
        row = (q if kind == 0 else k) + start + place[:, None] * HEAD_DIM + dims[None, :]
        tl.store(row, codes, mask=(token < tokens)[:, None])


@triton.jit
def key_row(token, GROUP: tl.constexpr):
    """`operands.key_rows`, of some tokens."""
    place = token % GROUP
    return token - place + place // 2 % 2 * 8 + place // 4 * 2 + place % 2
