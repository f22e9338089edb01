"""Outputs that appear whole or not at all: built beside their place and moved there at the end.

What is interrupted, or runs out of disk, leaves nothing behind that looks like a checkpoint, and what was
at the place stays as it was: nothing is ever overwritten.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from sd35.errors import OutputError


@contextmanager
def fresh_folder(destination: Path, room_needed: int) -> Iterator[Path]:
    """A new folder to fill; it becomes `destination` on success. OutputError if there is no place or room."""
    with _beside(destination, room_needed) as place:
        yield place
        place.chmod(0o755)
        place.rename(destination)


@contextmanager
def fresh_file(destination: Path, room_needed: int) -> Iterator[Path]:
    """A path to write a file at; it becomes `destination` on success."""
    with _beside(destination, room_needed) as place:
        yield place / destination.name
        with (place / destination.name).open("rb") as file:
            os.fsync(file.fileno())
        (place / destination.name).rename(destination)


@contextmanager
def _beside(destination: Path, room_needed: int) -> Iterator[Path]:
    """A temporary folder on the same disk, removed at the end."""
    if destination.exists():
        raise OutputError(
            f"{destination} exists already and is never overwritten: remove it or name another."
        )
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(destination.parent).free
        if free < room_needed:
            raise OutputError(
                f"{destination.parent} has {free / 1e9:.1f} GB free and up to {room_needed / 1e9:.1f} GB are "
                "needed: free the disk or choose another."
            )
        place = Path(mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    except OSError as error:
        raise OutputError(
            f"{destination} can't be written ({error.strerror}): choose another place."
        ) from error
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
