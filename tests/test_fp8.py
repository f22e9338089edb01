"""FP8 numbers: rounding, saturation, scales and their granularities."""

import pytest
import torch
from torch import Tensor

from sd35.errors import RequestError
from sd35.fp8 import (
    BLOCK,
    LARGEST,
    TORCH_DTYPES,
    Dtype,
    Granularity,
    Scheme,
    granularity_of,
    quantize,
    saturate,
    scale_from_amax,
    scale_shape,
)

GRANULARITIES: list[Granularity] = ["tensorwise", "rowwise", "blockwise"]
# Largest relative error of rounding to nearest: half a step of the mantissa's last bit.
HALF_STEP: dict[Dtype, float] = {"e4m3fn": 2**-4, "e5m2": 2**-3}


def finite_values(dtype: torch.dtype) -> Tensor:
    """Every finite value of the format, sorted, in float64."""
    values = torch.arange(256, dtype=torch.uint8).view(dtype).double()
    return values[values.isfinite()].unique()


@pytest.mark.parametrize("dtype", list(LARGEST))
def test_saturate_rounds_to_nearest_even(dtype: torch.dtype) -> None:
    """Between two neighbours the nearer wins, and in the middle the even one, over the whole format."""
    values = finite_values(dtype)
    low, high = values[:-1], values[1:]
    middle = (low + high) / 2
    assert torch.equal(saturate((low + 0.49 * (high - low)).float(), dtype).double(), low)
    assert torch.equal(saturate((low + 0.51 * (high - low)).float(), dtype).double(), high)
    even = saturate(middle.float(), dtype).view(torch.uint8) % 2 == 0
    assert bool(even.all())


@pytest.mark.parametrize("dtype", list(LARGEST))
def test_saturate_clamps(dtype: torch.dtype) -> None:
    """Beyond the largest value comes the largest value, and NaN stays NaN."""
    largest = LARGEST[dtype]
    out = saturate(torch.tensor([largest * 1.2, -1e30, float("inf"), float("nan")]), dtype).float()
    assert out[:3].tolist() == [largest, -largest, largest]
    assert bool(out[3].isnan())


@pytest.mark.parametrize("dtype", list(TORCH_DTYPES))
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_relative_error_is_half_a_step(dtype: Dtype, granularity: Granularity) -> None:
    """What is not tiny beside its group's amax comes back within half a step."""
    values = torch.randn(300, 200, generator=torch.Generator().manual_seed(0)) * 0.02
    back = quantize(values, dtype, granularity).dequantize()
    worth = values.abs() > values.abs().amax() / 1000
    error = ((back - values).abs() / values.abs())[worth]
    assert float(error.max()) <= HALF_STEP[dtype] * 1.001
    assert float(error.max()) > HALF_STEP[dtype] / 2


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_amax_becomes_the_largest_value(granularity: Granularity) -> None:
    """scale = amax / 448: the largest magnitude of the tensor is stored as 448 and restored."""
    values = torch.randn(130, 140, generator=torch.Generator().manual_seed(1))
    scaled = quantize(values, "e4m3fn", granularity)
    at = int(values.abs().argmax())
    assert abs(float(scaled.data.float().flatten()[at])) == 448.0
    assert float(scaled.dequantize().flatten()[at]) == pytest.approx(float(values.flatten()[at]), rel=1e-6)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_zeros_never_give_nan(granularity: Granularity) -> None:
    """All-zero groups come back as zeros, with a positive scale."""
    values = torch.randn(256, 256)
    values[:BLOCK] = 0
    scaled = quantize(values, "e4m3fn", granularity)
    assert bool((scaled.scale > 0).all())
    assert torch.equal(scaled.dequantize()[:BLOCK], torch.zeros(BLOCK, 256))
    assert torch.equal(quantize(torch.zeros(4, 8), "e4m3fn", granularity).dequantize(), torch.zeros(4, 8))


def test_vanishing_rows_stay_finite() -> None:
    """A row of the smallest float32 numbers gets a scale that is no zero."""
    scaled = quantize(torch.full((1, 16), 1e-44), "e4m3fn", "rowwise")
    assert float(scaled.scale) > 0
    assert bool(scaled.dequantize().isfinite().all())


@pytest.mark.parametrize(("granularity", "spared"), [("rowwise", 0), ("blockwise", BLOCK)])
def test_an_outlier_spoils_its_own_group_only(granularity: Granularity, spared: int) -> None:
    """Other rows (or blocks) keep their precision beside one huge value."""
    values = torch.randn(256, 256, generator=torch.Generator().manual_seed(2))
    clean = quantize(values, "e4m3fn", granularity).dequantize()
    values[255, 255] = 1e6
    spoilt = quantize(values, "e4m3fn", granularity).dequantize()
    assert torch.equal(clean[:128], spoilt[:128])
    assert torch.equal(clean[:, :spared], spoilt[:, :spared])
    assert not torch.equal(clean[255, 200:255], spoilt[255, 200:255])


def test_blockwise_scales_are_of_their_blocks() -> None:
    """Each 128 x 128 block is scaled by its own amax, ragged edges too."""
    values = torch.randn(200, 300, generator=torch.Generator().manual_seed(3))
    scale = quantize(values, "e4m3fn", "blockwise").scale
    assert scale.shape == (2, 3)
    assert float(scale[1, 2]) == pytest.approx(float(values[128:, 256:].abs().max()) / 448)


def test_granularity_is_read_off_the_shape() -> None:
    """A scale's shape says its granularity; a foreign shape says none."""
    shape = torch.Size((256, 384))
    for granularity in GRANULARITIES:
        assert granularity_of(torch.ones(scale_shape(shape, granularity)), shape) == granularity
    assert granularity_of(torch.ones(384), shape) is None


def test_nan_is_not_hidden() -> None:
    """A NaN makes its own row NaN and leaves the others alone."""
    values = torch.ones(2, 16)
    values[0, 3] = float("nan")
    back = quantize(values).dequantize()
    assert bool(back[0].isnan().any())
    assert torch.equal(back[1], torch.ones(16))


def test_scale_of_zero_amax() -> None:
    """Scale 1 for zeros, amax / largest otherwise."""
    scale = scale_from_amax(torch.tensor([0.0, 896.0]), torch.float8_e4m3fn)
    assert scale.tolist() == [1.0, 2.0]


def test_scheme_refuses_unknown_words() -> None:
    """A scheme can only be what the tables know."""
    with pytest.raises(RequestError, match="granularity"):
        Scheme(granularity="columnwise")  # type: ignore[arg-type]
