"""q, k and v from a stream's projection to their place among both streams' heads, in one pass.

The joint attention wants the tokens of both streams side by side. Writing each stream's heads where they
belong, normed and in the attention's own dtype, saves the concatenations.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sd35.kernels.operands import Heads, Product, Result, TiledHeads
from sd35.kernels.reference import NORM_EPSILON
from sd35.kernels.triton.launch import result_arguments, rounds_natively
from sd35.kernels.triton.numbers import e4m3_bits, load_head, normed_head
from sd35.kernels.triton.tiles import place_tiles

ROWS = 64  # of a program


def place_heads(qkv: Result, norm_q: Tensor, norm_k: Tensor, heads: Heads | TiledHeads, first: int) -> None:
    """`reference.place_heads`."""
    if isinstance(heads, TiledHeads):
        place_tiles(qkv, norm_q, norm_k, heads, first)
        return
    values = qkv.values if isinstance(qkv, Product) else qkv
    batch, tokens, _ = values.shape
    assert values.is_contiguous()
    _, total, count, head_dim = heads.q.shape
    is_fp8 = heads.q.dtype == torch.float8_e4m3fn
    q, k, v = (part.view(torch.uint8) if is_fp8 else part for part in (heads.q, heads.k, heads.v))
    place_heads_kernel[(3 * count, triton.cdiv(tokens, ROWS), batch)](
        **result_arguments(qkv, values),
        norm_q=norm_q, norm_k=norm_k,
        q=q, k=k, v=v,
        tokens=tokens, total=total, first=first, heads=count, epsilon=NORM_EPSILON,
        FP8=is_fp8, NATIVE=rounds_natively(values.device),
        ROWS=ROWS, HEAD_DIM=head_dim,
        num_warps=4,
    )  # fmt: skip


@triton.jit
def place_heads_kernel(
    values, row_scale, column_scale, bias, norm_q, norm_k, q, k, v,
    tokens, total, first, heads, epsilon,
    UNFINISHED: tl.constexpr, BIASED: tl.constexpr, FP8: tl.constexpr, NATIVE: tl.constexpr,
    ROWS: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """One program for one head's queries, keys or values of ROWS tokens."""
    kind, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    token = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    x = load_head(values, row_scale, column_scale, bias, token, tokens, heads, UNFINISHED, BIASED, HEAD_DIM)
    if kind < 2:
        x = normed_head(x, norm_q if kind == 0 else norm_k, epsilon, HEAD_DIM)
    batch = tl.program_id(2).to(tl.int64)
    token = token[:, None]
    present = token < tokens
    dims = tl.arange(0, HEAD_DIM)[None, :]
    out = q if kind == 0 else (k if kind == 1 else v)
    place = out + ((batch * total + first + token) * heads + head) * HEAD_DIM + dims
    if FP8:
        tl.store(place, e4m3_bits(x, NATIVE), mask=present)
    else:
        tl.store(place, x.to(out.dtype.element_ty), mask=present)
