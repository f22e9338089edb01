"""What is called abnormal, and what is not."""

import numpy as np
import pytest
from numpy.typing import NDArray

from sd35.request import GenerationRequest
from sd35.runtime.pipeline import Pipeline
from sd35.serving import abnormal
from sd35.serving.abnormal import Eye, wrong_in_itself
from sd35.serving.happenings import ABNORMAL
from sd35.serving.messages import RawImage

SIDE = 64
Pixels = NDArray[np.uint8]


def raw(pixels: Pixels) -> RawImage:
    """As a worker hands it over."""
    return RawImage(pixels.shape[1], pixels.shape[0], pixels.tobytes())


def noise(low: int = 0, high: int = 256) -> Pixels:
    """Every value for itself."""
    return np.random.default_rng(7).integers(low, high, (SIDE, SIDE, 3), dtype=np.uint8)


def soft(seed: int = 0) -> Pixels:
    """A field of colour that changes slowly."""
    corners = np.random.default_rng(seed).uniform(0, 255, (2, 2, 3))
    x = np.linspace(0, 1, SIDE)
    rows = corners[0] * (1 - x)[:, None, None] + corners[1] * x[:, None, None]
    return (rows[:, :1] * (1 - x)[None, :, None] + rows[:, 1:] * x[None, :, None]).astype(np.uint8)


def rails() -> Pixels:
    """Large fields of pure colours."""
    return np.kron(noise(0, 2)[::16, ::16] * 255, np.ones((16, 16, 1), np.uint8)).astype(np.uint8)


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.zeros((SIDE, SIDE, 3), np.uint8), "black"),
        (noise(0, 10), "black"),
        (np.full((SIDE, SIDE, 3), (200, 30, 30), np.uint8), "flat"),
        (np.full((SIDE, SIDE, 3), 255, np.uint8), "flat"),
        (noise(120, 124), "flat"),
        (rails(), "saturated"),
        (noise(), "noise"),
        (soft(), None),
        (soft()[:16, :16], None),
        (np.repeat(soft()[:, :1], SIDE, axis=1), None),
    ],
)
def test_each_reason(pixels: Pixels, reason: str | None) -> None:
    """Pictures made to have one fault are told by it, and a soft one by none."""
    assert wrong_in_itself(pixels) == reason


def test_a_dark_scene_with_a_light_is_none() -> None:
    """A lamp of 8 x 8 pixels in the dark is a picture."""
    night = noise(0, 10)
    night[20:28, 20:28] = 220
    assert wrong_in_itself(night) is None


def test_latents_that_were_not_finite() -> None:
    """The flag decides, whatever the pixels show."""
    assert Eye().look([raw(soft())], [1], [False]) == ("not_finite",)


def test_the_same_picture_from_another_seed() -> None:
    """Told for the second one; the same seed may give the same picture, and other pictures are other."""
    eye = Eye()
    assert eye.look([raw(soft(1))], [1], []) == (None,)
    assert eye.look([raw(soft(1)), raw(soft(2))], [1, 2], []) == (None, None)
    assert eye.look([raw(soft(1))], [3], []) == ("identical",)


def test_reasons_are_those_that_metrics_know() -> None:
    """Every reason that can be given has its series."""
    assert set(ABNORMAL) >= {"not_finite", "black", "flat", "saturated", "noise", "identical"}


def test_drawn_pictures_are_normal(pipeline_fp8: Pipeline) -> None:
    """What the demo model draws of several prompts is far from every bound."""
    eye, looks = Eye(), []
    for prompt in ("a red apple on a blue background", "a yellow star on a black background", "a fox"):
        request = GenerationRequest(prompt, seed=1, num_images=2, num_inference_steps=6)
        images = [drawn.image for drawn in pipeline_fp8.generate(request).images]
        pixels = [np.asarray(image) for image in images]
        looks += eye.look([raw(one) for one in pixels], [1, 2], [])
        for one in pixels:
            luma = one @ abnormal._LUMA
            assert (luma > abnormal.DARK).mean() > 100 * abnormal.BRIGHT_SHARE
            assert one.std(axis=(0, 1)).max() > 5 * abnormal.FLAT
            assert ((one == 0) | (one == 255)).mean() < abnormal.RAILS_SHARE / 2
            assert abnormal.correlation(luma) > 3 * abnormal.NOISE_CORRELATION
        apart = np.abs(abnormal.thumbnail(pixels[0]) - abnormal.thumbnail(pixels[1])).max()
        assert apart > 10 * abnormal.SAME
    assert looks == [None] * 6
