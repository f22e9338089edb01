"""A file on its way to its name, so written that a later run can go on where a killed one stopped.

    model.safetensors.unfinished   the bytes so far; renamed when they are all there and on the disk
    model.safetensors.durable      one line a step: up to which byte the disk has them

The length of a file says little after a crash: the last block may be half there, or be zeros. So every STEP
bytes the file is synced first and its length noted second, and only noted bytes are ever built upon. The note
is appended to, never rewritten: a line that was cut off has no line end and does not count.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

STEP = 256 << 20  # bytes between two syncs: what a kill can cost
_BLOCK = 1 << 20
# Another file system, one without hard links (each system has its own word for that), a file that has too
# many, one that is another user's.
_NO_LINKS = {errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EMLINK, errno.EPERM}


class Unfinished:
    """The file that will be `path`; whoever makes it knows its first bytes (`head`) beforehand."""

    def __init__(self, path: Path, head: bytes) -> None:
        self.path, self.head = path, head
        self.body = path.with_name(f"{path.name}.unfinished")
        self.note = path.with_name(f"{path.name}.durable")
        self._noted = 0

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The file, placed after the bytes that are sure; it gets its name when the block ends well."""
        self._noted = self._sure_bytes()
        if not self._noted:
            self.note.unlink(missing_ok=True)
        with self.body.open("r+b" if self._noted else "wb") as file:
            file.truncate(self._noted)
            file.seek(self._noted)
            if not self._noted:
                file.write(self.head)
            yield file
            _sync(file)
        self.note.unlink(missing_ok=True)  # before the renaming, so that a whole file never has one
        self.body.replace(self.path)

    def keep(self, file: BinaryIO) -> None:
        """Call this between two tensors: what is written by now will be built upon."""
        if file.tell() - self._noted < STEP:
            return
        _sync(file)
        with self.note.open("a", encoding="ascii", newline="\n") as note:
            note.write(f"{file.tell()}\n")
        self._noted = file.tell()

    def _sure_bytes(self) -> int:
        """The last noted length, 0 where nothing can be built upon."""
        if not (self.note.is_file() and self.body.is_file()):
            return 0
        lines = self.note.read_text(encoding="ascii").split("\n")[:-1]
        sure = int(lines[-1]) if lines else 0
        with self.body.open("rb") as file:
            is_same = file.read(len(self.head)) == self.head
        return sure if is_same and len(self.head) <= sure <= self.body.stat().st_size else 0


def copy_whole(source: Path, folder: Path) -> None:
    """Copy a file into a folder under its own name, where it appears whole; one that is there is kept."""
    place = folder / source.name
    if place.exists():
        return
    copy = Unfinished(place, b"").body
    with source.open("rb") as content, copy.open("wb") as file:
        shutil.copyfileobj(content, file, _BLOCK)
        _sync(file)
    copy.replace(place)


def link_or_copy(source: Path, folder: Path) -> None:
    """Give a file another name in a folder, without its bytes; a copy where the file system can't do that.

    Both names are one file from then on: whoever writes into one changes the other.
    """
    place = folder / source.name
    if place.exists():
        return
    try:
        os.link(source, place)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        copy_whole(source, folder)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
