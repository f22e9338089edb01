"""Learned rounding: the layer's output errs less, in the same bytes."""

import math

import pytest
import torch
from torch import Tensor

from sd35.fp8 import ScaledTensor, Scheme, quantize
from sd35.quantization import rounding
from sd35.quantization.rounding import output_noise, round_by_gram

ROWWISE, TENSORWISE = Scheme(), Scheme(granularity="tensorwise")


def correlated(rows: int, seed: int) -> Tensor:
    """Inputs [rows, 64] that mostly move in eight directions."""
    directions = torch.randn(8, 64, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 8, generator=generator) @ directions + 0.3 * torch.randn(
        rows, 64, generator=generator
    )


def gram_of(x: Tensor) -> Tensor:
    """mean of x x^T."""
    return x.T @ x / len(x)


def output_db(x: Tensor, weight: Tensor, rounded: ScaledTensor) -> float:
    """SQNR of the layer's output, by the definition."""
    expected, actual = x @ weight.T, x @ rounded.dequantize().T
    return float(10 * torch.log10(expected.square().sum() / (expected - actual).square().sum()))


@pytest.fixture
def weight() -> Tensor:
    """A weight [96, 64] with rows of very different sizes."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(96, 64, generator=generator) * torch.logspace(-3, 2, 96)[:, None]


@pytest.mark.parametrize("scheme", [ROWWISE, TENSORWISE, Scheme("e5m2"), Scheme(granularity="blockwise")])
def test_outputs_for_unseen_inputs_err_less(weight: Tensor, scheme: Scheme) -> None:
    """At least 5 dB better than rounding to nearest, on inputs that the Gram matrix was not made of."""
    unseen = correlated(2000, seed=3)
    learned = round_by_gram(weight, gram_of(correlated(2000, seed=2)), scheme)
    nearest = quantize(weight, scheme.dtype, scheme.granularity)
    assert learned.data.dtype == nearest.data.dtype
    assert learned.scale.shape == nearest.scale.shape
    assert output_db(unseen, weight, learned) > output_db(unseen, weight, nearest) + 5


def test_without_correlation_nearest_is_best(weight: Tensor) -> None:
    """For inputs that have nothing to do with one another no error can be made up for: bits are equal."""
    learned = round_by_gram(weight, 3 * torch.eye(64), TENSORWISE)
    assert torch.equal(learned.data.float(), quantize(weight, granularity="tensorwise").data.float())


def test_many_columns_are_one_pass(weight: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many columns are rounded before the rest hears of it changes no result."""
    gram = gram_of(correlated(500, seed=2))
    whole = round_by_gram(weight, gram, ROWWISE)
    monkeypatch.setattr(rounding, "COLUMNS", 7)
    in_sevens = round_by_gram(weight, gram, ROWWISE)
    differing = (whole.data.float() != in_sevens.data.float()).double().mean()
    assert differing < 0.002  # the order of additions may tip a value that lies in the middle


def test_inputs_that_never_came(weight: Tensor) -> None:
    """Dead inputs, or a layer that no token reached, round to nearest and to nothing unfinite."""
    x = correlated(500, seed=2)
    x[:, 10:] = 0
    half_dead = round_by_gram(weight, gram_of(x), TENSORWISE)
    nearest = quantize(weight, granularity="tensorwise").data.float()
    assert torch.equal(half_dead.data.float()[:, 10:], nearest[:, 10:])
    unseen = round_by_gram(weight, torch.zeros(64, 64), TENSORWISE)
    assert torch.equal(unseen.data.float(), nearest)


def test_a_row_of_zeros_stays_zero(weight: Tensor) -> None:
    """Its scale is finite and not 0."""
    weight[5] = 0
    learned = round_by_gram(weight, gram_of(correlated(500, seed=2)), ROWWISE)
    assert learned.dequantize()[5].tolist() == [0.0] * 64
    assert bool(((learned.scale > 0) & learned.scale.isfinite()).all())


def test_the_scale_is_sought(weight: Tensor) -> None:
    """No row fits its scale worse than amax / 448, most fit better, and none saturates."""
    amax_scale = quantize(weight).scale
    found = round_by_gram(weight, torch.eye(64), ROWWISE)
    before = (quantize(weight).dequantize() - weight).square().sum(1)
    after = (found.dequantize() - weight).square().sum(1)
    assert bool((after <= before * (1 + 1e-6)).all())
    assert (after < before).double().mean() > 0.7
    assert bool(((found.scale >= amax_scale) & (found.scale < 2 * amax_scale)).all())


def test_output_noise_is_the_output_noise(weight: Tensor) -> None:
    """What the Gram matrix predicts is what the inputs that it was made of show."""
    x = correlated(300, seed=5)
    nearest = quantize(weight)
    assert -10 * math.log10(output_noise(weight, nearest, gram_of(x))) == pytest.approx(
        output_db(x, weight, nearest), abs=0.01
    )
