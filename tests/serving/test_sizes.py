"""Sizes for clients that don't know the models: always some that can be drawn."""

import pytest

from sd35.request import GenerationRequest
from sd35.serving.sizes import RATIOS, fitted, of_ratio
from sd35.variants import VARIANTS, Variant


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=str)
@pytest.mark.parametrize("ratio", RATIOS)
def test_ratios_are_drawn_at_the_models_own_number_of_pixels(variant: Variant, ratio: str) -> None:
    """The request is taken, in the shape asked for, with about as many pixels as in the square."""
    width, height = of_ratio(ratio, variant)
    assert GenerationRequest("a fox", width=width, height=height).pictures(variant)
    across, down = (int(part) for part in ratio.split(":"))
    assert width / height == pytest.approx(across / down, rel=0.04)
    assert width * height == pytest.approx(variant.native_size**2, rel=0.075)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=str)
@pytest.mark.parametrize(
    "asked",
    [
        (1, 1),
        (7, 9000),
        (513, 511),
        (1000, 1000),
        (16_384, 16_384),
        (4096, 16),
        (10**400, 3),
        (-(10**400), 64),
    ],
    ids=range(8),
)
def test_any_size_becomes_one_that_is_drawn(variant: Variant, asked: tuple[int, int]) -> None:
    """However large, small or odd it is."""
    width, height = fitted(*asked, variant)
    assert GenerationRequest("a fox", width=width, height=height).pictures(variant)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=str)
def test_a_size_that_can_be_drawn_stays(variant: Variant) -> None:
    """Up to the end of the table."""
    for size in ((variant.native_size, variant.native_size), (variant.max_size, 64), (16, 16)):
        assert fitted(*size, variant) == size
