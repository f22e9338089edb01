"""Quantizing and restoring as steps of a plan: nothing is computed until a writer asks for the values."""

from collections.abc import Callable

import torch
from torch import Tensor

from sd35.checkpoints.lazy import Lazy
from sd35.checkpoints.reader import TensorSpec
from sd35.errors import CheckpointError
from sd35.fp8 import TORCH_DTYPES, ScaledTensor, Scheme, scale_shape
from sd35.fp8 import quantize as quantize_tensor

Rounder = Callable[[Tensor, Scheme], ScaledTensor]


def to_nearest(weight: Tensor, scheme: Scheme) -> ScaledTensor:
    """The rounder that needs to know nothing but the weight."""
    return quantize_tensor(weight, scheme.dtype, scheme.granularity)


def quantized(name: str, lazy: Lazy, scheme: Scheme, rounder: Rounder = to_nearest) -> tuple[Lazy, Lazy]:
    """A weight as FP8 data and scale. Reading the data keeps the scale, which is read next, for it."""
    kept: list[Tensor] = []

    def data() -> Tensor:
        """Quantize now."""
        weight = lazy.read()
        if not bool(weight.isfinite().all()):
            raise damaged(name)
        scaled = rounder(weight, scheme)
        kept[:] = [scaled.scale]
        return scaled.data

    def scale() -> Tensor:
        """Take the scale that is kept, or quantize for it."""
        return kept.pop() if kept else rounder(lazy.read(), scheme).scale

    shape = torch.Size(scale_shape(lazy.shape, scheme.granularity))
    return (
        Lazy(TensorSpec(TORCH_DTYPES[scheme.dtype], lazy.shape), data),
        Lazy(TensorSpec(torch.float32, shape), scale),
    )


def damaged(name: str) -> CheckpointError:
    """The error for a weight that can't be quantized."""
    return CheckpointError(f"{name} holds NaN or infinity: the checkpoint is damaged, so fetch it again.")


def restored(data: Lazy, scale: Lazy, dtype: torch.dtype) -> Lazy:
    """An FP8 weight's values, multiplied in float32 and rounded once to `dtype`."""
    spec = TensorSpec(dtype, data.shape)
    return Lazy(spec, lambda: ScaledTensor(data.read(), scale.read()).dequantize(dtype))


def one_value_a_row(scale: Lazy, height: int) -> Lazy:
    """A tensorwise scale as a rowwise one; no value changes."""
    spec = TensorSpec(torch.float32, torch.Size((height, 1)))
    return Lazy(spec, lambda: scale.read().expand(height, 1).contiguous())
