"""The folder that is being fetched into, and the corner of it where unfinished things lie.

`<folder>/.fetch` holds the lock, the parts and a note of what is being fetched. Files get their names when
they are whole and verified; `model_index.json`, which makes a folder a checkpoint, comes last but one and the
manifest last. The corner is gone when all is done, so a folder that has one is unfinished.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Self

from sd35.checkpoints.fetch.listing import Checksum, RemoteFile
from sd35.checkpoints.fetch.part import Part
from sd35.checkpoints.locked_folder import HeldError, LockedFolder
from sd35.checkpoints.manifest import FILE_NAME, Manifest, Origin, write_manifest
from sd35.checkpoints.progress import Progress
from sd35.checkpoints.store import UNFINISHED
from sd35.errors import OutputError

_NOTE = "origin.json"
_MARGIN = 64 << 20  # bytes that a fetch leaves free
_BLOCK = 1 << 20


class Workshop:
    """A destination that this process alone works in; use it as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corner = folder / UNFINISHED

    def __enter__(self) -> Self:
        self._is_new, self._is_done = not self.folder.exists(), False
        try:
            self.corner.mkdir(parents=True, exist_ok=True)
            self._locked = LockedFolder(self.corner)
        except OSError as error:
            raise OutputError(
                f"{self.folder} can't be written ({error.strerror}): choose another place with -o."
            ) from error
        except HeldError as error:
            raise OutputError(
                f"Another sd35 fetch is writing to {self.folder}: wait for it, or choose another place with "
                "-o."
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        has_begun = any(self.corner.glob("*.part")) or (self.corner / _NOTE).exists()
        if has_begun and not self._is_done:
            self._locked.release()
            return
        self._locked.clear()
        if self._is_new and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def begun(self) -> Origin | None:
        """What an earlier, unfinished fetch was bringing here."""
        try:
            return Origin(**json.loads((self.corner / _NOTE).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            return None  # cut off while it was written: nothing had been fetched yet

    def begin(self, origin: Origin) -> None:
        """Note what is being fetched: a later run goes on with the same commit."""
        try:
            (self.corner / _NOTE).write_text(json.dumps(asdict(origin)), encoding="utf-8", newline="\n")
        except OSError as error:
            raise OutputError(f"{self.folder} can't be written ({error.strerror}): free the disk.") from error

    def whole(self, file: RemoteFile, progress: Progress) -> str | None:
        """SHA-256 of the file if it lies under its name with the promised content, else None."""
        path = self.folder / file.path
        promised = file.sha256 or file.blob
        if promised is None or path.is_symlink() or not path.is_file() or path.stat().st_size != file.size:
            return None
        checksum = Checksum(file)
        with path.open("rb") as content:
            while chunk := content.read(_BLOCK):
                checksum.update(chunk)
                progress.add(len(chunk))
        if checksum.is_right:
            return checksum.sha256
        progress.add(-file.size)
        return None

    def part(self, file: RemoteFile, progress: Progress) -> Part:
        """The file's part, as far as it has come."""
        return Part(self.corner, file, progress)

    def check_room(self, files: list[RemoteFile]) -> None:
        """OutputError unless the disk has room for what is still to come."""
        held = sum(path.stat().st_size for path in self.corner.rglob("*") if path.is_file())
        needed = max(0, sum(file.size for file in files) - held)
        free = shutil.disk_usage(self.folder).free
        if needed and free < needed + _MARGIN:
            raise OutputError(
                f"{self.folder} has {free / 1e9:.2f} GB free and {needed / 1e9:.2f} GB are still to come: "
                "free the disk or choose another place with -o."
            )

    def finish(self, manifest: Manifest) -> None:
        """The folder is complete: say so in it, and clear the corner."""
        try:
            (self.corner / _NOTE).unlink(missing_ok=True)
            write_manifest(self.corner, manifest)
            (self.corner / FILE_NAME).replace(self.folder / FILE_NAME)
        except OSError as error:
            raise OutputError(f"{self.folder} can't be written ({error.strerror}): free the disk.") from error
        self._is_done = True
