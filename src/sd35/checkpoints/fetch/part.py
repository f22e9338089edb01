"""A file on its way: its bytes so far, their checksum, and a note of what they are the beginning of.

The bytes lie in `<name>.part`, the note beside them in `<name>.json`. Whoever comes next (after a kill -9,
say) goes on only if the note tells of the same content; it reads the bytes again for their checksum, so that
nothing is believed that was not hashed. What is under another note is thrown away: bytes of two different
files are never glued together.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from sd35.checkpoints.fetch.listing import Checksum, RemoteFile
from sd35.checkpoints.progress import Progress
from sd35.errors import OutputError

_BLOCK = 1 << 20


class Part:
    """The open part file of one remote file; use it as a context manager."""

    def __init__(self, workshop: Path, file: RemoteFile, progress: Progress) -> None:
        self.file = file
        self.size = 0
        self.etag: str | None = None  # of the answer that the bytes came with
        self.checksum = Checksum(file)
        self._progress = progress
        stem = file.path.replace("%", "%25").replace("/", "%2F")
        self.path = workshop / f"{stem}.part"
        self._note = workshop / f"{stem}.json"

    def __enter__(self) -> "Part":
        with _disk(self.path):
            self._bytes = self.path.open("r+b" if self.path.exists() else "w+b", buffering=0)
        try:
            self._go_on() if self._is_ours() else self.discard()
        except BaseException:
            self._bytes.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bytes.close()

    @property
    def is_right(self) -> bool:
        """Whether all bytes are there, and are what was promised."""
        return self.size == self.file.size and self.checksum.is_right

    def write(self, chunk: bytes) -> None:
        """The next bytes of the file; OutputError if the disk says no."""
        with _disk(self.path):
            written = self._bytes.write(chunk)
            if written != len(chunk):  # a disk that fills up takes a part first
                self._bytes.write(chunk[written:])
        self._count(chunk)

    def discard(self) -> None:
        """Forget all bytes."""
        with _disk(self.path):
            self._bytes.seek(0)
            self._bytes.truncate()
        forgotten, self.size, self.checksum = self.size, 0, Checksum(self.file)
        self.begin(None)
        self._progress.add(-forgotten)

    def begin(self, etag: str | None) -> None:
        """Note with which ETag the first byte comes."""
        self.etag = etag
        with _disk(self._note):
            self._note.write_text(
                json.dumps({**asdict(self.file), "etag": etag}), encoding="utf-8", newline="\n"
            )

    def adopt(self, path: Path) -> None:
        """Take a whole file that lies on the same disk as these bytes; its progress was counted before."""
        self._bytes.close()
        with _disk(self.path):
            if path.stat().st_nlink > 1:  # git-lfs links the file of a file:// remote: that one is not ours
                shutil.copyfile(path, self.path)
            else:
                path.replace(self.path)
            self._bytes = self.path.open("r+b", buffering=0)
        self.checksum = Checksum(self.file)
        self.size = 0
        while chunk := self._bytes.read(_BLOCK):
            self.size += len(chunk)
            self.checksum.update(chunk)
            self._progress.add(0)

    def settle(self, final: Path) -> None:
        """Give the whole file its name, safely on disk first."""
        with _disk(final):
            os.fsync(self._bytes.fileno())
            self._bytes.close()  # Windows renames no file that is open
            final.parent.mkdir(parents=True, exist_ok=True)
            self.path.replace(final)
            self._note.unlink(missing_ok=True)

    def _is_ours(self) -> bool:
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            self.etag = note.pop("etag")
        except (OSError, ValueError, KeyError, AttributeError):
            return False  # no note, or one that was cut off: the bytes are nobody's
        return note == asdict(self.file) and self.path.stat().st_size <= self.file.size

    def _go_on(self) -> None:
        with _disk(self.path):
            while chunk := self._bytes.read(_BLOCK):
                self._count(chunk)

    def _count(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self.checksum.update(chunk)
        self._progress.add(len(chunk))


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Turns the disk's complaints into OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} can't be written ({error.strerror}): free the disk or choose another place with -o; "
            "the next fetch goes on from here."
        ) from error
