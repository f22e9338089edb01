"""A picture as a PNG file that tells how it was made.

The `sd35` text chunk holds the recipe as JSON: everything that decides the picture and nothing that varies
between two runs, so equal requests give equal files. Pillow is imported when a picture is written.
"""

import io
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sd35.request import Picture

if TYPE_CHECKING:
    from PIL.Image import Image

PROMPTS = ("prompt", "negative_prompt")


def recipe_of(
    picture: Picture,
    identity: str,
    precision: str,
    version: str,
    *,
    with_prompt: bool = True,
    image_sha256: str | None = None,
) -> dict[str, Any]:
    """What decides the picture: the checkpoint's SHA-256, its transformer's precision, sd35's version.

    Of the image that it began with, if any, the SHA-256 of the pixels (`SourcePicture.sha256`); whoever has
    not the image itself at hand says it.
    """
    settings = asdict(picture.settings)
    strength = settings.pop("strength")
    if picture.image is not None:
        image_sha256 = picture.image.sha256
    begun = {"image_sha256": image_sha256, "strength": strength} if image_sha256 else {}
    recipe = {
        "prompt": asdict(picture.prompt),
        "negative_prompt": asdict(picture.negative_prompt),
        "seed": picture.seed,
        "settings": settings,
        **begun,
        "checkpoint_sha256": identity,
        "precision": precision,
        "version": version,
    }
    return recipe if with_prompt else {name: recipe[name] for name in recipe if name not in PROMPTS}


def png_bytes(image: "Image", recipe: dict[str, Any], compress_level: int = 6) -> bytes:
    """The picture as a PNG file with its recipe inside; a low `compress_level` (0 to 9) is fast and large."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("sd35", json.dumps(recipe, ensure_ascii=False))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info, compress_level=compress_level)
    return buffer.getvalue()
