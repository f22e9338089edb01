"""Pictures that are still in memory."""

import pytest

from sd35.errors import MissingError, NetworkError
from sd35.serving.recent import RecentPictures

from .stores import Memory


def test_what_was_stored_last_needs_no_store() -> None:
    """A picture just stored is there though the store has gone; an older one, beyond the bound, is not."""
    memory = Memory()
    storage = RecentPictures(memory, limit=5)
    storage.put("old.png", b"1234")
    storage.put("new.png", b"5678")
    memory.failure = NetworkError("down")
    assert (storage.open("new.png"), storage.recall("old.png")) == (b"5678", None)
    with pytest.raises(NetworkError):
        storage.open("old.png")


def test_a_refused_picture_is_not_remembered() -> None:
    """What the store did not take is not given out, not even its predecessor."""
    memory = Memory()
    storage = RecentPictures(memory)
    storage.put("a.png", b"first")
    memory.failure = NetworkError("down")
    with pytest.raises(NetworkError):
        storage.put("a.png", b"second")
    assert storage.recall("a.png") is None


def test_a_deleted_picture_is_forgotten() -> None:
    """Deleting leaves nothing to open; the same name may be stored again and again within the bound."""
    storage = RecentPictures(Memory(), limit=10)
    for _ in range(5):
        storage.put("a.png", b"12345678")
    assert storage.recall("a.png") == b"12345678"
    storage.delete("a.png")
    with pytest.raises(MissingError):
        storage.open("a.png")
