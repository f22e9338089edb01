"""An FP8 weight in 16 bits for the moment of a product, in one pass over its bytes.

Cards before Ada multiply 16-bit numbers only, and some of them have no instruction that reads FP8; so the
bytes are taken apart as integers, which every card can. Three bytes of traffic a value: Large's blocks,
5.3 billion values, take 16 GB a step, where PyTorch's own conversion and product take more than twice that.

E4M3 is sign, 4 bits of exponent with bias 7, 3 of mantissa: its magnitude moved up by 20 bits is a float32
whose exponent is 120 too small, and under 2^-6 it counts in steps of 2^-9. E5M2 is the upper half of a
float16. Source: arXiv 2209.05433.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sd35.fp8 import BLOCK, ScaledTensor

VALUES = 2048  # of a row, that a program restores


def dequantize_weight(weight: ScaledTensor, dtype: torch.dtype) -> Tensor:
    """`reference.dequantize_weight`, of a contiguous weight."""
    rows, width = weight.data.shape
    out = torch.empty(rows, width, dtype=dtype, device=weight.data.device)
    groups = weight.scale.shape[1]
    restore_kernel[(rows, triton.cdiv(width, VALUES))](
        weight.data.view(torch.uint8), weight.scale, out, width, groups,
        E5M2=weight.data.dtype == torch.float8_e5m2, GROUPED=groups > 1, GROUP=BLOCK, VALUES=VALUES,
        num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def restore_kernel(
    data, scale, out, width, groups,
    E5M2: tl.constexpr, GROUPED: tl.constexpr, GROUP: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """One program a stretch of a row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    inside = column < width
    code = tl.load(data + row * width + column, mask=inside, other=0).to(tl.int32)
    if GROUPED:
        factor = tl.load(scale + row * groups + column // GROUP, mask=inside, other=0.0)
    else:
        factor = tl.load(scale + row)
    if E5M2:
        values = (code << 8).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        values = e4m3_values(code)
    tl.store(out + row * width + column, (values * factor).to(out.dtype.element_ty), mask=inside)


@triton.jit
def e4m3_values(code):
    """E4M3 as int32 in 0..255 -> float32, exactly."""
    magnitude = code & 0x7F
    normal = ((magnitude << 20) + (120 << 23)).to(tl.float32, bitcast=True)
    absolute = tl.where(magnitude < 8, magnitude.to(tl.float32) * 0.001953125, normal)
    absolute = tl.where(magnitude == 0x7F, float("nan"), absolute)
    return tl.where(code > 127, -absolute, absolute)
