"""Scales as they lie in files, brought to one shape and refused where they can't be meant.

Files hold the same scale as [], [1] or [1, 1] (one value), as [N] or [N, 1] (one a row), or as a grid of
blocks. In memory there is one shape for each granularity: `fp8.scale_shape`. A scale must be float32 (a
bf16 one has lost what it should restore), finite and above zero; values are looked at when they are read.
"""

import torch
from torch import Tensor

from sd35.checkpoints.lazy import Lazy, reshaped
from sd35.errors import CheckpointError
from sd35.fp8 import Scheme, scale_shape


def checked_scale(name: str, scale: Lazy, weight: torch.Size, scheme: Scheme) -> Lazy:
    """The scale of a weight of this shape, in the one shape; CheckpointError where it is none."""
    wanted = scale_shape(weight, scheme.granularity)
    if scale.dtype != torch.float32 or tuple(scale.shape) not in _spellings(wanted):
        raise CheckpointError(
            f"{name} is {scale.dtype} {tuple(scale.shape)}, and a {scheme.granularity} scale of a weight "
            f"{tuple(weight)} is float32 {wanted}: damaged or of an unknown format, so fetch it again."
        )
    shaped = reshaped(scale, wanted)
    return Lazy(shaped.spec, lambda: _checked(name, shaped.read()))


def _spellings(wanted: tuple[int, ...]) -> set[tuple[int, ...]]:
    if wanted == ():
        return {(), (1,), (1, 1)}
    return {wanted, wanted[:-1]} if wanted[-1] == 1 else {wanted}


def _checked(name: str, scale: Tensor) -> Tensor:
    if not bool((scale.isfinite() & (scale > 0)).all()):
        raise CheckpointError(
            f"{name} holds a value that is not finite and above zero: the file is damaged, so fetch it again."
        )
    return scale
