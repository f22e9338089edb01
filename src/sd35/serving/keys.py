"""API keys: who may ask for what, and how much of it.

A key is `sd35_<id>_<secret>`. The id (64 random bits) is no secret: it names the row, the records and the
policy of the prompt filter. The secret is 256 random bits, shown once and kept as its SHA-256. A slow hash
(scrypt, Argon2) is for passwords, which people choose and attackers guess; nobody guesses 256 random bits,
and a hash that takes 100 ms at every request would let anyone stop the server with wrong keys. Hashes are
compared in constant time. The row is found by the id, so the time of the look-up tells nothing about the
secret.

`keys.sqlite3` lies in the data folder, apart from the jobs: `sd35 keys` writes it while servers read it, and
SQLite's own locks make that safe. Every authentication looks at the file's change counter and reads the rows
anew when it has moved, so a revoked key is refused at once and a request costs no query.
Revoked rows stay: revoking the last key does not open the door again.
"""

import base64
import binascii
import hashlib
import hmac
import json
import os
import re
import secrets
import sqlite3
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sd35.errors import AccessError, MissingError, OutputError, RequestError, ScopeError

FILE_NAME = "keys.sqlite3"
SCOPES = ("generate", "read", "admin")  # draw; look at models, records and metrics; load, pause, change
_KEY = re.compile(r"sd35_([0-9a-f]{16})_([0-9A-Za-z_-]{43})")
_LOCK_SECONDS = 5.0
# SQLite counts a file's transactions there, big-endian. Source: https://sqlite.org/fileformat.html (1.3.7)
_COUNTER_BYTES, _COUNTER_AT = 4, 24
_TABLE = """
CREATE TABLE IF NOT EXISTS keys (
    key_id TEXT PRIMARY KEY, name TEXT NOT NULL, secret_sha256 BLOB NOT NULL, scopes TEXT NOT NULL,
    quotas TEXT NOT NULL, created REAL NOT NULL, revoked REAL
) STRICT
"""


@dataclass(frozen=True, kw_only=True)
class Quotas:
    """Limits of one key; None means no limit of its own. `weight` is its share of a busy server."""

    images_per_day: int | None = None
    megapixel_steps_per_day: float | None = None
    queued_jobs: int | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        for field, value in asdict(self).items():
            if value is not None and not 0 < value < float("inf"):
                raise RequestError(f"{field} can't be {value}: give a positive number.")


@dataclass(frozen=True)
class Caller:
    """Who is asking: `key_id` is None for anyone, where no key was ever made."""

    key_id: str | None
    scopes: frozenset[str]
    quotas: Quotas

    def require(self, scope: str) -> None:
        """ScopeError unless the caller may do what `scope` names; `admin` may do everything."""
        if not self.scopes & {scope, "admin"}:
            raise ScopeError(
                f"The key {self.key_id} has no scope {scope!r}: ask for a key that was made with "
                f"`sd35 keys add NAME --scope {scope}`."
            )


@dataclass(frozen=True, kw_only=True)
class Key:
    """What is known about a key: everything but its secret. Times are seconds since 1970."""

    key_id: str
    name: str
    scopes: tuple[str, ...]
    quotas: Quotas
    created: float
    revoked: float | None


ANYONE = Caller(None, frozenset(SCOPES), Quotas())


