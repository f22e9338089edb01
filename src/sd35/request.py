"""What to draw, as data: a request as people give it, and the pictures that it comes to.

A `GenerationRequest` has gaps: None means "what the variant recommends" (for the seed: "any"). It is
checked when it is made. `pictures(variant)` fills the gaps, checks what only the variant can judge, and
gives one `Picture` for each seed. Below that point there are no gaps, and no request either: pictures whose
`Settings` differ in nothing but the strength of guidance can be drawn as one batch, whoever asked for them.
"""

import math
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import TypeVar

from sd35.errors import PromptError, RequestError
from sd35.pictures_in.source_picture import SourcePicture
from sd35.variants import PIXELS_PER_TOKEN, Variant

T = TypeVar("T")

MAX_PROMPT_CHARACTERS = 10_000
MAX_SEED = 2**63 - 1 - 1_000  # leaves room to count up
MAX_STEPS = 1_000
MAX_IMAGES = 64
MAX_SEQUENCE_LENGTH = 512  # what T5 was trained on
STRENGTH = 0.6  # of a request with an image that names none: diffusers' default


# NUL, which databases refuse, and halves of surrogate pairs, which have no form in UTF-8.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class PromptTexts:
    """The text for each of the three text encoders."""

    clip_l: str
    clip_g: str
    t5: str

    @classmethod
    def of(cls, prompt: str, prompt_2: str | None = None, prompt_3: str | None = None) -> "PromptTexts":
        """The first text serves every encoder that has none of its own."""
        return cls(prompt, _first(prompt_2, prompt), _first(prompt_3, prompt))


@dataclass(frozen=True)
class Settings:
    """How a picture is drawn, complete; a batch shares all of it but for the strength of guidance.

    `strength` is the share of the steps that run: the last ones, from an image with noise to match. At 1 all
    of them run, from noise alone, as without an image.
    """

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    max_sequence_length: int
    skip_layer_guidance_scale: float
    skip_layers: tuple[int, ...]
    skip_layer_guidance_start: float
    skip_layer_guidance_stop: float
    strength: float = 1.0

    @property
    def first_step(self) -> int:
        """The step (counted from 0) that drawing begins with; rounded as diffusers rounds it."""
        return first_step_of(self.num_inference_steps, self.strength)

    @property
    def steps_run(self) -> int:
        """How many steps are run: all without an image."""
        return self.num_inference_steps - self.first_step

    @property
    def guided(self) -> bool:
        """Whether the negative prompt takes part: classifier-free guidance is on above a scale of 1."""
        return self.guidance_scale > 1

    def shares_steps_with(self, other: "Settings") -> bool:
        """Whether pictures of both can be one batch: all is equal but for how strong guidance is."""
        return self.guided == other.guided and self == replace(other, guidance_scale=self.guidance_scale)

    def skips_layers_at(self, step: int) -> bool:
        """Whether skip-layer guidance takes part in this step (counted from 0)."""
        first = self.num_inference_steps * self.skip_layer_guidance_start
        last = self.num_inference_steps * self.skip_layer_guidance_stop
        return self.guided and self.skip_layer_guidance_scale > 0 and first < step < last


