"""Which code runs an operation: the only place that chooses, by declared capability and never by trial.

`reference` is plain PyTorch: the definition, which runs anywhere. `triton` are our fused kernels, for CUDA
devices. The FP8 product is `torch._scaled_mm`'s (cuBLAS), which runs on the tensor cores of Ada (8.9),
Hopper (9.0) and later and wants K and N in multiples of 16 and bf16 out. A name that can't do what is asked
is an error that says why; `auto` takes the best that can.
"""

import functools
import importlib.util
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sd35.config import Kernels
from sd35.errors import DeviceError
from sd35.fp8 import ScaledTensor
from sd35.kernels import reference
from sd35.kernels.operands import Form, Heads, Operand, Product, Residual, Result, TiledHeads

FIRST_NATIVE_FP8 = (8, 9)
FIRST_WITH_BF16 = (8, 0)
# cuBLAS refuses products of very few rows with a long K (seen on an H100: 2 rows, K 6144 and 9728).
FEWEST_ROWS = 16
# From here on a wide result is scaled by cuBLAS itself: 1.7% of Large's step on an H100 (docs/log.md).
MANY_ROWS = 2048


class Operations(Protocol):
    """The fused operations; `reference` defines each."""

    def take(self, x: Tensor, form: Form) -> Operand:
        """x as the next layer wants it."""

    def dequantize_weight(self, weight: ScaledTensor, dtype: torch.dtype) -> Tensor:
        """An FP8 weight restored."""

    def settle(self, stream: Residual) -> Tensor:
        """The stream's tokens with their pending branch added."""

    def modulate(self, stream: Residual, shift: Tensor, scale: Tensor, form: Form) -> tuple[Tensor, Operand]:
        """The settled tokens, and they normed and modulated as the next layer wants them."""

    def gelu(self, hidden: Result, form: Form, dtype: torch.dtype) -> Operand:
        """GELU of an MLP's hidden values."""

    def place_heads(
        self, qkv: Result, norm_q: Tensor, norm_k: Tensor, heads: Heads | TiledHeads, first: int
    ) -> None:
        """A stream's q, k, v, normed, to their place among both streams' heads."""

    def group_statistics(self, x: Tensor, groups: int, added: Tensor | None = None) -> Tensor:
        """Mean and variance of each group of channels of x + added."""

    def group_norm(
        self,
        x: Tensor,
        statistics: Tensor,
        weight: Tensor,
        bias: Tensor,
        added: Tensor | None = None,
        *,
        silu: bool,
    ) -> Tensor:
        """GroupNorm of x + added by given statistics, with SiLU after it or without."""

    def add_branch(self, x: Tensor, branch: Tensor, bias: Tensor) -> Tensor:
        """A residual block's sum: x + (branch + bias)."""


def triton_refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels can't run on this device in this dtype, None when they can."""
    if device.type != "cuda":
        return f"it needs a CUDA device, not {device.type}"
    if torch.cuda.get_device_capability(device) < FIRST_WITH_BF16:
        return f"{torch.cuda.get_device_name(device)} is older than Ampere, the first with bf16"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (on Windows, triton-windows; elsewhere PyTorch brings it)"
    if dtype not in (torch.bfloat16, torch.float32):
        return f"it computes from bf16 or float32, not {dtype}"
    return None


def choose_operations(wanted: Kernels, device: torch.device, dtype: torch.dtype) -> Operations:
    """The code that runs the fused operations; DeviceError when the one demanded can't."""
    refusal = triton_refuses(device, dtype)
    if wanted == "triton" and refusal is not None:
        raise DeviceError(f"The kernels 'triton' can't run here: {refusal}; leave the choice at 'auto'.")
    if wanted == "reference" or refusal is not None:
        return reference
    from sd35.kernels import triton  # a CUDA machine's package, and half a second to import

    return triton


def cublas_refuses(
    weight: ScaledTensor, dtype: torch.dtype, device: torch.device | None = None
) -> str | None:
    """Why `torch._scaled_mm` can't multiply by this weight on `device` (its own), None when it can."""
    device = device or weight.data.device
    if device.type != "cuda":
        return f"it needs a CUDA device, not {device.type}"
    if torch.cuda.get_device_capability(device) < FIRST_NATIVE_FP8:
        return f"{torch.cuda.get_device_name(device)} has no FP8 tensor cores (Ada and Hopper do)"
    if weight.data.dtype != torch.float8_e4m3fn or weight.scale.shape[1] != 1:
        return "it needs an E4M3 weight with one scale a row"
    if any(size % 16 for size in weight.data.shape):
        return f"it needs sizes in multiples of 16, not {tuple(weight.data.shape)}"
    if dtype != torch.bfloat16:
        return f"it gives bf16, not {dtype}"
    return None


def has_fp8_products(device: torch.device) -> bool:
    """Whether the device multiplies FP8 by FP8 itself."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FIRST_NATIVE_FP8


def multiplies_natively(
    wanted: Kernels, weight: ScaledTensor, dtype: torch.dtype, device: torch.device | None = None
) -> bool:
    """Whether this weight's products run on FP8 tensor cores; else the reference multiplies."""
    return wanted != "reference" and cublas_refuses(weight, dtype, device) is None


def scaled_mm(x: ScaledTensor, weight: ScaledTensor, bias: Tensor | None) -> Result:
    """x [B, T, K], weight [N, K] with one scale a row -> [B, T, N] in bf16, on the FP8 tensor cores.

    They multiply the bare E4M3 values, which is their fastest way, and the scales and the bias are left to
    whoever reads the product. Not so where many tokens become four times as wide: to read a scale and a bias
    for each of so many columns, token by token, costs that reader more than it costs cuBLAS.
    """
    n, k = weight.data.shape
    if len(x.data.flatten(0, -2)) >= MANY_ROWS and n >= 4 * k:
        return _product(x, weight, x.scale.flatten(0, -2), weight.scale.T, bias)
    one = _one(x.data.device)
    return Product(_product(x, weight, one, one, None), x.scale, weight.scale.flatten(), bias)


def _product(
    x: ScaledTensor, weight: ScaledTensor, row_scale: Tensor, column_scale: Tensor, bias: Tensor | None
) -> Tensor:
    """cuBLAS's product of the data, scaled as told: one scale for all, or [rows, 1] and [1, N]."""
    rows = x.data.flatten(0, -2)
    missing = max(0, FEWEST_ROWS - len(rows))
    if missing:
        # Zero rows in FP8 are zero bytes; F.pad does not know the dtype.
        rows = F.pad(rows.view(torch.uint8), (0, 0, 0, missing)).view(rows.dtype)
    out = torch._scaled_mm(
        rows, weight.data.T, scale_a=row_scale, scale_b=column_scale, bias=bias,
        out_dtype=torch.bfloat16, use_fast_accum=True,
    )  # fmt: skip
    return out[: len(out) - missing].unflatten(0, x.data.shape[:-1])


@functools.cache
def _one(device: torch.device) -> Tensor:
    return torch.ones((), device=device)
