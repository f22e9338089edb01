"""Tensors that are known by name, dtype and shape before their values are read.

Formats differ in how they cut and order the same rows: the original layout fuses q, k and v into one tensor
and orders two AdaLN layers the other way round. A `Lazy` says what a tensor will be and how to get it, so a
whole checkpoint can be renamed, cut, fused and measured by its headers alone. Values come from the mapped
file when they are asked for, one tensor at a time; cutting is a view of the map and costs no memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sd35.checkpoints.reader import TensorReader, TensorSpec


@dataclass(frozen=True)
class Lazy:
    """What a tensor is, and `read`, which gives its values."""

    spec: TensorSpec
    read: Callable[[], Tensor]

    @property
    def shape(self) -> torch.Size:
        """Its shape."""
        return self.spec.shape

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""
        return self.spec.dtype


Tensors = dict[str, Lazy]


def stored(reader: TensorReader, name: str) -> Lazy:
    """A tensor of an open file."""
    return Lazy(reader.specs[name], lambda: reader.read(name))


def given(value: Tensor) -> Lazy:
    """A tensor that is there already: a scale, a marker."""
    return Lazy(TensorSpec(value.dtype, value.shape), lambda: value)


def rows(lazy: Lazy, start: int, stop: int) -> Lazy:
    """Rows `start` to `stop`."""
    spec = TensorSpec(lazy.dtype, torch.Size((stop - start, *lazy.shape[1:])))
    return Lazy(spec, lambda: lazy.read()[start:stop])


def stacked(parts: Sequence[Lazy]) -> Lazy:
    """Parts of equal dtype and width, rows under one another."""
    if len(parts) == 1:
        return parts[0]
    height = sum(part.shape[0] for part in parts)
    spec = TensorSpec(parts[0].dtype, torch.Size((height, *parts[0].shape[1:])))
    return Lazy(spec, lambda: _stack([part.read() for part in parts]))


def halves_swapped(lazy: Lazy) -> Lazy:
    """The second half of the rows before the first; twice is the identity."""
    half = lazy.shape[0] // 2
    return stacked([rows(lazy, half, lazy.shape[0]), rows(lazy, 0, half)])


def reshaped(lazy: Lazy, shape: Sequence[int]) -> Lazy:
    """The same values in another shape."""
    spec = TensorSpec(lazy.dtype, torch.Size(shape))
    return Lazy(spec, lambda: lazy.read().reshape(spec.shape))


def cast(lazy: Lazy, dtype: torch.dtype) -> Lazy:
    """The values in another dtype."""
    return Lazy(TensorSpec(dtype, lazy.shape), lambda: lazy.read().to(dtype))


def _stack(parts: list[Tensor]) -> Tensor:
    """torch.cat knows no FP8, so its bytes are stacked."""
    if parts[0].dtype.itemsize > 1:
        return torch.cat(parts)
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts]).view(parts[0].dtype)
