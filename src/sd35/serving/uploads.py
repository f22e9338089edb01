"""Pictures that clients send to begin with: kept in the data folder for as long as a job may need them.

    upload = await gateway.uploads.accept(data)        # any face: the bytes of a PNG, JPEG or WEBP file
    ask = Ask(prompt=..., image=upload, strength=0.6)  # size: the picture's own shape, unless it is given

`accept` decodes in a limited child process (`sd35.pictures_in`) and raises what a face can render:
INVALID_IMAGE in one sentence, STORAGE_FAILED where the disk says no. What is kept is a PNG made anew of the
pixels, so nothing of a stranger's bytes stays; its name is `SourcePicture.sha256`, so the same picture is
kept once. It is safe on the disk when `accept` returns, hence before any job that names it (`Spec.image`) is
acknowledged. Retention removes it when no job in the database names it any more; one that no job ever named
goes within two hours. A face adds its paths to `app.PICTURE_PATHS`, where bodies may be as long as pictures.
"""

import asyncio
import io
import os
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from sd35.errors import MissingError, OutputError, SourceError, UnavailableError
from sd35.pictures_in.decode import Limits, decode, too_long
from sd35.pictures_in.source_picture import SourcePicture
from sd35.serving.folder import write_durably
from sd35.serving.problems import Problem, ServiceError
from sd35.serving.settings import ServerSettings

FOLDER = "uploads"
IMAGE_FORMATS = ("png", "jpeg", "webp")  # those of `pictures_in.child`
LIMITS = Limits(file_bytes=16 << 20)
AT_ONCE = 2  # decoding takes a core and up to LIMITS.address_space each
PNG_LEVEL = 1
YOUNG_S = 3600.0  # a job that names an upload follows it within seconds


@dataclass(frozen=True)
class Upload:
    """A picture that is kept: its name, and the size in pixels that it came in."""

    name: str
    width: int
    height: int


class Uploads:
    """The uploads of one data folder."""

    def __init__(self, folder: Path, limits: Limits = LIMITS) -> None:
        self._folder, self._limits = folder, limits
        self._decoding, self._files = asyncio.Semaphore(AT_ONCE), threading.Lock()

    async def accept(self, data: bytes) -> Upload:
        """Decode and keep a picture; ServiceError where it is not one, or can't be kept."""
        if len(data) > self._limits.file_bytes:
            raise _invalid(too_long(self._limits.file_bytes))
        async with self._decoding:
            try:
                picture = await asyncio.to_thread(decode, data, self._limits)
                return await asyncio.to_thread(self._keep, picture)
            except SourceError as error:
                raise _invalid(error) from error
            except UnavailableError as error:
                raise ServiceError(Problem.STORAGE_FAILED, str(error)) from error

    def sweep(self, needed: Callable[[], Collection[str]], now: float | None = None) -> list[str]:
        """Remove what is not young and what no job needs, and say what went; `needed` is asked afterwards."""
        now = time.time() if now is None else now
        old = [path for path in self._all() if now - path.stat().st_mtime > YOUNG_S]
        if not old:
            return []
        kept, gone = needed(), []
        for path in old:
            with self._files:
                # Once more: it may have been accepted again while we asked.
                if path.stem not in kept and now - path.stat().st_mtime > YOUNG_S:
                    path.unlink()
                    gone.append(path.stem)
        return gone

    def _all(self) -> list[Path]:
        return list(self._folder.iterdir()) if self._folder.is_dir() else []

    def _keep(self, picture: SourcePicture) -> Upload:
        path = self._folder / f"{picture.sha256}.png"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._files:
                if path.exists():
                    os.utime(path)
                else:
                    write_durably(path, png_of(picture))
        except OSError as error:
            raise OutputError(
                f"{path} can't be written ({error.strerror}): free the disk or choose another folder."
            ) from error
        return Upload(picture.sha256, picture.width, picture.height)


def folder_of(settings: ServerSettings) -> Path:
    """Where a server keeps its uploads."""
    return Path(settings.data_dir).expanduser() / FOLDER


def path_of(settings: ServerSettings, name: str | None) -> Path | None:
    """The file of an upload, for a worker to read; None for a job without one."""
    return None if name is None else folder_of(settings) / f"{name}.png"


def read_upload(path: Path) -> SourcePicture:
    """A kept picture; its file is our own work, so it is decoded where it is read."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            return SourcePicture(image.width, image.height, image.convert("RGB").tobytes())
    except OSError as error:
        raise MissingError(
            f"The picture that this job begins with can't be read ({path.name}): send the request again."
        ) from error


def png_of(picture: SourcePicture) -> bytes:
    """As a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.frombytes("RGB", (picture.width, picture.height), picture.rgb)
    image.save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def _invalid(error: SourceError) -> ServiceError:
    return ServiceError(Problem.INVALID_IMAGE, str(error), param="image")
