"""Where pictures go: PNG files that tell how they were made and appear whole or not at all.

A file is written under a temporary name in its own folder and renamed when it is complete. `sd35.png` says
what is inside.
"""

import hashlib
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

from sd35 import __version__
from sd35.errors import OutputError, RequestError
from sd35.png import png_bytes, recipe_of
from sd35.request import GenerationRequest

if TYPE_CHECKING:
    from sd35.runtime.pipeline import GeneratedImage


@dataclass(frozen=True)
class OutputPlace:
    """A folder that has been seen to take files, and how files in it are called."""

    folder: Path
    stem: str
    is_exact: bool  # the person named the file, so it may be overwritten

    @classmethod
    def at(cls, output: str, request: GenerationRequest) -> "OutputPlace":
        """Understand `-o`, create the folder if one is meant, and try it; OutputError if it can't be."""
        path = Path(os.path.expanduser(output))
        if path.suffix.lower() == ".png" and not path.is_dir():
            _try_folder(path.parent, create=False)
            return cls(path.parent, path.name[: -len(path.suffix)], is_exact=True)
        if path.suffix and not path.exists():
            raise RequestError(f"{path} ends in {path.suffix}, and pictures are written as .png: rename it.")
        _try_folder(path, create=True)
        return cls(path, _slug(request.prompt), is_exact=False)

    def save(self, images: "Sequence[GeneratedImage]", identity: str, precision: str) -> list[dict[str, Any]]:
        """Write the pictures; one record each: path, seed, width, height, and the file's sha256."""
        records = []
        for number, drawn in enumerate(images, start=1):
            path = self._path(drawn.picture.seed, number if len(images) > 1 else None)
            content = png_bytes(drawn.image, recipe_of(drawn.picture, identity, precision, __version__))
            write_whole(path, content)
            records.append(
                {
                    "path": str(path),
                    "seed": drawn.picture.seed,
                    "width": drawn.image.width,
                    "height": drawn.image.height,
                    "sha256": hashlib.sha256(content).hexdigest(),
                }
            )
        return records

    def _path(self, seed: int, number: int | None) -> Path:
        if self.is_exact:
            return self.folder / (f"{self.stem}.png" if number is None else f"{self.stem}-{number}.png")
        path, again = self.folder / f"{self.stem}-{seed}.png", 2
        while path.exists():
            path, again = self.folder / f"{self.stem}-{seed}-{again}.png", again + 1
        return path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is never seen half-written; OutputError if the disk says no.

    A device or a pipe, such as /dev/null, is written into: a file in its place would be its end.
    """
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path} can't be written ({error.strerror}): free the disk or choose another."
        ) from error


def _try_folder(folder: Path, *, create: bool) -> None:
    try:
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder, prefix=".sd35-"):
            pass
    except OSError as error:
        raise OutputError(
            f"Pictures can't be written to {folder} ({error.strerror}): choose another place with -o."
        ) from error


def _slug(prompt: str) -> str:
    words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-_")
    return words[:48].rstrip("-_") or "picture"
