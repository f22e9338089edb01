"""FP8 numbers: the two formats, and the three granularities of scale that make them useful.

E4M3 (`float8_e4m3fn`: 4 exponent bits, 3 mantissa bits, largest value 448, no infinity) has the precision;
E5M2 (5 and 2 bits, largest 57344) has the range. Neither can hold a weight tensor as it is: values of 0.02
would fall among E4M3's last few steps. So each group of values is stored as

    x ~ q * scale        with        scale = amax / 448   (57344 for E5M2)

where amax is the group's largest magnitude. A `scale` here is always the multiplier that restores, and
always float32. A group is the whole tensor (tensorwise), one row, that is one output channel of a weight
or one token of an activation (rowwise), or a square of 128 x 128 values (blockwise).

Two traps: PyTorch's cast turns what lies beyond the largest value into NaN (E4M3) or infinity (E5M2), so
values are clamped first (a *saturating* cast); and a group of zeros has amax 0, whose scale must not be 0
(0 / 0 is NaN), so it is 1.

Formats: "FP8 Formats for Deep Learning" (arXiv 2209.05433); OCP 8-bit floating point specification.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from sd35.errors import RequestError

Dtype = Literal["e4m3fn", "e5m2"]
Granularity = Literal["tensorwise", "rowwise", "blockwise"]
Activation = Literal["dynamic", "static", "none"]

TORCH_DTYPES: dict[Dtype, torch.dtype] = {"e4m3fn": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
LARGEST: dict[torch.dtype, float] = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
BLOCK = 128
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Scheme:
    """What one linear layer is: how its weight is stored, and what happens to its input.

    `activation` is "dynamic" (each token is quantised to E4M3 by its own amax, as it comes), "static" (all
    tokens are quantised by one scale that a calibration has found) or "none" (the weight is FP8 in storage
    only). With the first two the product is FP8 x FP8, with the last it is taken in the compute dtype.
    """

    dtype: Dtype = "e4m3fn"
    granularity: Granularity = "rowwise"
    activation: Activation = "dynamic"

    def __post_init__(self) -> None:
        for field, kinds in (("dtype", Dtype), ("granularity", Granularity), ("activation", Activation)):
            if getattr(self, field) not in get_args(kinds):
                raise RequestError(
                    f"{field} can't be {getattr(self, field)!r}: choose one of {', '.join(get_args(kinds))}."
                )

    def storage_only(self) -> "Scheme":
        """The same weight, multiplied in the compute dtype."""
        return replace(self, activation="none")


@dataclass(frozen=True)
class ScaledTensor:
    """FP8 data with the scale that restores it: `data` [..., N, K], `scale` as `scale_shape` says."""

    data: Tensor
    scale: Tensor

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """data * scale, multiplied in float32 and rounded once, to `dtype`."""
        return (self.data.float() * expand_scale(self.scale, self.data.shape)).to(dtype)


def scale_shape(shape: torch.Size, granularity: Granularity) -> tuple[int, ...]:
    """Shape of the scale: [] tensorwise, [..., N, 1] rowwise, [N/128, K/128] (rounded up) blockwise."""
    if granularity == "tensorwise":
        return ()
    if granularity == "rowwise":
        return (*shape[:-1], 1)
    return (-(-shape[0] // BLOCK), -(-shape[1] // BLOCK))


def granularity_of(scale: Tensor, shape: torch.Size) -> Granularity | None:
    """Which granularity a scale of this shape has for data of that shape, None when it fits none."""
    for granularity in get_args(Granularity):
        if tuple(scale.shape) == scale_shape(shape, granularity):
            return granularity
    return None


def quantize(values: Tensor, dtype: Dtype = "e4m3fn", granularity: Granularity = "rowwise") -> ScaledTensor:
    """Round `values` [..., N, K] to FP8, each group by its own amax; NaN in a group stays NaN."""
    values = values.float()
    torch_dtype = TORCH_DTYPES[dtype]
    scale = scale_from_amax(_amax(values, granularity), torch_dtype)
    data = saturate(values / expand_scale(scale, values.shape), torch_dtype)
    return ScaledTensor(data, scale)


def scale_from_amax(amax: Tensor, dtype: torch.dtype) -> Tensor:
    """scale = amax / largest, never 0: an all-zero group gets 1, a vanishing one float32's smallest."""
    scale = (amax.float() / LARGEST[dtype]).clamp(min=_SMALLEST_SCALE)
    return torch.where(amax == 0, torch.ones_like(scale), scale)


def saturate(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast to FP8, round to nearest even; what lies beyond the largest value becomes the largest."""
    return values.clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype)


def expand_scale(scale: Tensor, shape: torch.Size) -> Tensor:
    """The scale, so that it multiplies data of `shape` by broadcasting (one value an element, blockwise)."""
    if granularity_of(scale, shape) != "blockwise":
        return scale
    rows = scale.repeat_interleave(BLOCK, dim=0)[: shape[0]]
    return rows.repeat_interleave(BLOCK, dim=1)[:, : shape[1]]


def _amax(values: Tensor, granularity: Granularity) -> Tensor:
    if granularity == "tensorwise":
        return values.abs().amax()
    if granularity == "rowwise":
        return values.abs().amax(dim=-1, keepdim=True)
    n, k = values.shape
    padded = torch.nn.functional.pad(values.abs(), (0, -k % BLOCK, 0, -n % BLOCK))
    return padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK)).amax(dim=(1, 3))
