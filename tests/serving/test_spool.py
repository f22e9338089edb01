"""The spool: what a failing store costs, which is time and nothing else."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sd35.errors import MissingError, NetworkError, OutputError, RequestError
from sd35.serving.folder import SignedUrls
from sd35.serving.spool import SpooledStorage

from .stores import Memory

URLS = SignedUrls("http://here/files", b"s" * 32)
DOWN = NetworkError("The store is down.")
Open = Callable[..., SpooledStorage]


@pytest.fixture
def memory() -> Memory:
    """The store behind the spool."""
    return Memory()


@pytest.fixture
def spooled(memory: Memory, tmp_path: Path) -> Iterator[Open]:
    """Opens a spool in the test's folder; its first knock is so late that the test calls `drain` itself."""
    opened = []

    def open_(store: Memory = memory, first_pause_s: float = 600) -> SpooledStorage:
        opened.append(SpooledStorage(store, tmp_path / "spool", URLS, first_pause_s=first_pause_s))
        return opened[-1]

    yield open_
    for each in opened:
        each.close()


def fail(memory: Memory, storage: SpooledStorage, name: str = "first.png") -> None:
    """Let the store fail, put one file, and wait until the thread has knocked in vain and pauses."""
    memory.failure = DOWN
    storage.put(name, b"1")
    while len(memory.puts) < 2:
        threading.Event().wait(0.005)


def test_a_working_store_gets_everything_at_once(memory: Memory, spooled: Open) -> None:
    """Nothing touches the spool while the store takes what it is given."""
    storage = spooled()
    assert storage.put("a.png", b"one").size == 3
    assert memory.content == {"a.png": b"one"}
    assert storage.waiting == 0
    assert storage.url("a.png", 60) == "memory:a.png?60"


def test_nothing_is_lost_while_the_store_is_down(memory: Memory, spooled: Open) -> None:
    """Files wait, can be opened and have an address of ours; when the store is back they are in it."""
    storage = spooled()
    fail(memory, storage)
    for number in range(20):
        storage.put(f"{number}.png", bytes([number]))
    assert storage.waiting == 21
    assert "down" in (storage.trouble or "")
    assert storage.open("7.png") == b"\7"
    assert storage.url("7.png", 60).startswith("http://here/files/7.png?expires=")
    memory.failure = None
    assert storage.drain()
    assert memory.content == {"first.png": b"1"} | {f"{n}.png": bytes([n]) for n in range(20)}
    assert (storage.waiting, storage.trouble) == (0, None)
    assert storage.url("7.png", 60).startswith("memory:")
    assert storage.wait_until_empty(0)


def test_the_thread_empties_the_spool_by_itself(memory: Memory, spooled: Open) -> None:
    """Nobody has to call `drain`: the store's return is noticed."""
    storage = spooled(first_pause_s=0.01)
    fail(memory, storage)
    memory.failure = None
    assert storage.wait_until_empty(10)
    assert memory.content == {"first.png": b"1"}


def test_only_the_first_put_pays_for_a_dead_store(memory: Memory, spooled: Open) -> None:
    """Once the store has failed, puts go to the disk without asking it."""
    storage = spooled()
    fail(memory, storage)
    asked = len(memory.puts)
    for number in range(10):
        storage.put(f"{number}.png", b"")
    assert len(memory.puts) == asked


def test_a_new_start_goes_on(memory: Memory, spooled: Open) -> None:
    """What an ended server left in the spool reaches the store when the next one starts."""
    storage = spooled()
    fail(memory, storage)
    storage.close()
    memory.failure = None
    assert spooled().wait_until_empty(10)
    assert memory.content == {"first.png": b"1"}


def test_the_newest_of_a_name_wins(memory: Memory, spooled: Open) -> None:
    """A name put twice while the store is down arrives as it was put last."""
    storage = spooled()
    fail(memory, storage, "a.png")
    storage.put("a.png", b"newer")
    memory.failure = None
    storage.drain()
    assert memory.content == {"a.png": b"newer"}


