"""Which code runs an operation: the only place that chooses, by declared capability and never by trial.

`reference` is the definition and runs anywhere. `cublas` is `torch._scaled_mm`, whose FP8 product runs on
the tensor cores of Ada (8.9), Hopper (9.0) and later; it wants K and N in multiples of 16, one scale a row
and bf16 out. A name that can't do what is asked is an error that says why; `auto` takes the first that can.
"""

import importlib.util
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sd35.config import Kernels
from sd35.errors import DeviceError
from sd35.fp8 import ScaledTensor
from sd35.kernels import reference

FIRST_NATIVE_FP8 = (8, 9)
FIRST_WITH_BF16 = (8, 0)
# cuBLAS refuses products of very few rows with a long K (seen on an H100: 2 rows, K 6144 and 9728).
FEWEST_ROWS = 16


class Operations(Protocol):
    """The fused operations; `reference` defines each."""

    def group_statistics(self, x: Tensor, groups: int, added: Tensor | None = None) -> Tensor:
        """Mean and variance of each group of channels of x + added."""

    def normalize(
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
        return "the package triton is not installed (PyTorch's CUDA builds bring it along)"
    if dtype not in (torch.bfloat16, torch.float32):
        return f"it computes from bf16 or float32, not {dtype}"
    return None


def choose_operations(wanted: Kernels, device: torch.device, dtype: torch.dtype) -> Operations:
    """The code that runs the fused operations; DeviceError when the one demanded can't."""
    refusal = triton_refuses(device, dtype)
    if wanted == "reference" or refusal is not None:
        return reference
    from sd35.kernels import triton  # a CUDA machine's package, and half a second to import

    return triton


def cublas_refuses(weight: ScaledTensor, dtype: torch.dtype) -> str | None:
    """Why `torch._scaled_mm` can't multiply by this weight, None when it can."""
    device = weight.data.device
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


def choose_kernels(wanted: Kernels, weight: ScaledTensor, dtype: torch.dtype) -> Kernels:
    """The implementation that will multiply by this weight; DeviceError when the one demanded can't."""
    if wanted == "reference":
        return "reference"
    refusal = cublas_refuses(weight, dtype)
    if refusal is None:
        return "cublas"
    if wanted == "cublas":
        raise DeviceError(f"The kernels 'cublas' can't run here: {refusal}; leave the choice at 'auto'.")
    return "reference"


def scaled_mm(
    x: ScaledTensor, weight: ScaledTensor, bias: Tensor | None, dtype: torch.dtype, kernels: Kernels
) -> Tensor:
    """`reference.scaled_mm` by the chosen code: x [..., K], weight [N, K] -> [..., N]."""
    if kernels == "reference":
        return reference.scaled_mm(x, weight, bias, dtype)
    rows, scales = x.data.flatten(0, -2), x.scale.flatten(0, -2)
    missing = max(0, FEWEST_ROWS - len(rows))
    if missing:
        # Zero rows in FP8 are zero bytes; F.pad does not know the dtype.
        rows = F.pad(rows.view(torch.uint8), (0, 0, 0, missing)).view(rows.dtype)
        scales = F.pad(scales, (0, 0, 0, missing), value=1.0)
    out = torch._scaled_mm(
        rows,
        weight.data.T,
        scale_a=scales,
        scale_b=weight.scale.T,
        bias=bias,
        out_dtype=dtype,
        use_fast_accum=True,
    )
    return out[: len(out) - missing].unflatten(0, x.data.shape[:-1])
