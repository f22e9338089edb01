"""A picture as a PNG file that tells how it was made.

The `sd35` text chunk holds the recipe as JSON: everything that decides the picture and nothing that varies
between two runs, so equal requests give equal files. Pillow is imported when a picture is written.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sd35.request import Picture

if TYPE_CHECKING:
    from PIL.Image import Image

PROMPTS = ("prompt", "negative_prompt")
SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEYWORD = "sd35"


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
    info.add_itxt(KEYWORD, json.dumps(recipe, ensure_ascii=False))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info, compress_level=compress_level)
    return buffer.getvalue()


def recipe_in(data: bytes) -> dict[str, Any] | None:
    """The recipe that a PNG file carries, None where it has none of ours; no pixel is decoded."""
    for kind, body in _chunks(data):
        text = _text(kind, body)
        if text is not None:
            try:
                recipe = json.loads(text)
            except ValueError:
                return None
            return recipe if isinstance(recipe, dict) else None
    return None


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and body of each chunk, as far as they are whole. https://www.w3.org/TR/png-3/#5Chunk-layout"""
    place = len(SIGNATURE) if data.startswith(SIGNATURE) else len(data)
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        yield data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        place += 12 + size


def _text(kind: bytes, body: bytes) -> str | None:
    """What stands in a chunk under our keyword; programs that write the file again may turn iTXt to tEXt."""
    keyword, _, rest = body.partition(b"\0")
    if keyword != KEYWORD.encode() or kind not in (b"iTXt", b"tEXt"):
        return None
    if kind == b"tEXt":
        return rest.decode("latin-1")
    is_compressed, words = rest[:1] != b"\0", rest[2:].split(b"\0", 2)  # language, translated keyword, text
    return None if is_compressed or len(words) < 3 else words[2].decode(errors="replace")
