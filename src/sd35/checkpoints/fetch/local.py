"""A folder on this machine (another disk, a share, huggingface_hub's cache) as a remote.

A folder promises its content only if it has a manifest. Without one its files are copied as they are, hashed
while they are read, and each is looked at for what most often lies in its place: a Git LFS pointer.
"""

from pathlib import Path
from typing import Self

from sd35.checkpoints.fetch.listing import POINTER_SIZE, RemoteFile, pointer
from sd35.checkpoints.fetch.part import Part
from sd35.checkpoints.manifest import read_manifest
from sd35.checkpoints.progress import Progress
from sd35.checkpoints.tree import walk
from sd35.errors import CheckpointError, MissingError

_BLOCK = 1 << 20


class LocalFolder:
    """A folder to copy from."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise MissingError(f"There is no folder {path}: give the path of one.")
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def place(self) -> str:
        """The folder's path."""
        return str(self._path)

    def pin(self, revision: str | None) -> str | None:
        """A folder has no commits."""
        return None

    def files(self) -> list[RemoteFile]:
        """Its regular files (links are followed), with their manifest's hashes."""
        manifest = read_manifest(self._path)
        known = manifest.files if manifest else {}
        paths = [path for path in walk(self._path) if path.is_file()]
        return [
            RemoteFile(name, path.stat().st_size, known[name].sha256 if name in known else None)
            for path, name in ((path, path.relative_to(self._path).as_posix()) for path in paths)
        ]

    def check(self, files: list[RemoteFile]) -> None:
        """Refuse pointers before anything is copied."""
        for file in files:
            if file.size < POINTER_SIZE and pointer(file.path, (self._path / file.path).read_bytes()):
                raise CheckpointError(
                    f"{self._path / file.path} is a Git LFS pointer, not the file itself: run `git lfs pull` "
                    "there, or fetch with --via git."
                )

    def prepare(self, files: list[RemoteFile], progress: Progress) -> None:
        """Nothing: each file is copied by itself."""

    def bring(self, part: Part, progress: Progress) -> None:
        """Copy one file; CheckpointError if it is not what the manifest promises."""
        part.discard()
        path = self._path / part.file.path
        try:
            with path.open("rb") as content:
                while chunk := content.read(_BLOCK):
                    part.write(chunk)
        except OSError as error:
            raise MissingError(f"{path} can't be read ({error.strerror}).") from error
        if not part.is_right:
            part.discard()
            raise CheckpointError(
                f"{path} is damaged: it is not what the folder's sd35.json says, or it changed while it was "
                "copied."
            )
