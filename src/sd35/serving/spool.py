"""A spool in front of a store: pictures wait on the disk while the store is down, and nothing is lost.

While the store works, a `put` goes straight to it. When it fails, for whatever reason, the bytes are
written durably below the spool's folder and `put` succeeds: the picture is safe, only not there yet. From
then on every `put` spools at once, without paying for a timeout each, until a thread that knocks with
growing pauses has found the store at work again and has emptied the spool. A new start goes on with what
lies there.

Order is what could go wrong. A newer picture under a name that is still spooled must not be overwritten by
the older one later, so everything about one name happens under that name's lock, and a name that is in the
spool goes through the spool. Each spooled file begins with the SHA-256 of the rest: bytes that the disk
damaged are set aside, and never sent.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from sd35.errors import MissingError, NetworkError, OutputError, UnavailableError
from sd35.serving.folder import FolderStorage, SignedUrls
from sd35.serving.storage import Listed, Storage, StoredFile, checked_name

LOG = logging.getLogger(__name__)
_LOCKS = 64
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
_DIGEST_BYTES = 32
_DAMAGED = "damaged"


class SpooledStorage:
    """A `Storage` that hands everything to another one, and keeps what that one can't take."""

    def __init__(
        self, store: Storage, folder: Path, urls: SignedUrls, *, first_pause_s: float = _FIRST_PAUSE_S
    ) -> None:
        self._store, self._urls = store, urls
        self._spool = FolderStorage(folder / "waiting", urls)
        self._damaged = FolderStorage(folder / _DAMAGED, urls)
        self._first_pause_s = first_pause_s
        self._locks = [threading.RLock() for _ in range(_LOCKS)]
        self._guard = threading.Lock()  # of the two below
        self._waiting = {file.name for file in self._spool.files()}
        self.trouble: str | None = None  # why the store took nothing, for /readyz and the alerts
        self._wake, self._closed, self._empty = threading.Event(), threading.Event(), threading.Event()
        if self._waiting:
            self._wake.set()
        else:
            self._empty.set()
        self._thread = threading.Thread(target=self._knock, name="spool", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many files wait for the store."""
        return len(self._waiting)

    def close(self) -> None:
        """End the thread; what waits goes on waiting on the disk."""
        self._closed.set()
        self._wake.set()
        self._thread.join()

    def wait_until_empty(self, seconds: float) -> bool:
        """Whether the spool was empty within this time."""
        return self._empty.wait(seconds)

    def put(self, name: str, data: bytes) -> StoredFile:
        """Into the store, or else onto the disk; OutputError only if neither takes it."""
        with self._lock(checked_name(name)):
            if not self._is_waiting(name) and (self.trouble is None or not self.waiting):
                try:
                    receipt = self._store.put(name, data)
                except UnavailableError as error:
                    self._store_failed(error)
                else:
                    self.trouble = None
                    return receipt
            return self._keep(name, data)

    def open(self, name: str) -> bytes:
        """The bytes, from wherever they are."""
        with self._lock(checked_name(name)):
            if self._is_waiting(name):
                return self._whole(name)
        return self._store.open(name)

    def url(self, name: str, expires_s: float) -> str:
        """The store's presigned address, or one of this server while the file waits."""
        if self._is_waiting(checked_name(name)):
            return self._urls.sign(name, expires_s)
        return self._store.url(name, expires_s)

    def delete(self, name: str) -> None:
        """Remove it from both."""
        with self._lock(checked_name(name)):
            if self._is_waiting(name):
                self._forget(name)
            self._store.delete(name)

    def files(self) -> Iterator[Listed]:
        """What is in the store, and then what waits and is not there yet."""
        waiting = {file.name: file for file in self._spool.files()}
        for file in self._store.files():
            waiting.pop(file.name, None)
            yield file
        yield from waiting.values()

    def drain(self) -> bool:
        """Offer the store everything that waits; whether it is empty now.

        Ends at the first NetworkError, for the others would fail alike; a file that the store refuses stays.
        """
        with self._guard:
            waiting = sorted(self._waiting)
        refused = False
        for name in waiting:
            try:
                self._send(name)
            except UnavailableError as error:
                self._store_failed(error)
                if isinstance(error, NetworkError):
                    return False
                refused = True
        if not refused:
            self.trouble = None  # from here on, each put tries the store first
        return not refused and not self.waiting

    def _send(self, name: str) -> None:
        with self._lock(name):
            if not self._is_waiting(name):
                return
            try:
                data = self._whole(name)
            except MissingError as error:
                LOG.error("spool: %s", error)
                self._set_aside(name)
                return
            self._store.put(name, data)
            self._forget(name)

    def _knock(self) -> None:
        """The thread: wait for something to wait, then try with growing pauses until the spool is empty."""
        while True:
            self._wake.wait()
            self._wake.clear()
            pause = self._first_pause_s
            while not self._closed.is_set() and not self._drained():
                self._closed.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            if self._closed.is_set():
                return

    def _drained(self) -> bool:
        begun = time.monotonic()
        try:
            is_empty = self.drain()
        except Exception as error:  # this thread must outlive whatever a library raises
            LOG.exception("spool: draining failed")
            self.trouble = f"The spool can't be emptied ({type(error).__name__})."
            return False
        if is_empty:
            LOG.info("spool: empty again after %.1f s", time.monotonic() - begun)
        return is_empty

    def _store_failed(self, error: UnavailableError) -> None:
        if self.trouble is None:
            LOG.warning("spool: %s Pictures wait on the disk.", error)
        self.trouble = str(error)

    def _keep(self, name: str, data: bytes) -> StoredFile:
        self._spool.put(name, hashlib.sha256(data).digest() + data)
        with self._guard:
            self._waiting.add(name)
            self._empty.clear()
        self._wake.set()
        return StoredFile.of(name, data)

    def _whole(self, name: str) -> bytes:
        sealed = self._spool.open(name)
        digest, data = sealed[:_DIGEST_BYTES], sealed[_DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            raise MissingError(f"The spooled file {name} is damaged on the disk: run its job again.")
        return data

    def _set_aside(self, name: str) -> None:
        """Damaged bytes are kept for whoever wants to look at them, and block nothing."""
        try:
            self._damaged.put(name, self._spool.open(name))
        except (MissingError, OutputError) as error:
            LOG.error("spool: %s", error)
        self._forget(name)

    def _forget(self, name: str) -> None:
        self._spool.delete(name)
        with self._guard:
            self._waiting.discard(name)
            if not self._waiting:
                self._empty.set()

    def _is_waiting(self, name: str) -> bool:
        with self._guard:
            return name in self._waiting

    def _lock(self, name: str) -> threading.RLock:
        return self._locks[hash(name) % _LOCKS]
