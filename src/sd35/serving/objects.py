"""Pictures in an S3-compatible object store, through obstore.

One PUT makes one object whole or not at all, and Signature V4 covers the SHA-256 of the body, so the store
itself refuses bytes that changed on the way. What is left to us is to be impatient: the library's own
patience is ten tries in three minutes, and a picture that waits for a store belongs into the spool after
seconds.

Alibaba Cloud OSS takes virtual-host style only (https://bucket.endpoint/name). With a custom endpoint the
library leaves the bucket out of such addresses without a word, so it is put into the endpoint here. It also
reports a missing bucket and a missing object alike, as FileNotFoundError: at a `put` it can only be the
bucket.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from sd35.errors import LibraryError, NetworkError, OutputError, RequestError
from sd35.serving.folder import missing
from sd35.serving.storage import Listed, StoredFile, checked_name, expiry

try:
    import obstore
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
    from obstore.store import S3Store
except ImportError as error:
    raise LibraryError(
        "Storing pictures in an object store needs the package obstore: pip install 'sd35-fp8[serve]'."
    ) from error

_LONGEST_URL_SECONDS = 7 * 86400  # the limit of Signature V4
_REMEMBERED_URLS = 4096  # some 2 MB
# For whoever fetches from the store: another picture under the same name there is none.
_CACHE_CONTROL = "private, max-age=86400, immutable"


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Which bucket, where, and who we are there.

    `endpoint` None means Amazon's own; keys None means the AWS_* variables or the machine's role.
    `virtual_hosted` puts the bucket's name into the host's, as OSS demands. `patience_s` is how long one
    operation may take, tries and all.
    """

    name: str
    prefix: str = ""
    endpoint: str | None = None
    region: str = "us-east-1"
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    virtual_hosted: bool = False
    patience_s: float = 10.0

    def __post_init__(self) -> None:
        if self.endpoint is None:
            return
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
            raise RequestError(
                f"{self.endpoint} is no store's endpoint: give scheme and host alone, as in "
                "https://oss-cn-hangzhou.aliyuncs.com."
            )

    @property
    def address(self) -> str | None:
        """The endpoint as the library needs it: the bucket in the host's name where it belongs."""
        if self.endpoint is None or not self.virtual_hosted:
            return self.endpoint
        parts = urlsplit(self.endpoint)
        host = parts.netloc if parts.netloc.startswith(f"{self.name}.") else f"{self.name}.{parts.netloc}"
        return f"{parts.scheme}://{host}"


class ObjectStorage:
    """A `Storage` in one bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self._store = _connect(bucket)
        self._presigned = lru_cache(_REMEMBERED_URLS)(self._presign)

    def put(self, name: str, data: bytes) -> StoredFile:
        """One PUT; OutputError if the bucket refuses or is not there, NetworkError if the store is down."""
        checked_name(name)
        with self._trouble("written to"):
            obstore.put(self._store, name, data, attributes=_attributes(name))
        return StoredFile.of(name, data)

    def open(self, name: str) -> bytes:
        """The bytes of an object."""
        checked_name(name)
        with self._trouble("read"):
            try:
                return bytes(obstore.get(self._store, name).bytes())
            except FileNotFoundError as error:
                raise missing(name) from error

    def url(self, name: str, expires_s: float) -> str:
        """A presigned GET; made here, without asking the store."""
        return self._presigned(checked_name(name), expiry(expires_s))

    def _presign(self, name: str, expires: int) -> str:
        """An address that ends then; it tells when it was made, so only a kept one stays the same."""
        life_s = max(1, min(round(expires - time.time()), _LONGEST_URL_SECONDS))
        with self._trouble("signed for"):
            return obstore.sign(self._store, "GET", name, timedelta(seconds=life_s))

    def delete(self, name: str) -> None:
        """Remove an object."""
        checked_name(name)
        with self._trouble("cleared"):
            try:
                obstore.delete(self._store, name)
            except FileNotFoundError:
                return

    def files(self) -> Iterator[Listed]:
        """All objects below the prefix."""
        with self._trouble("listed"):
            for page in obstore.list(self._store):
                for found in page:
                    yield Listed(found["path"], found["size"], found["last_modified"].timestamp())

    @contextmanager
    def _trouble(self, done: str) -> Iterator[None]:
        """Turn the library's errors into ours; `done` is what the bucket could not be."""
        where = f"The bucket {self.bucket.name} at {self.bucket.endpoint or 'Amazon S3'} can't be {done}"
        try:
            yield
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise OutputError(f"{where}, for access is denied: see to its keys and policy.") from error
        except FileNotFoundError as error:
            raise OutputError(f"{where}, for it does not exist: make it, or correct its name.") from error
        except BaseError as error:
            raise NetworkError(f"{where}, for the store fails ({_first_line(error)}).") from error


def _connect(bucket: Bucket) -> S3Store:
    keys: dict[str, Any] = {}
    if bucket.access_key_id is not None:
        keys = {"access_key_id": bucket.access_key_id, "secret_access_key": bucket.secret_access_key}
    if bucket.address is not None:
        keys["endpoint"] = bucket.address
    try:
        return S3Store(
            bucket.name,
            prefix=bucket.prefix or None,
            region=bucket.region,
            virtual_hosted_style_request=bucket.virtual_hosted,
            client_options={
                "allow_http": (bucket.endpoint or "").startswith("http://"),
                "connect_timeout": timedelta(seconds=min(3.0, bucket.patience_s)),
                "timeout": timedelta(seconds=bucket.patience_s),
            },
            retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=bucket.patience_s)},
            **keys,
        )
    except BaseError as error:
        raise RequestError(f"The bucket {bucket.name} can't be used ({_first_line(error)}).") from error


def _attributes(name: str) -> dict[str, str]:
    kinds = {"png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "webp": "image/webp"}
    kind = kinds.get(name.rpartition(".")[2].lower(), "application/octet-stream")
    return {"Content-Type": kind, "Cache-Control": _CACHE_CONTROL}


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
