"""What the job core asks of its neighbours: where pictures go, which prompts pass, who is calling.

Each is a Protocol with the plainest thing that fulfils it: a folder, a policy that lets everything pass, a
door without a lock.
"""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Protocol

from sd35.errors import MissingError, OutputError


@dataclass(frozen=True)
class StoredFile:
    """A file that is safely in the storage."""

    name: str
    size: int  # bytes
    sha256: str


class Storage(Protocol):
    """Where finished pictures are kept. Calls may block; a name put twice has the later content."""

    def put(self, name: str, data: bytes) -> StoredFile:
        """Keep a file, whole or not at all; OutputError or NetworkError if it can't be."""

    def open(self, name: str) -> bytes:
        """The file's content; MissingError if there is none."""

    def url(self, name: str, expires_s: int) -> str:
        """An address for clients that works so long; a path where this server itself delivers the file."""

    def delete(self, name: str) -> None:
        """Forget the file; none of that name is no error."""


@dataclass(frozen=True)
class Verdict:
    """What a policy says of a text; `list_name` is the list that forbids it."""

    allowed: bool
    list_name: str | None = None


class PromptPolicy(Protocol):
    """Which prompts are drawn."""

    def judge(self, text: str, key_id: str | None) -> Verdict:
        """Whether this key may ask for this text."""


@dataclass(frozen=True, kw_only=True)
class Quotas:
    """How much a key may ask for: its share of a busy server, and the jobs that it may have waiting."""

    queued_jobs: int | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Caller:
    """Who asks, what they may do, and how much."""

    key_id: str | None = None
    scopes: frozenset[str] = frozenset()
    quotas: Quotas = field(default_factory=Quotas)


class KeyStore(Protocol):
    """Who is calling."""

    def authenticate(self, header: str | None) -> Caller | None:
        """The caller behind an Authorization header; None: nobody we know."""


class OpenDoor:
    """Everyone is the same anonymous caller: right for a server that only this machine can reach."""

    def authenticate(self, header: str | None) -> Caller:
        """The one caller there is."""
        return Caller()


class AllowAll:
    """A policy without lists."""

    def judge(self, text: str, key_id: str | None) -> Verdict:
        """Yes."""
        return Verdict(allowed=True)


@dataclass(frozen=True)
class PlainFolder:
    """Pictures as files of one folder, delivered by this server; their names can't be guessed."""

    folder: Path
    route: str = "/files"

    def put(self, name: str, data: bytes) -> StoredFile:
        """Write under another name, bring it to the disk, rename."""
        target = self._path(name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=self.folder, prefix=".", delete=False) as file:
                try:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                    Path(file.name).replace(target)
                finally:
                    Path(file.name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"{target} can't be written ({error.strerror}): free the disk or choose another --data-dir."
            ) from error
        return StoredFile(name, len(data), hashlib.sha256(data).hexdigest())

    def open(self, name: str) -> bytes:
        """The file's content."""
        try:
            return self._path(name).read_bytes()
        except OSError as error:
            raise MissingError(f"There is no picture {name!r}.") from error

    def url(self, name: str, expires_s: int) -> str:
        """A path of this server; it works as long as the file is there."""
        return f"{self.route}/{name}"

    def delete(self, name: str) -> None:
        """Forget the file."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        if not name or name.startswith(".") or not all(c.isalnum() or c in "._-" for c in name):
            raise MissingError(f"There is no picture {name!r}.")
        return self.folder / name