@dataclass(frozen=True)
class Picture:
    """One picture to draw: two equal ones come out equal on the same machine and checkpoint.

    `image` is what a strength below 1 begins with, as it was given; it is fitted to the size when it is read.
    """

    prompt: PromptTexts
    negative_prompt: PromptTexts
    seed: int
    settings: Settings
    image: SourcePicture | None = None


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt and everything that decides its pictures; equal requests give equal bytes.

    `prompt_2` and `prompt_3` go to CLIP-G and T5 and default to `prompt`, likewise for `negative_prompt`.
    `num_images` pictures get the seeds `seed`, `seed + 1`, ... and each is the picture that its seed
    gives alone, up to rounding. Guidance is on above a `guidance_scale` of 1. Skip-layer guidance adds
    `skip_layer_guidance_scale` times the difference that the `skip_layers` make, in the part of the steps
    between the two fractions (Medium: scale 2.8, layers 7, 8, 9, from 0.01 to 0.2).

    With an `image` the pictures begin there, and `strength` (above 0, 1 at most, 0.6 by default) says how
    much of it may go: of the steps, the last `strength` times as many are run. Width and height are then its
    own, scaled to about as many pixels as the variant's own square (`size_for`).
    """

    prompt: str
    prompt_2: str | None = None
    prompt_3: str | None = None
    negative_prompt: str = ""
    negative_prompt_2: str | None = None
    negative_prompt_3: str | None = None
    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    num_images: int = 1
    max_sequence_length: int | None = None
    skip_layer_guidance_scale: float = 0.0
    skip_layers: Sequence[int] | None = None
    skip_layer_guidance_start: float = 0.01
    skip_layer_guidance_stop: float = 0.2
    image: SourcePicture | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        for name in _PROMPT_FIELDS:
            _check_prompt(name, getattr(self, name))
        for name, whole in _WHOLE_NUMBERS.items():
            _check_whole_number(name, getattr(self, name), *whole)
        for name, real in _REAL_NUMBERS.items():
            _check_real_number(name, getattr(self, name), *real)
        for side in ("width", "height"):
            _check_multiple(side, getattr(self, side))
        _check_layers(self.skip_layers)
        _check_image(self.image, self.strength)

    def pictures(self, variant: Variant) -> list[Picture]:
        """The pictures that this request asks of this variant; RequestError where the two don't fit."""
        settings = self._settings(variant)
        _check_against(settings, variant)
        seed = secrets.randbelow(2**32) if self.seed is None else self.seed
        prompt = PromptTexts.of(self.prompt, self.prompt_2, self.prompt_3)
        negative = PromptTexts.of(self.negative_prompt, self.negative_prompt_2, self.negative_prompt_3)
        return [Picture(prompt, negative, seed + i, settings, self.image) for i in range(self.num_images)]

    def _settings(self, variant: Variant) -> Settings:
        shape = None if self.image is None else (self.image.width, self.image.height)
        width, height = size_for(shape, self.width, self.height, variant)
        return Settings(
            width=width,
            height=height,
            num_inference_steps=_first(self.num_inference_steps, variant.num_inference_steps),
            guidance_scale=_first(self.guidance_scale, variant.guidance_scale),
            max_sequence_length=_first(self.max_sequence_length, variant.max_sequence_length),
            skip_layer_guidance_scale=self.skip_layer_guidance_scale,
            skip_layers=tuple(_first(self.skip_layers, variant.skip_layers)),
            skip_layer_guidance_start=self.skip_layer_guidance_start,
            skip_layer_guidance_stop=self.skip_layer_guidance_stop,
            strength=1.0 if self.image is None else _first(self.strength, STRENGTH),
        )


def first_step_of(num_inference_steps: int, strength: float) -> int:
    """How many of the steps an image of this strength leaves out; one at least is run."""
    left_out = int(num_inference_steps - min(num_inference_steps * strength, num_inference_steps))
    return min(left_out, num_inference_steps - 1)


def size_for(
    shape: tuple[int, int] | None, width: int | None, height: int | None, variant: Variant
) -> tuple[int, int]:
    """Width and height to draw at; `shape` is the source's own, None without one.

    Without a source, the variant's square. With one, its shape at about as many pixels as that square; where
    one side is given, the other follows. Sides are rounded to whole tokens and end where the variant's do.
    """
    if shape is None:
        return _first(width, variant.native_size), _first(height, variant.native_size)
    across, down = shape
    if width is None and height is None:
        scale = variant.native_size / math.sqrt(across * down)
        return _legal(across * scale, variant), _legal(down * scale, variant)
    if width is None:
        assert height is not None
        return _legal(Fraction(height * across, down), variant), height
    return width, _first(height, _legal(Fraction(width * down, across), variant))


def check_strength(strength: float) -> None:
    """RequestError unless it is a number above 0, and 1 at most."""
    _check_real_number("strength", strength, 0.0, 1.0)
    if not strength:
        raise RequestError(
            "strength is 0, which would leave the image as it is: give a number above 0, 1 at most."
        )


_PROMPT_FIELDS = tuple(field.name for field in fields(GenerationRequest) if "prompt" in field.name)
_WHOLE_NUMBERS = {
    "width": (PIXELS_PER_TOKEN, 16_384),
    "height": (PIXELS_PER_TOKEN, 16_384),
    "num_inference_steps": (1, MAX_STEPS),
    "seed": (0, MAX_SEED),
    "num_images": (1, MAX_IMAGES),
    "max_sequence_length": (1, MAX_SEQUENCE_LENGTH),
}
_REAL_NUMBERS = {
    "guidance_scale": (0.0, 100.0),
    "skip_layer_guidance_scale": (0.0, 100.0),
    "skip_layer_guidance_start": (0.0, 1.0),
    "skip_layer_guidance_stop": (0.0, 1.0),
}


