"""From operands to a kernel's arguments: pointers, strides, and room for what it writes."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from sd35.fp8 import ScaledTensor
from sd35.kernels.operands import Form, Operand, Product, Result

FORMS = {"none": 0, "dynamic": 1, "static": 2}
FIRST_WITH_E4M3 = (8, 9)


@dataclass(frozen=True)
class Output:
    """Room for an operand: what the kernel writes to, and what the caller gets."""

    operand: Operand
    data: Tensor
    scale: Tensor  # unused, and any tensor, when the form is plain

    @classmethod
    def empty(cls, shape: tuple[int, ...], form: Form, like: Tensor) -> "Output":
        """Unwritten room for [B, T, C] in this form, on the device (and plain: in the dtype) of `like`."""
        if form.activation == "none":
            plain = like.new_empty(shape)
            return cls(plain, plain, plain)
        bits = like.new_empty(shape, dtype=torch.uint8)
        scale = like.new_empty((*shape[:-1], 1), dtype=torch.float32)
        return cls(ScaledTensor(bits.view(torch.float8_e4m3fn), scale), bits, scale)


def result_arguments(result: Result | None, unused: Tensor) -> dict[str, Any]:
    """A linear layer's result as a kernel takes it; `unused` stands in for what there is none of."""
    if isinstance(result, Product):
        bias = unused if result.bias is None else result.bias
        scales = {"row_scale": result.row_scale, "column_scale": result.column_scale}
        flags = {"UNFINISHED": True, "BIASED": result.bias is not None}
        return {"values": result.values, "bias": bias, **scales, **flags}
    values = unused if result is None else result
    scales = {"row_scale": unused, "column_scale": unused}
    return {"values": values, "bias": unused, **scales, "UNFINISHED": False, "BIASED": False}


def form_arguments(form: Form, unused: Tensor) -> dict[str, Any]:
    """A form as a kernel takes it."""
    scale = unused if form.scale is None else form.scale
    return {"input_scale": scale, "FORM": FORMS[form.activation], "NATIVE": rounds_natively(unused.device)}


@functools.cache
def rounds_natively(device: torch.device) -> bool:
    """Whether the device rounds to E4M3 in one instruction; the interpreter's is wrong."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FIRST_WITH_E4M3


def parts_of(width: int) -> dict[str, int]:
    """The two powers of two that hold a row: the largest below its width, and one that holds the rest."""
    first = triton.next_power_of_2(width) // 2
    return {"FIRST": first, "SECOND": triton.next_power_of_2(width - first)}
