"""What a person may be offered before they know what to ask for: sizes, presets, and prompts to begin with.

Shapes keep the area of the square that the model was trained on (SD3 drew its aspect-ratio buckets that way,
arXiv 2403.03206), and come in steps of 64 pixels, or 16 for models that draw small.
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from sd35.checkpoints.store import locate
from sd35.checkpoints.vae_halves import lacks_encoder
from sd35.errors import Sd35Error
from sd35.serving.settings import Model
from sd35.variants import PIXELS_PER_TOKEN, Variant

RATIOS = ((1, 1), (5, 4), (3, 2), (16, 9), (4, 5), (2, 3), (9, 16))
COARSE = 64  # pixels
# Of the recommended steps; OpenAI's face means the same by low, medium and high.
STEP_SHARES = {"fast": 0.5, "balanced": 1.0, "best": 1.5}
SCHEDULER = "flow-match-euler"  # the one that these models were trained for, and the only one here

_DEMO_PROMPTS = (
    "a red apple, glossy style, on a blue background",
    "an icon of a penguin, flat style, on yellow",
    "a fox, cartoon style, on a green background",
    "a cat on the left and a guitar on the right, glossy style, on a pink background",
)
_PROMPTS = (
    "A lighthouse on a cliff at dusk, long exposure, the sea like silk",
    "A reading corner by a rainy window, warm lamp, a cat asleep on the chair",
    "A paper-cut landscape of layered mountains, soft morning light",
    "A bookshop front with the sign 'OPEN LATE', watercolour, evening street",
)


def offer(model: Model, models: Iterable[Model]) -> dict[str, Any]:
    """Sizes, presets and prompts of one model, among those that are served."""
    return {
        "sizes": sizes(model.variant),
        "presets": presets(model, models),
        "prompts": list(_DEMO_PROMPTS if model.variant.name == "demo" else _PROMPTS),
        "size_step": PIXELS_PER_TOKEN,
        "schedulers": [SCHEDULER],
        "image_to_image": begins_with_images(model),
    }


@lru_cache
def begins_with_images(model: Model) -> bool:
    """Whether its pictures can begin with an image; looked up once, in the names that its VAE's file has.

    A checkpoint that can't be read here counts as whole: what is wrong with it, the worker says.
    """
    try:
        return not lacks_encoder(locate(model.checkpoint))
    except (Sd35Error, OSError):
        return True


def sizes(variant: Variant) -> list[dict[str, Any]]:
    """A legal size for each ratio, the square first."""
    return [
        dict(zip(("ratio", "width", "height"), (f"{wide}:{high}", *_size(wide, high, variant)), strict=True))
        for wide, high in RATIOS
    ]


def presets(model: Model, models: Iterable[Model]) -> dict[str, dict[str, Any]]:
    """What Fast, Balanced and Best mean for a model; Large's Fast is Large-Turbo where that is served."""
    variant = model.variant
    found = {
        name: {
            "model": model.name,
            "num_inference_steps": max(1, round(variant.num_inference_steps * share)),
            "guidance_scale": variant.guidance_scale,
        }
        for name, share in STEP_SHARES.items()
    }
    turbo = next((other for other in models if other.variant.name == "large-turbo"), None)
    if turbo is not None and variant.name == "large":
        found["fast"] = {
            "model": turbo.name,
            "num_inference_steps": turbo.variant.num_inference_steps,
            "guidance_scale": turbo.variant.guidance_scale,
        }
    return found


def _size(wide: int, high: int, variant: Variant) -> tuple[int, int]:
    """The largest legal size within the square's area whose sides are nearest to wide : high."""
    step = COARSE if variant.native_size >= 512 else PIXELS_PER_TOKEN
    area, wanted = variant.native_size**2, wide / high
    columns = range(step, min(variant.max_size, area // step) + 1, step)
    legal = ((width, min(area // width // step * step, variant.max_size)) for width in columns)

    def misfit(size: tuple[int, int]) -> float:
        return abs(math.log(size[0] / size[1] / wanted)) + (1 - size[0] * size[1] / area)

    return min(((width, height) for width, height in legal if height), key=misfit)
