"""E4M3 attention for Hopper, whose softmax has no exponential and no conversion: `reference.attend_tiles`.

SD3.5's heads have 64 dimensions, so each score costs little in the tensor cores and as much as ever outside
of them. A usual FP8 kernel computes an exponential and a rounding to FP8 for each, both on units that do a
quarter or less of what multipliers do, and waits for these. Here a softmax weight is an E4M3 code at once.
For four scores: two packed multiply-adds to float16, which hold two codes each; two packed additions of 1024,
where float16's numbers are integers, and a number's low byte is the code; and one permutation of bytes, which
makes of the two the register that the second product reads. The row's sum is a third product, by ones.

Three groups of four warps take 64 queries each. A further warp brings tiles of 128 keys and values through
the bulk copy engine, always ahead. Groups do not wait for one another: while one makes weights, the others
keep the tensor cores busy. A program stays for many tiles, and the next queries come while the last finish.

The tensor cores add in about 14 bits, and lose most of a small weight beside a large sum. So no sum there is
longer than two tiles of keys; these are added up in float32. Source of that idea: DeepSeek-V3, arXiv
2412.19437, section 3.3.2; of skipping what costs most in softmax, FlashAttention-3 and -4 (arXiv 2407.08608).

This is Gluon, Triton's language with layouts spelled out: the values of a score and of its weight must be in
the same lane (see `operands.TiledHeads`), which plain Triton does not promise. It has no interpreter, so
tests hold the kernel to its definition on a card, and compile it everywhere.
"""

import functools
import struct

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from sd35.kernels.operands import KEY_GROUP, TILE_TOKENS, TiledHeads
from sd35.kernels.reference import LARGEST_CODE, score_step

GROUPS = gl.constexpr(3)  # of warps that compute
ROWS = gl.constexpr(64)  # queries of a group: what one tensor core instruction takes
KEYS = gl.constexpr(TILE_TOKENS)
DIM = gl.constexpr(64)
GROUP_OF_KEYS = gl.constexpr(KEY_GROUP)
STAGES = gl.constexpr(8)  # tiles of keys and values on their way, 16 KB each
COMPUTE_REGISTERS = gl.constexpr(160)  # a thread, of 65,536 for 3 groups and the warp that copies
COPY_REGISTERS = gl.constexpr(24)
LARGEST = gl.constexpr(float(LARGEST_CODE))
STEP = gl.constexpr(score_step(64))
LOWEST = gl.constexpr(-10_000.0)  # below every score; where no query lies there may be anything
NO_SHIFT = gl.constexpr(20_000.0)  # above every shift: the empty sums before the first tile decay to 0
ONE = gl.constexpr(0x38)  # in E4M3

CODES = gl.constexpr(
    f"""{{
    .reg .b32 step, integers, low, high;
    mov.b32 step, 0x{2 * struct.pack(">e", STEP.value).hex()};
    mov.b32 integers, 0x64006400;
    fma.rn.relu.f16x2 low, $1, step, $3;
    fma.rn.relu.f16x2 high, $2, step, $4;
    add.rn.f16x2 low, low, integers;
    add.rn.f16x2 high, high, integers;
    prmt.b32 $0, low, high, 0x6420;
    }}"""
)
QK_SHARED = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=64, element_bitwidth=8, rank=2))
V_SHARED = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=8, rank=2))


@gluon.constexpr_function
def product_layout(columns: int) -> gl.NVMMADistributedLayout:
    """Where a group's product of 64 rows lies: each warp has 16 of them."""
    return gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, columns, 32])


SCORES = gl.constexpr(product_layout(TILE_TOKENS))
OUT = gl.constexpr(product_layout(64))
SUMS = gl.constexpr(product_layout(8))
WEIGHTS = gl.constexpr(gl.DotOperandLayout(0, OUT.value, 4))
WEIGHTS_TO_SUM = gl.constexpr(gl.DotOperandLayout(0, SUMS.value, 4))
ROW = gl.constexpr(gl.SliceLayout(1, SCORES.value))