def test_a_put_during_draining_is_not_overwritten(memory: Memory, spooled: Open) -> None:
    """A newer picture that comes while the older one is on its way to the store ends up as the one kept."""
    storage = spooled()
    fail(memory, storage, "a.png")
    memory.failure = None
    memory.gate.clear()
    asked = len(memory.puts)
    with ThreadPoolExecutor(2) as pool:
        draining = pool.submit(storage.drain)
        while len(memory.puts) == asked:
            threading.Event().wait(0.005)
        newer = pool.submit(storage.put, "a.png", b"newer")
        memory.gate.set()
        draining.result(10)
        newer.result(10)
    storage.drain()
    assert memory.content == {"a.png": b"newer"}


def test_a_refused_bucket_keeps_pictures_too(memory: Memory, spooled: Open) -> None:
    """Denied access is no reason to lose a picture; the sentence says what to mend, and mending is enough."""
    storage = spooled()
    memory.failure = OutputError("Access is denied.")
    storage.put("a.png", b"1")
    assert storage.trouble == "Access is denied."
    memory.failure = None
    storage.drain()
    assert memory.content == {"a.png": b"1"}


def test_one_refused_file_holds_up_no_other(memory: Memory, spooled: Open) -> None:
    """The files behind one that the store will not have are sent."""
    storage = spooled()
    fail(memory, storage, "a.png")
    storage.put("b.png", b"2")
    memory.failure, memory.refused = OutputError("Not this one."), {"a.png"}
    assert not storage.drain()
    assert memory.content == {"b.png": b"2"}
    assert (storage.waiting, storage.trouble) == (1, "Not this one.")


def test_damaged_bytes_are_never_sent(memory: Memory, spooled: Open, tmp_path: Path) -> None:
    """A spooled file whose bytes changed on the disk is set aside and reported as missing."""
    storage = spooled()
    fail(memory, storage, "a.png")
    storage.put("b.png", b"2")
    waiting = tmp_path / "spool" / "waiting" / "a.png"
    waiting.write_bytes(waiting.read_bytes()[:-1] + b"X")
    with pytest.raises(MissingError, match="damaged"):
        storage.open("a.png")
    memory.failure = None
    assert storage.drain()
    assert memory.content == {"b.png": b"2"}
    assert (tmp_path / "spool" / "damaged" / "a.png").exists()


def test_no_store_and_no_disk_is_an_error(
    memory: Memory, spooled: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the store down and the disk full, `put` says so, keeps nothing, and works again with room."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    storage = spooled()
    fail(memory, storage)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            storage.put("a.png", b"1")
    assert storage.waiting == 1
    storage.put("a.png", b"1")
    assert storage.waiting == 2


def test_trouble_does_not_outlive_an_empty_spool(
    memory: Memory, spooled: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When store and disk failed and nothing waits, the next put asks the store again."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    storage = spooled()
    memory.failure = DOWN
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError):
        storage.put("a.png", b"1")
    memory.failure = None
    storage.put("a.png", b"1")
    assert memory.content == {"a.png": b"1"}
    assert storage.trouble is None


def test_deleting_reaches_both(memory: Memory, spooled: Open) -> None:
    """A deleted file is gone from spool and store, and does not come back with the store."""
    storage = spooled()
    fail(memory, storage, "a.png")
    memory.failure = None
    memory.content["a.png"] = b"older"
    storage.delete("a.png")
    assert storage.drain()
    assert memory.content == {}
    with pytest.raises(MissingError):
        storage.open("a.png")


def test_a_listing_shows_each_file_once(memory: Memory, spooled: Open) -> None:
    """What waits is listed with what is stored; a name that is in both is one file."""
    memory.content = {"a.png": b"older", "b.png": b"2"}
    storage = spooled()
    fail(memory, storage, "a.png")
    storage.put("c.png", b"3")
    memory.failure = None
    assert sorted(file.name for file in storage.files()) == ["a.png", "b.png", "c.png"]


def test_a_bad_name_is_the_callers_fault(memory: Memory, spooled: Open) -> None:
    """A name that leaves the folder is refused at once, and is no trouble of the store."""
    storage = spooled()
    with pytest.raises(RequestError):
        storage.put("../a.png", b"")
    assert storage.trouble is None