class KeyStore:
    """The keys of one data folder; safe to use from many threads and many processes at once."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.path.touch(mode=0o600)
        except OSError as error:
            raise OutputError(
                f"{self.path} can't be made ({error.strerror}): choose another data folder."
            ) from error
        self._counting = os.open(self.path, os.O_RDONLY)
        self._seen: tuple[bytes, dict[str, tuple[Any, ...]]] = (b"", {})  # counter, then rows by id
        self._connection = sqlite3.connect(self.path, timeout=_LOCK_SECONDS, check_same_thread=False)
        with self._transaction() as connection:
            connection.execute(_TABLE)

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()
        os.close(self._counting)  # afterwards: closing it ends this process's locks on the file

    @property
    def is_current(self) -> bool:
        """Whether `authenticate` can answer from memory, without waiting for the file."""
        return self._seen[0] == self._counter()

    @property
    def is_open(self) -> bool:
        """Whether anyone may come in: no key was ever made here."""
        with self._transaction() as connection:
            return not connection.execute("SELECT 1 FROM keys LIMIT 1").fetchone()

    def add(
        self, name: str, scopes: Iterable[str] = ("generate", "read"), quotas: Quotas | None = None
    ) -> tuple[Key, str]:
        """Make a key; returns what is kept, and the text that the caller shows and nobody can show again."""
        key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        chosen = _checked_scopes(scopes)
        key = Key(
            key_id=key_id,
            name=_checked_name(name),
            scopes=chosen,
            quotas=quotas or Quotas(),
            created=time.time(),
            revoked=None,
        )
        row = (
            key_id,
            key.name,
            _hash(secret),
            json.dumps(chosen),
            json.dumps(asdict(key.quotas)),
            key.created,
        )
        with self._transaction() as connection:
            connection.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, NULL)", row)
        return key, f"sd35_{key_id}_{secret}"

    def keys(self) -> list[Key]:
        """All keys ever made, oldest first."""
        with self._transaction() as connection:
            rows = connection.execute("SELECT * FROM keys ORDER BY created, key_id").fetchall()
        return [_key(row) for row in rows]

    def revoke(self, key_id: str) -> None:
        """End a key, at once and for good; MissingError if there is none of this id that still works."""
        with self._transaction() as connection:
            ended = connection.execute(
                "UPDATE keys SET revoked = ? WHERE key_id = ? AND revoked IS NULL", (time.time(), key_id)
            ).rowcount
        if not ended:
            raise MissingError(f"There is no working key {key_id!r}: `sd35 keys list` shows those there are.")

    def authenticate(self, header: str | None) -> Caller:
        """Who sends this `Authorization` header (Bearer, or Basic with the key as its password).

        Where no key was ever made, anyone with any header. Otherwise AccessError without a working key, and
        the same sentence for an unknown, a wrong and a revoked one.
        """
        found, rows = _KEY.fullmatch(_shown_key(header)), self._rows()
        if not rows:
            return ANYONE
        row = rows.get(found[1]) if found else None
        if not found or row is None or row[6] is not None or not hmac.compare_digest(row[2], _hash(found[2])):
            raise AccessError(
                "This server asks for a valid API key: send it as `Authorization: Bearer sd35_...`; "
                "`sd35 keys add NAME` on the server makes one."
            )
        key = _key(row)
        return Caller(key.key_id, frozenset(key.scopes), key.quotas)

    def _rows(self) -> dict[str, tuple[Any, ...]]:
        """All rows by id. The counter is read first: a change in between is then noticed the next time."""
        counter = self._counter()
        if self._seen[0] != counter:
            with self._transaction() as connection:
                rows = connection.execute("SELECT * FROM keys").fetchall()
            self._seen = counter, {row[0]: row for row in rows}
        return self._seen[1]

    def _counter(self) -> bytes:
        if sys.platform != "win32":
            return os.pread(self._counting, _COUNTER_BYTES, _COUNTER_AT)
        raise NotImplementedError("only a server asks for keys, and `sd35 serve` is refused there")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._lock, self._connection:
                yield self._connection
        except sqlite3.Error as error:
            raise OutputError(
                f"{self.path} can't be used ({error}): end what holds or fills it, then try again."
            ) from error


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("ascii")).digest()


def _shown_key(header: str | None) -> str:
    """The key inside a header, "" where there is none that could be read."""
    scheme, _, value = (header or "").partition(" ")
    if scheme.lower() != "basic":
        return value.strip() if scheme.lower() == "bearer" else ""
    try:
        user, _, password = base64.b64decode(value.strip(), validate=True).decode("ascii").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return ""
    return password or user


def _checked_name(name: str) -> str:
    if not name.strip() or len(name) > 100 or not name.isprintable():
        raise RequestError(f"A key can't be called {name!r}: give 1 to 100 printable characters.")
    return name


def _checked_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    chosen = tuple(sorted(set(scopes)))
    if not chosen or not set(chosen) <= set(SCOPES):
        raise RequestError(
            f"The scopes {', '.join(chosen) or '(none)'} mean nothing: {', '.join(SCOPES)} do."
        )
    return chosen


def _key(row: tuple[Any, ...]) -> Key:
    key_id, name, _, scopes, quotas, created, revoked = row
    return Key(
        key_id=key_id,
        name=name,
        scopes=tuple(json.loads(scopes)),
        quotas=Quotas(**json.loads(quotas)),
        created=created,
        revoked=revoked,
    )
