"""The pictures stored last, still in memory: whoever waited for one is answered without reading it back.

A waiting route wants its picture the moment after it was stored. Without this it would be fetched again from
the disk, or from a bucket across the network.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator

from sd35.serving.storage import Listed, Storage, StoredFile

REMEMBERED_BYTES = 64 * 2**20


class RecentPictures:
    """A `Storage` that hands everything to another one, and remembers what it stored last."""

    def __init__(self, storage: Storage, limit: int = REMEMBERED_BYTES) -> None:
        self._storage, self._limit = storage, limit
        self._guard = threading.Lock()  # of the two below
        self._pictures: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0

    def recall(self, name: str) -> bytes | None:
        """The bytes if they are remembered; never blocks."""
        with self._guard:
            return self._pictures.get(name)

    def put(self, name: str, data: bytes) -> StoredFile:
        """Store, then remember; what the storage refuses is not remembered."""
        self._forget(name)
        receipt = self._storage.put(name, data)
        with self._guard:
            self._pictures[name] = data
            self._size += len(data)
            while self._size > self._limit:
                _, oldest = self._pictures.popitem(last=False)
                self._size -= len(oldest)
        return receipt

    def open(self, name: str) -> bytes:
        """The bytes, from memory or from the storage."""
        remembered = self.recall(name)
        return self._storage.open(name) if remembered is None else remembered

    def url(self, name: str, expires_s: float) -> str:
        """The storage's own address."""
        return self._storage.url(name, expires_s)

    def delete(self, name: str) -> None:
        """Forget and remove."""
        self._forget(name)
        self._storage.delete(name)

    def files(self) -> Iterator[Listed]:
        """What the storage has."""
        return self._storage.files()

    def _forget(self, name: str) -> None:
        with self._guard:
            self._size -= len(self._pictures.pop(name, b""))
