"""Where pictures live: one seam, kept by a folder (`folder.py`), an object store (`objects.py`) and a spool.

All three promise the same, and the hard part is what they promise about failure. `put` returns after the
bytes are safe, or raises; a reader sees a whole file or none; a second `put` of a name replaces the first
as one step, so a job that is run again after a crash may simply store its picture again. (No store promises
more: S3 servers are known to overwrite even where a client asks for "create only".) `delete` of what is not
there is done already. Trouble is an OutputError (disk full, bucket refused), a NetworkError (store down)
or, for `open`, a MissingError. Names are relative paths of plain characters, so that none can leave its
folder.
"""

import hashlib
import math
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from sd35.errors import RequestError

_NAME = re.compile(r"[0-9A-Za-z_-][0-9A-Za-z._-]{0,199}(/[0-9A-Za-z_-][0-9A-Za-z._-]{0,199}){0,7}")


# Addresses end at whole multiples of this many seconds, or of a sixth of their life where that is less.
URL_GRID_S = 600.0
_ADDRESS_SHARE = 6


@dataclass(frozen=True)
class StoredFile:
    """A file that is safe: its name, its size in bytes and its SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, name: str, data: bytes) -> "StoredFile":
        """What storing these bytes under this name must amount to."""
        return cls(name, len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Listed:
    """A file as a listing shows it; `modified` in seconds since 1970."""

    name: str
    size: int
    modified: float


class Storage(Protocol):
    """What the job core needs of a place for pictures. Safe to call from many threads."""

    def put(self, name: str, data: bytes) -> StoredFile:
        """Store the bytes; they are safe when this returns."""

    def open(self, name: str) -> bytes:
        """The bytes; MissingError where there are none of this name."""

    def url(self, name: str, expires_s: float) -> str:
        """An address from which anyone who has it can fetch the file for this long, or a bit longer."""

    def delete(self, name: str) -> None:
        """Remove the file, if it is there."""

    def files(self) -> Iterator[Listed]:
        """All files, in no order."""


def checked_name(name: str) -> str:
    """The name itself; RequestError unless it is a relative path of plain characters."""
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"A file can't be stored as {name[:80]!r}: use letters, digits, '.', '_', '-' and '/', no part "
            "beginning with a dot."
        )
    return name


def expiry(expires_s: float) -> int:
    """When an address of that life ends if it is given out now, in seconds since 1970.

    Rounded up to a coarse grid: an address that is asked for again is the same one for minutes, and a browser
    finds the copy that it has.
    """
    grid = max(1.0, min(URL_GRID_S, expires_s / _ADDRESS_SHARE))
    return round(math.ceil((time.time() + expires_s) / grid) * grid)


def retire(
    storage: Storage, *, now: float, keep_s: float | None = None, keep_bytes: int | None = None
) -> list[str]:
    """Delete what is older than `keep_s` seconds, then the oldest until `keep_bytes` hold the rest.

    Returns the names that went. None keeps for ever.
    """
    gone = too_many(storage.files(), now=now, keep_s=keep_s, keep_bytes=keep_bytes)
    for file in gone:
        storage.delete(file.name)
    return [file.name for file in gone]


def too_many(
    files: Iterable[Listed], *, now: float, keep_s: float | None, keep_bytes: int | None
) -> list[Listed]:
    """The files that retention ends, oldest first."""
    gone = []
    ordered = sorted(files, key=lambda file: (file.modified, file.name))
    total = sum(file.size for file in ordered)
    for file in ordered:
        is_old = keep_s is not None and now - file.modified > keep_s
        is_over = keep_bytes is not None and total > keep_bytes
        if not is_old and not is_over:
            break
        gone.append(file)
        total -= file.size
    return gone