def preview_steps(previews: int, steps: int) -> dict[int, int]:
    """Step -> the number of the preview that is due after it: evenly spread, none at the start or the end."""
    due = {(index + 1) * steps // (previews + 1): index for index in range(previews)}
    return {step: index for step, index in due.items() if 0 < step < steps}


def _first(value: T | None, otherwise: T) -> T:
    return otherwise if value is None else value


def _check_prompt(name: str, value: str | None) -> None:
    if value is None and name not in ("prompt", "negative_prompt"):
        return
    if not isinstance(value, str):
        raise RequestError(f"{name} must be text, not {type(value).__name__}.")
    if len(value) > MAX_PROMPT_CHARACTERS:
        raise PromptError(
            f"{name} has {len(value):,} characters and the most is {MAX_PROMPT_CHARACTERS:,}: "
            "the text encoders read a few hundred words at most, so shorten it."
        )
    if found := _NO_TEXT.search(value):
        raise RequestError(
            f"{name} has U+{ord(found[0]):04X} at character {found.start() + 1}, which no text can hold: "
            "remove it, or give the prompt in UTF-8 (it may be half of a character, or a byte of another "
            "encoding)."
        )


def _check_whole_number(name: str, value: int | None, low: int, high: int) -> None:
    if value is None and name != "num_images":
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name} must be a whole number, not {value!r}.")
    if not low <= value <= high:
        raise RequestError(f"{name} is {_shown(value)}, outside its range: give {low} to {high}.")


def _check_real_number(name: str, value: object, low: float, high: float) -> None:
    if value is None and name == "guidance_scale":
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{name} must be a number, not {value!r}.")
    if not low <= value <= high:
        raise RequestError(f"{name} is {_shown(value)}, outside its range: give {low:g} to {high:g}.")


def _shown(value: float) -> str:
    """A number in an error; Python itself refuses to write whole numbers of thousands of digits."""
    is_long = isinstance(value, int) and abs(value) >= 10**20
    return "a number of more than 20 digits" if is_long else str(value)


def _check_layers(layers: object) -> None:
    if layers is None:
        return
    if not isinstance(layers, list | tuple) or any(type(layer) is not int for layer in layers):
        raise RequestError(f"skip_layers must be whole numbers, such as (7, 8, 9), not {layers!r}.")


def _check_image(image: SourcePicture | None, strength: float | None) -> None:
    if image is not None and not isinstance(image, SourcePicture):
        raise RequestError(
            f"image must be a SourcePicture, not {type(image).__name__}: sd35.read_picture makes one of a "
            "file."
        )
    if strength is None:
        return
    check_strength(strength)
    if image is None:
        raise RequestError("strength says how much of an image may go, and there is none: give an image too.")


def _legal(pixels: float | Fraction, variant: Variant) -> int:
    # A side that somebody asks for may be larger than any float: it is refused later, in words.
    tokens = max(1, math.floor(pixels / PIXELS_PER_TOKEN + Fraction(1, 2)))
    return min(tokens * PIXELS_PER_TOKEN, variant.max_size)


def _check_multiple(side: str, pixels: int | None) -> None:
    if pixels is not None and pixels % PIXELS_PER_TOKEN:
        below = max(pixels - pixels % PIXELS_PER_TOKEN, PIXELS_PER_TOKEN)
        raise RequestError(
            f"{side} is {pixels}, not a multiple of {PIXELS_PER_TOKEN}: one image token covers "
            f"{PIXELS_PER_TOKEN} x {PIXELS_PER_TOKEN} pixels, so take {below} or {below + PIXELS_PER_TOKEN}."
        )


def _check_against(settings: Settings, variant: Variant) -> None:
    for side, pixels in (("width", settings.width), ("height", settings.height)):
        if pixels > variant.max_size:
            raise RequestError(
                f"{side} is {pixels}, beyond the {variant.max_size} pixels that the position table of "
                f"{variant.title} reaches: take a smaller picture."
            )
    if settings.skip_layer_guidance_scale == 0:
        return
    if settings.skip_layer_guidance_start >= settings.skip_layer_guidance_stop:
        raise RequestError(
            f"Skip-layer guidance begins at {settings.skip_layer_guidance_start:g} of the steps and ends at "
            f"{settings.skip_layer_guidance_stop:g}, so it would do nothing: give a start below the stop."
        )
    if not settings.skip_layers:
        raise RequestError(
            f"Skip-layer guidance is not meant for {variant.title} (of the SD3.5 models Medium alone was "
            "tuned for it): leave skip_layer_guidance_scale at 0, or name the skip_layers."
        )
    strangers = [layer for layer in settings.skip_layers if not 0 <= layer < variant.num_layers]
    if strangers:
        raise RequestError(
            f"skip_layers names {strangers}, but {variant.title} has only the layers 0 to "
            f"{variant.num_layers - 1}."
        )
