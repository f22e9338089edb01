"""GenerationRequest: what it accepts, what it fills in, what it becomes."""

import math
from dataclasses import replace

import pytest

from sd35.errors import PromptError, RequestError
from sd35.pictures_in.source_picture import SourcePicture
from sd35.request import MAX_PROMPT_CHARACTERS, GenerationRequest, PromptTexts
from sd35.variants import VARIANTS

DEMO, LARGE, MEDIUM = VARIANTS["demo"], VARIANTS["large"], VARIANTS["medium"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 100),
        ("width", 0),
        ("height", -16),
        ("height", 16.0),
        ("num_inference_steps", 0),
        ("num_inference_steps", 1001),
        ("guidance_scale", math.nan),
        ("guidance_scale", -1.0),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", True),
        ("num_images", 0),
        ("num_images", None),
        ("max_sequence_length", 513),
        ("skip_layer_guidance_stop", 1.5),
        ("prompt", None),
        ("prompt_2", 3),
        ("prompt_3", "a \ud83d fox"),  # half of an emoji, as a broken cut leaves it
        ("negative_prompt", b"r\xe9sum\xe9".decode(errors="surrogateescape")),  # a shell's Latin-1
        ("skip_layers", "23"),
        ("skip_layers", 2),
        ("skip_layers", (2.5,)),
        ("skip_layers", ["2"]),
        ("skip_layers", (True,)),
    ],
)
def test_bad_values_are_refused_by_name(field: str, value: object) -> None:
    """A value outside its range is a RequestError that names the field."""
    with pytest.raises(RequestError, match=field):
        GenerationRequest(**{"prompt": "a fox", field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["width", "seed", "guidance_scale", "skip_layer_guidance_stop"])
def test_numbers_too_long_to_write_are_refused_by_name(field: str) -> None:
    """A number beyond any float, or of more digits than Python writes, is out of range like any other."""
    with pytest.raises(RequestError, match=f"{field} is .* outside its range"):
        GenerationRequest("a fox", **{field: 16 * 10**5000})  # type: ignore[arg-type]


def test_size_error_offers_neighbours() -> None:
    """Who asks for 100 pixels learns of 96 and 112."""
    with pytest.raises(RequestError, match="take 96 or 112"):
        GenerationRequest("a fox", width=100)


def test_prompt_length_limit() -> None:
    """The longest prompt passes, one character more is refused."""
    GenerationRequest("x" * MAX_PROMPT_CHARACTERS)
    with pytest.raises(PromptError, match="10,001"):
        GenerationRequest("a fox", negative_prompt="x" * (MAX_PROMPT_CHARACTERS + 1))


def test_gaps_are_filled_by_the_variant() -> None:
    """None means what the variant recommends; what is given stays."""
    settings = GenerationRequest("a fox", height=512).pictures(LARGE)[0].settings
    assert (settings.width, settings.height) == (1024, 512)
    assert settings.num_inference_steps == LARGE.num_inference_steps
    assert settings.guidance_scale == LARGE.guidance_scale


def test_zero_is_not_a_gap() -> None:
    """A guidance scale and a seed of 0 are values, not gaps."""
    picture = GenerationRequest("a fox", guidance_scale=0.0, seed=0).pictures(DEMO)[0]
    assert picture.settings.guidance_scale == 0.0
    assert picture.seed == 0


def test_seeds_count_up() -> None:
    """n pictures get n seeds and are otherwise equal."""
    pictures = GenerationRequest("a fox", seed=5, num_images=3).pictures(DEMO)
    assert [picture.seed for picture in pictures] == [5, 6, 7]
    assert len({(picture.prompt, picture.settings) for picture in pictures}) == 1


def test_no_seed_means_any() -> None:
    """Without a seed two calls differ."""
    request = GenerationRequest("a fox")
    assert len({request.pictures(DEMO)[0].seed for _ in range(8)}) > 1


def test_prompts_for_each_encoder() -> None:
    """The first prompt serves every encoder that has none of its own, an empty one counts as its own."""
    picture = GenerationRequest("a", prompt_3="", negative_prompt="b", negative_prompt_2="c").pictures(DEMO)[
        0
    ]
    assert picture.prompt == PromptTexts("a", "a", "")
    assert picture.negative_prompt == PromptTexts("b", "c", "b")


def test_too_large_for_the_position_table() -> None:
    """A size beyond the variant's table is refused with the limit."""
    with pytest.raises(RequestError, match="512"):
        GenerationRequest("a fox", width=528).pictures(DEMO)


def test_skip_layer_guidance_is_for_some_variants() -> None:
    """Medium brings its layers, Large refuses, and layers that don't exist are refused."""
    request = GenerationRequest("a fox", skip_layer_guidance_scale=2.8)
    assert request.pictures(MEDIUM)[0].settings.skip_layers == (7, 8, 9)
    with pytest.raises(RequestError, match="Medium alone"):
        request.pictures(LARGE)
    with pytest.raises(RequestError, match="layers 0 to 5"):
        GenerationRequest("a fox", skip_layer_guidance_scale=1.0, skip_layers=(6,)).pictures(DEMO)


def test_skip_layers_of_a_list_make_equal_pictures() -> None:
    """A list of layers means what a tuple does, and the picture can be looked up by (batches, recordings)."""
    request = GenerationRequest("a fox", seed=1, skip_layer_guidance_scale=1.0, skip_layers=[2, 3])
    listed, tupled = (one.pictures(DEMO)[0] for one in (request, replace(request, skip_layers=(2, 3))))
    assert {listed: "found"}[tupled] == "found"


def test_skip_layer_guidance_that_ends_before_it_begins() -> None:
    """A part of the steps that is empty is a mistake, not a wish for nothing."""
    request = GenerationRequest("a fox", skip_layer_guidance_scale=1.0, skip_layer_guidance_start=0.2)
    with pytest.raises(RequestError, match="start below the stop"):
        request.pictures(DEMO)


def test_skip_layer_guidance_steps() -> None:
    """Layers are skipped strictly between the two fractions of the steps, and only under guidance."""
    request = GenerationRequest("a fox", num_inference_steps=20, skip_layer_guidance_scale=1.0)
    settings = request.pictures(DEMO)[0].settings
    assert [step for step in range(20) if settings.skips_layers_at(step)] == [1, 2, 3]
    bounds = replace(request, skip_layer_guidance_start=0.1).pictures(DEMO)[0].settings
    assert [step for step in range(20) if bounds.skips_layers_at(step)] == [3]
    unguided = GenerationRequest("a fox", guidance_scale=1.0, skip_layer_guidance_scale=1.0).pictures(DEMO)[0]
    assert not any(unguided.settings.skips_layers_at(step) for step in range(28))


def source(width: int, height: int) -> SourcePicture:
    """Some picture of this size."""
    return SourcePicture(width, height, bytes(3 * width * height))


@pytest.mark.parametrize("strength", [0, 0.0, -0.1, 1.01, math.nan, "half", True])
def test_strengths_that_mean_nothing(strength: object) -> None:
    """A strength is a number above 0 and at most 1."""
    with pytest.raises(RequestError, match="strength"):
        GenerationRequest("a fox", image=source(64, 64), strength=strength)  # type: ignore[arg-type]


def test_strength_without_an_image() -> None:
    """Strength without an image is a mistake, not a wish to ignore."""
    with pytest.raises(RequestError, match="give an image too"):
        GenerationRequest("a fox", strength=0.5)


def test_an_image_is_decoded_first() -> None:
    """A file's bytes, or its name, are no picture yet."""
    with pytest.raises(RequestError, match="read_picture"):
        GenerationRequest("a fox", image=b"\x89PNG")  # type: ignore[arg-type]


def test_pictures_carry_the_image() -> None:
    """Each picture has the source, and shares its strength, 0.6 unless named, with its batch."""
    image = source(64, 64)
    pictures = GenerationRequest("a fox", image=image, num_images=2, seed=1).pictures(DEMO)
    assert [picture.image for picture in pictures] == [image, image]
    assert {picture.settings.strength for picture in pictures} == {0.6}
    (weak,) = GenerationRequest("a fox", image=image, strength=0.3, seed=1).pictures(DEMO)
    assert not weak.settings.shares_steps_with(pictures[0].settings)
    assert GenerationRequest("a fox").pictures(DEMO)[0].settings.strength == 1


@pytest.mark.parametrize(
    ("shape", "given", "size"),
    [
        ((4000, 3000), (None, None), (1184, 880)),  # 4:3 at about a megapixel
        ((300, 400), (None, None), (880, 1184)),  # small ones grow
        ((1024, 1024), (None, None), (1024, 1024)),
        ((4000, 3000), (512, None), (512, 384)),
        ((4000, 3000), (None, 384), (512, 384)),
        ((4000, 3000), (512, 512), (512, 512)),
        ((10, 10_000), (None, None), (32, 3072)),  # no further than the position table
    ],
)
def test_sizes_follow_the_image(
    shape: tuple[int, int], given: tuple[int | None, int | None], size: tuple[int, int]
) -> None:
    """Size: the image's own shape at the variant's number of pixels, unless it is given."""
    width, height = given
    (picture,) = GenerationRequest("a fox", width=width, height=height, image=source(*shape)).pictures(LARGE)
    assert (picture.settings.width, picture.settings.height) == size


@pytest.mark.parametrize(
    ("steps", "strength", "run"),
    [(28, 0.6, 17), (28, 1.0, 28), (28, 0.01, 1), (10, 0.3, 3), (4, 0.6, 3), (1, 0.5, 1), (28, 1e-20, 1)],
)
def test_strength_is_a_share_of_the_steps(steps: int, strength: float, run: int) -> None:
    """The last `strength` of the steps are run, one at least."""
    request = GenerationRequest("a fox", num_inference_steps=steps, image=source(64, 64), strength=strength)
    settings = request.pictures(DEMO)[0].settings
    assert settings.steps_run == run
    assert settings.first_step == steps - run
