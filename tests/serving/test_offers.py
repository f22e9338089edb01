"""What people are offered before they know what to ask for."""

import math

import pytest

from sd35.request import GenerationRequest
from sd35.serving.offers import offer, presets, sizes
from sd35.serving.settings import Model
from sd35.variants import VARIANTS, Variant


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=str)
def test_sizes_are_legal_and_of_their_shape(variant: Variant) -> None:
    """Each has its ratio within 5%, at most the square's area and most of it, and the model takes it."""
    offered = sizes(variant)
    assert offered[0] == {"ratio": "1:1", "width": variant.native_size, "height": variant.native_size}
    for size in offered:
        wide, high = map(int, size["ratio"].split(":"))
        width, height = size["width"], size["height"]
        assert abs(math.log(width / height * high / wide)) < 0.05
        assert 0.93 * variant.native_size**2 < width * height <= variant.native_size**2
        assert len(GenerationRequest("a fox", width=width, height=height).pictures(variant)) == 1


def test_lying_and_standing_shapes_are_the_same_turned() -> None:
    """5:4 turned is 4:5, and so on."""
    by_ratio = {size["ratio"]: (size["width"], size["height"]) for size in sizes(VARIANTS["large"])}
    assert by_ratio["16:9"] == by_ratio["9:16"][::-1] == (1344, 768)
    assert by_ratio["5:4"] == by_ratio["4:5"][::-1]


def test_fast_means_turbo_where_turbo_is_served() -> None:
    """Large's Fast is Large-Turbo with its own settings; without it, half of Large's steps."""
    large, turbo = Model.parse("large"), Model.parse("large-turbo")
    alone, both = presets(large, [large]), presets(large, [large, turbo])
    assert alone["fast"] == {"model": "large", "num_inference_steps": 14, "guidance_scale": 4.5}
    assert both["fast"] == {"model": "large-turbo", "num_inference_steps": 4, "guidance_scale": 1.0}
    assert both["balanced"] == alone["balanced"]
    assert both["balanced"]["num_inference_steps"] == large.variant.num_inference_steps


def test_the_demo_is_offered_what_it_can_draw() -> None:
    """Its prompts name styles that it knows; real models get others."""
    demo = offer(Model.parse("demo"), [])["prompts"]
    assert all("style" in prompt for prompt in demo)
    assert not set(demo) & set(offer(Model.parse("medium"), [])["prompts"])