def attend_tiles(heads: TiledHeads) -> Tensor:
    """`reference.attend_tiles`, in bf16."""
    batch, count, room, head_dim = heads.q.shape
    assert head_dim == DIM.value
    out = torch.empty(batch, heads.tokens, count * head_dim, dtype=torch.bfloat16, device=heads.q.device)
    blocks = triton.cdiv(heads.tokens, GROUPS.value * ROWS.value)
    key_tiles = triton.cdiv(heads.tokens, KEYS.value)
    tiles = batch * count * blocks
    attend_kernel[(min(tiles, multiprocessors(out.device)),)](
        _descriptor(heads.q.flatten(0, 2), [ROWS.value, head_dim], QK_SHARED.value, head_dim),
        _descriptor(heads.k.flatten(0, 2), [KEYS.value, head_dim], QK_SHARED.value, head_dim),
        _descriptor(heads.v.flatten(0, 2), [head_dim, KEYS.value], V_SHARED.value, heads.tokens),
        out,
        tiles, blocks, room, heads.tokens, count, key_tiles,
        SINGLE=key_tiles % 2 == 1,
        num_warps=4,
    )  # fmt: skip
    return out


def _descriptor(
    rows: Tensor, block: list[int], layout: gl.NVMMASharedLayout, columns: int
) -> TensorDescriptor:
    """What the copy engine is told of a matrix; beyond `columns` it reads zeros, whatever lies there."""
    return TensorDescriptor(rows, [len(rows), columns], [rows.shape[1], 1], block, layout)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run at once: one on each."""
    return torch.cuda.get_device_properties(device).multi_processor_count


@gluon.jit
def attend_kernel(
    q_tiles, k_tiles, v_tiles, out,
    tiles, blocks, room, tokens, heads, key_tiles,
    SINGLE: gl.constexpr,
):  # fmt: skip
    """One program on each multiprocessor takes one tile of 192 queries after another."""
    q = gl.allocate_shared_memory(gl.float8e4nv, [2 * GROUPS, ROWS, DIM], QK_SHARED)
    k = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, KEYS, DIM], QK_SHARED)
    v = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, DIM, KEYS], V_SHARED)
    # Written as integers: a conversion of the constant 1.0 comes out wrong (seen with CUDA 12.8's ptxas).
    one = gl.full((8, KEYS), ONE, gl.uint8, gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0]))
    ones = gl.allocate_shared_memory(gl.float8e4nv, [8, KEYS], V_SHARED, one.to(gl.float8e4nv, bitcast=True))
    fence_async_shared()
    q_full = signals(2, 1)
    q_free = signals(2, GROUPS)
    full = signals(STAGES, 1)
    free = signals(STAGES, GROUPS)
    shared = (q, k, v, ones, q_full, q_free, full, free)
    work = (tiles, blocks, room, tokens, heads, key_tiles)
    gl.warp_specialize(
        [
            (compute, (out, shared, work, 0, SINGLE)),
            (compute, (out, shared, work, 1, SINGLE)),
            (compute, (out, shared, work, 2, SINGLE)),
            (copy, (q_tiles, k_tiles, v_tiles, shared, work)),
        ],
        [4, 4, 1],
        [COMPUTE_REGISTERS, COMPUTE_REGISTERS, COPY_REGISTERS],
    )


@gluon.jit
def signals(count: gl.constexpr, arrivals: gl.constexpr):
    """So many barriers in shared memory, each complete after so many arrivals."""
    barriers = gl.allocate_shared_memory(gl.int64, [count, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(count):
        mbarrier.init(barriers.index(i), count=arrivals)
    return barriers


@gluon.jit
def copy(q_tiles, k_tiles, v_tiles, shared, work):
    """Bring each tile's queries, and then its keys and values from the last tile to the first."""
    q, k, v, _, q_full, q_free, full, free = shared
    tiles, blocks, room, _, _, key_tiles = work
    n = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        turn = tile // gl.num_programs(0)
        head = tile // blocks
        first = head * room + tile % blocks * (GROUPS * ROWS)
        place = turn % 2
        mbarrier.wait(q_free.index(place), 1 - turn // 2 % 2)
        mbarrier.expect(q_full.index(place), GROUPS * ROWS * DIM)
        for group in gl.static_range(GROUPS):
            rows = q.index(place * GROUPS + group)
            tma.async_copy_global_to_shared(q_tiles, [first + group * ROWS, 0], q_full.index(place), rows)
        for i in range(key_tiles):
            key = (key_tiles - 1 - i) * KEYS
            stage = n % STAGES
            arrived = full.index(stage)
            mbarrier.wait(free.index(stage), 1 - n // STAGES % 2)
            mbarrier.expect(arrived, 2 * KEYS * DIM)
            tma.async_copy_global_to_shared(k_tiles, [head * room + key, 0], arrived, k.index(stage))
            tma.async_copy_global_to_shared(v_tiles, [head * DIM, key], arrived, v.index(stage))
            n += 1


@gluon.jit
def compute(out, shared, work, GROUP: gl.constexpr, SINGLE: gl.constexpr):
    """One group's 64 queries of each tile: over all keys, and out."""
    q, _, _, _, q_full, q_free, _, _ = shared
    tiles, blocks, _, tokens, heads, key_tiles = work
    n = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        turn = tile // gl.num_programs(0)
        place = turn % 2
        mbarrier.wait(q_full.index(place), turn // 2 % 2)
        rows = q.index(place * GROUPS + GROUP)
        shift = gl.full((ROWS,), NO_SHIFT, gl.float32, ROW)
        o = gl.zeros((ROWS, DIM), gl.float32, OUT)
        total = gl.zeros((ROWS, 8), gl.float32, SUMS)
        # The last tile of keys, which may be ragged, comes first.
        missing = key_tiles * KEYS - tokens
        if SINGLE:
            n, shift, o, total = one_tile(n, shift, o, total, rows, shared, missing)
        else:
            n, shift, o, total = two_tiles(n, shift, o, total, rows, shared, missing, RAGGED=True)
        for _ in range((key_tiles - 1) // 2):
            n, shift, o, total = two_tiles(n, shift, o, total, rows, shared, missing, RAGGED=False)
        mbarrier.arrive(q_free.index(place), count=1)
        first = tile % blocks * (GROUPS * ROWS) + GROUP * ROWS
        store(out, o, total, tile // blocks, first, tokens, heads)


@gluon.jit
def one_tile(n, shift, o, total, q, shared, missing):
    """After a ragged tile of keys."""
    stage, s = scores(n, q, shared)
    s = without_missing(warpgroup_mma_wait(0, deps=(s,)), missing)
    shift, decay = lowered(shift, row_max(s))
    o_here, here = weighted(stage, weights(s, shift), zeros(DIM, OUT), zeros(8, SUMS), shared, ADD=False)
    o, total = gathered(o, total, o_here, here, decay)
    _, _, _, _, _, _, _, free = shared
    mbarrier.arrive(free.index(stage), count=1)
    return n + 1, shift, o, total


@gluon.jit
def two_tiles(n, shift, o, total, q, shared, missing, RAGGED: gl.constexpr):
    """After two tiles of keys, of which the first may be ragged: they share one shift."""
    a, s_a = scores(n, q, shared)
    b, s_b = scores(n + 1, q, shared)
    s_a = warpgroup_mma_wait(1, deps=(s_a,))
    if RAGGED:
        s_a = without_missing(s_a, missing)
    largest = row_max(s_a)
    s_b = warpgroup_mma_wait(0, deps=(s_b,))
    shift, decay = lowered(shift, gl.maximum(largest, row_max(s_b)))
    o_here, here = weighted(a, weights(s_a, shift), zeros(DIM, OUT), zeros(8, SUMS), shared, ADD=False)
    o_here, here = weighted(b, weights(s_b, shift), o_here, here, shared, ADD=True)
    o, total = gathered(o, total, o_here, here, decay)
    _, _, _, _, _, _, _, free = shared
    mbarrier.arrive(free.index(a), count=1)
    mbarrier.arrive(free.index(b), count=1)
    return n + 2, shift, o, total


@gluon.jit
def scores(n, q, shared):
    """The n-th tile's stage, and the product of queries and keys, under way, in float16."""
    _, k, _, _, _, _, full, _ = shared
    stage = n % STAGES
    mbarrier.wait(full.index(stage), n // STAGES % 2)
    zero = gl.zeros((ROWS, KEYS), gl.float16, SCORES)
    return stage, warpgroup_mma(q, k.index(stage).permute((1, 0)), zero, use_acc=False, is_async=True)


@gluon.jit
def without_missing(s, missing):
    """Scores of the last tile, -infinity where no token lies: see `operands.key_rows`."""
    column = gl.arange(0, KEYS, gl.SliceLayout(0, SCORES))
    place = column % GROUP_OF_KEYS
    token = column - place + place // 2 % 4 * 4 + place // 8 * 2 + place % 2
    bound = gl.where(token < KEYS - missing, float("inf"), float("-inf")).to(gl.float16)
    s, bound = gl.broadcast(s, gl.expand_dims(bound, 0))
    # Two at a time: were they taken apart, the compiler would do so before they are there.
    return gl.inline_asm_elementwise(
        "min.f16x2 $0, $1, $2;", "=r,r,r", [s, bound], dtype=gl.float16, is_pure=True, pack=2
    )


@gluon.jit
def row_max(s):
    """Largest score of each row, in float32; halves of a row are compared two scores at a time."""
    x = halved(halved(halved(halved(s))))
    return gl.convert_layout(gl.max(x.to(gl.float32), axis=1), ROW, assert_trivial=True)


@gluon.jit
def halved(x):
    """[64, C] float16 -> [64, C / 2], the larger of each half's."""
    columns: gl.constexpr = x.shape[1]
    a, b = gl.split(gl.permute(gl.reshape(x, (ROWS, 2, columns // 2)), (0, 2, 1)))
    return gl.inline_asm_elementwise(
        "max.f16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=gl.float16, is_pure=True, pack=2
    )


@gluon.jit
def lowered(shift, largest):
    """What takes scores to codes from now on, a float16 number, and by what earlier sums decay."""
    wanted = LARGEST - gl.maximum(largest, LOWEST) * STEP
    now = gl.minimum(shift, wanted.to(gl.float16).to(gl.float32))
    return now, gl.exp2((now - shift) * 0.125)


@gluon.jit
def weights(s, shift):
    """Scores -> softmax weights in E4M3, by their codes, each where the next product reads it."""
    # Columns are renamed to their tokens; no value moves.
    s = gl.permute(gl.reshape(s, (ROWS, KEYS // 16, 2, 4, 2)), (0, 1, 3, 2, 4))
    s = gl.convert_layout(gl.reshape(s, (ROWS, KEYS)), WEIGHTS)
    s, shift = gl.broadcast(s, spread(shift.to(gl.float16), WEIGHTS))
    codes = gl.inline_asm_elementwise(CODES, "=r,r,r,r,r", [s, shift], dtype=gl.uint8, is_pure=True, pack=4)
    return codes.to(gl.float8e4nv, bitcast=True)


@gluon.jit
def weighted(stage, p, o, total, shared, ADD: gl.constexpr):
    """Weights times values, and times ones, both under way; added to what is there or in its place."""
    _, _, v, ones, _, _, _, _ = shared
    o = warpgroup_mma(p, v.index(stage).permute((1, 0)), o, use_acc=ADD, is_async=True)
    p = gl.convert_layout(p, WEIGHTS_TO_SUM)
    return o, warpgroup_mma(p, ones.permute((1, 0)), total, use_acc=ADD, is_async=True)


@gluon.jit
def gathered(o, total, o_here, here, decay):
    """Earlier sums, decayed, and the last tiles', which are waited for."""
    o_here, here = warpgroup_mma_wait(0, deps=(o_here, here))
    return o * spread(decay, OUT) + o_here, total * spread(decay, SUMS) + here


@gluon.jit
def zeros(columns: gl.constexpr, layout: gl.constexpr):
    """[64, columns] in float32."""
    return gl.zeros((ROWS, columns), gl.float32, layout)


@gluon.jit
def spread(row, layout: gl.constexpr):
    """A value for each row -> [64, 1] beside a tensor of this layout."""
    return gl.expand_dims(gl.convert_layout(row, gl.SliceLayout(1, layout)), 1)


@gluon.jit
def store(out, o, total, head, first, tokens, heads):
    """Write 64 queries' results, from the query `first` on, to [B, S, H * D] in bf16."""
    total = gl.convert_layout(gl.max(total, axis=1), gl.SliceLayout(1, OUT))
    o = o * gl.expand_dims(1.0 / total, 1)
    row = gl.expand_dims(first + gl.arange(0, ROWS, gl.SliceLayout(1, OUT)), 1)
    dim = gl.expand_dims(gl.arange(0, DIM, gl.SliceLayout(0, OUT)), 0)
    start = (head // heads).to(gl.int64) * tokens
    place = out + (start + row) * (heads * DIM) + head % heads * DIM + dim
    gl.store(place, o.to(gl.bfloat16), mask=row < tokens)
