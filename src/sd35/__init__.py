"""Stable Diffusion 3.5 in FP8: check it, shrink it, run it, serve it.

    import sd35

    pipeline = sd35.load("demo")
    picture = pipeline.generate(sd35.GenerationRequest("a fox, flat style, on a blue background")).images[0]
    picture.image.save("fox.png")

Importing this package costs no torch: a public name is imported from its room when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "GeneratedImage": "sd35.runtime.pipeline",
    "Generation": "sd35.runtime.pipeline",
    "GenerationRequest": "sd35.request",
    "Pipeline": "sd35.runtime.pipeline",
    "Recipe": "sd35.quantization.recipe",
    "RuntimeConfig": "sd35.config",
    "Sd35Error": "sd35.errors",
    "SourcePicture": "sd35.pictures_in.source_picture",
    "convert": "sd35.quantization.transcode",
    "load": "sd35.quantization.ready",
    "quantize": "sd35.quantization.convert",
    "read_picture": "sd35.pictures_in.decode",
}

if TYPE_CHECKING:
    from sd35.config import RuntimeConfig
    from sd35.errors import Sd35Error
    from sd35.pictures_in.decode import read_picture
    from sd35.pictures_in.source_picture import SourcePicture
    from sd35.quantization.convert import quantize
    from sd35.quantization.ready import load
    from sd35.quantization.recipe import Recipe
    from sd35.quantization.transcode import convert
    from sd35.request import GenerationRequest
    from sd35.runtime.pipeline import GeneratedImage, Generation, Pipeline

__all__ = [
    "GeneratedImage",
    "Generation",
    "GenerationRequest",
    "Pipeline",
    "Recipe",
    "RuntimeConfig",
    "Sd35Error",
    "SourcePicture",
    "convert",
    "load",
    "quantize",
    "read_picture",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sd35' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
