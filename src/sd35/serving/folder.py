"""Pictures in a folder, and signed addresses for them.

A file is written under a temporary name (a leading dot, which no stored name has), flushed to the disk,
renamed, and the folder is flushed too: after a power cut there is the whole file or none. What a killed
server leaves under a temporary name is swept away when the folder is opened next.

A folder has no server that would sign addresses, so we do: HMAC-SHA256 over name and expiry with a secret of
the data folder. Whoever has the address has the file until it expires, as with a store's presigned address.
"""

import hashlib
import hmac
import os
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from urllib.parse import quote, urlencode

from sd35.errors import AccessError, MissingError, OutputError
from sd35.serving.storage import Listed, StoredFile, checked_name, expiry

SECRET_NAME = "url-secret"
_ABANDONED_SECONDS = 3600.0  # no write takes this long, so a temporary file of this age has no writer


class SignedUrls:
    """Addresses below `base` that carry an expiry and a proof that this server gave them out."""

    def __init__(self, base: str, secret: bytes) -> None:
        self._base, self._secret = base.rstrip("/"), secret

    def sign(self, name: str, expires_s: float) -> str:
        """The address of a file for `expires_s` seconds from now, or up to a sixth more."""
        expires = expiry(expires_s)
        query = urlencode({"expires": expires, "signature": self._signature(name, expires)})
        return f"{self._base}/{quote(name)}?{query}"

    def check(self, name: str, expires: str, signature: str) -> None:
        """AccessError unless `sign` made this address and its time is not over."""
        is_number = expires.isascii() and expires.isdigit() and len(expires) < 16
        expected = self._signature(name, int(expires) if is_number else 0)
        if not is_number or not hmac.compare_digest(expected.encode(), signature.encode()):
            raise AccessError(f"This address of {name} was not given out here: ask the job for its image.")
        if time.time() > int(expires):
            raise AccessError(f"The address of {name} has expired: ask the job again for a fresh one.")

    def _signature(self, name: str, expires: int) -> str:
        return hmac.new(self._secret, f"{expires}\n{name}".encode(), hashlib.sha256).hexdigest()


class FolderStorage:
    """A `Storage` below one folder of a local disk."""

    def __init__(self, root: Path, urls: SignedUrls) -> None:
        self.root, self.urls = root, urls
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._sweep()
        except OSError as error:
            raise _unwritable(root, error) from error

    def put(self, name: str, data: bytes) -> StoredFile:
        """Write, flush and rename; OutputError if the disk says no, and then nothing is left of it."""
        path = self._path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, data)
        except OSError as error:
            raise _unwritable(path, error) from error
        return StoredFile.of(name, data)

    def open(self, name: str) -> bytes:
        """The bytes of a file."""
        try:
            return self._path(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise missing(name) from error
        except OSError as error:
            raise OutputError(f"{name} can't be read ({error.strerror}): see to the disk.") from error

    def url(self, name: str, expires_s: float) -> str:
        """An address of ours; the server's file route asks `urls.check` before it opens the file."""
        return self.urls.sign(checked_name(name), expires_s)

    def delete(self, name: str) -> None:
        """Remove a file; folders that became empty stay for the next one."""
        path = self._path(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(path, error) from error

    def files(self) -> Iterator[Listed]:
        """All whole files."""
        for path in self._walk():
            if not path.name.startswith("."):
                yield from _listed(path, self.root)

    def _path(self, name: str) -> Path:
        return self.root / checked_name(name)

    def _walk(self) -> Iterator[Path]:
        for folder, _, names in os.walk(self.root):
            yield from (Path(folder, name) for name in names)

    def _sweep(self) -> None:
        """Remove what writers that were killed have left."""
        for path in self._walk():
            if path.name.startswith(".") and time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink(missing_ok=True)


def write_durably(path: Path, data: bytes) -> None:
    """Bytes under this name that survive a power cut, or an OSError and no trace of them."""
    temporary = path.parent / f".{path.name[:100]}-{secrets.token_hex(8)}"
    with open(temporary, "xb", buffering=0, opener=_private) as file:
        try:
            left = memoryview(data)
            while left:  # a nearly full disk takes a part, and says no to the rest
                left = left[file.write(left) :]
            os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    _flush_folder(path.parent)


def read_secret(folder: Path) -> bytes:
    """The 32 bytes that sign this data folder's addresses, made at the first call, for us alone."""
    path = folder / SECRET_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _offer(path, secrets.token_bytes(32))
        secret = path.read_bytes()
    except OSError as error:
        raise _unwritable(path, error) from error
    if len(secret) != 32:
        raise OutputError(f"{path} is damaged: remove it, and addresses given out before stop working.")
    return secret


def missing(name: str) -> MissingError:
    """The sentence for a file that is not there."""
    return MissingError(f"There is no stored file {name}: it was never stored, or its time is over.")


def _offer(path: Path, content: bytes) -> None:
    """Put a whole file there unless somebody was faster: a link, unlike a rename, replaces nothing."""
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        try:
            os.link(file.name, path)
        except FileExistsError:
            return
    _flush_folder(path.parent)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _listed(path: Path, root: Path) -> Iterator[Listed]:
    try:
        status = path.stat()
    except FileNotFoundError:  # deleted since the folder was read
        return
    yield Listed(path.relative_to(root).as_posix(), status.st_size, status.st_mtime)


def _flush_folder(folder: Path) -> None:
    if sys.platform != "win32":  # which opens no folders
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path} can't be written ({error.strerror}): free the disk or choose another folder.")
