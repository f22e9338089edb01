"""From a worker's pixels to stored files. Everything here blocks, and runs beside the event loop.

The recipe goes into PNG files; prompts are left out unless the operator wants them there. PNG is written with
compression level 1: a photograph of 1024 x 1024 takes 120 ms, where the usual 6 takes 272 for a file that is
12% smaller (Pillow 13, one core).
"""

import base64
import io
from typing import TYPE_CHECKING

from sd35 import __version__
from sd35.png import png_bytes, recipe_of
from sd35.request import Picture
from sd35.serving.jobs import Job, JobImage
from sd35.serving.messages import Drawing, Loaded, RawImage
from sd35.serving.output_check import OutputCheck, judge_picture
from sd35.serving.problems import Problem, ServiceError
from sd35.serving.settings import Model
from sd35.serving.storage import Storage

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("png", "jpeg", "webp")
PNG_LEVEL = 1
QUALITY = 95
PREVIEW_QUALITY = 80


def save(
    storage: Storage,
    check: OutputCheck | None,
    job: Job,
    model: Model,
    drawing: Drawing,
    loaded: Loaded,
    *,
    with_prompt: bool,
) -> list[JobImage]:
    """Encode, check and store all pictures of a job, or none; what `Storage.put` raises goes through.

    ServiceError where the check holds one of them back.

    Names don't tell the attempt: a second one, after a kill between storing and saying so, replaces the files
    of the first by equal ones.
    """
    wanted = job.spec.pictures(model)
    encoded = [
        encode(raw, job, picture, loaded, with_prompt=with_prompt)
        for raw, picture in zip(drawing.images, wanted, strict=True)
    ]
    if check is not None and not all(judge_picture(check, one, job.spec.prompt).allowed for one in encoded):
        raise ServiceError(
            Problem.OUTPUT_BLOCKED, "The output check held a picture back: change the prompt or the seed."
        )
    stored = []
    for index, (raw, picture, content) in enumerate(zip(drawing.images, wanted, encoded, strict=True)):
        file = storage.put(f"{job.id}-{index}.{job.spec.output_format}", content)
        stored.append(JobImage(file.name, picture.seed, raw.width, raw.height, file.sha256, file.size))
    return stored


def encode(raw: RawImage, job: Job, picture: Picture, loaded: Loaded, *, with_prompt: bool) -> bytes:
    """One picture in the format that the job asks for."""
    image, spec = _image(raw), job.spec
    if spec.output_format == "png":
        recipe = recipe_of(
            picture,
            loaded.identity,
            loaded.precision,
            __version__,
            with_prompt=with_prompt,
            image_sha256=spec.image,
        )
        return png_bytes(image, recipe, PNG_LEVEL)
    quality = QUALITY if spec.output_compression is None else spec.output_compression
    return _encoded(image, spec.output_format, quality)


def preview_base64(raw: RawImage, output_format: str) -> str:
    """An unfinished picture in the job's own format, small rather than fine."""
    if output_format == "png":
        return base64.b64encode(png_bytes(_image(raw), {}, PNG_LEVEL)).decode()
    return base64.b64encode(_encoded(_image(raw), output_format, PREVIEW_QUALITY)).decode()


def blank(width: int, height: int, output_format: str) -> bytes:
    """A grey picture, for clients that must be given one where the real one is held back."""
    from PIL import Image

    image = Image.new("RGB", (width, height), (128, 128, 128))
    return (
        png_bytes(image, {}, PNG_LEVEL) if output_format == "png" else _encoded(image, output_format, QUALITY)
    )


def media_type(name: str) -> str:
    """The MIME type of a stored file, from its name."""
    return f"image/{name.rpartition('.')[2]}"


def _image(raw: RawImage) -> "Image":
    from PIL import Image

    return Image.frombytes("RGB", (raw.width, raw.height), raw.rgb)


def _encoded(image: "Image", output_format: str, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, output_format.upper(), quality=quality)
    return buffer.getvalue()
