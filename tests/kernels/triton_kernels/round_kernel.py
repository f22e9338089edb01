"""A kernel that rounds to E4M3 in integers and does nothing else."""

import triton
import triton.language as tl

from sd35.kernels.triton.numbers import e4m3_bits


@triton.jit
def round_kernel(values, out, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program for all."""
    offsets = tl.arange(0, BLOCK)
    mask = offsets < count
    bits = e4m3_bits(tl.load(values + offsets, mask=mask, other=0.0), False)
    tl.store(out + offsets, bits, mask=mask)
