"""The time of pictures and records ends when it should, and nothing else goes."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from sd35.errors import NetworkError, RequestError
from sd35.serving import retention
from sd35.serving.folder import FolderStorage, SignedUrls
from sd35.serving.jobs import State
from sd35.serving.retention import DAY_S, Retention, Swept, Term, Terms
from sd35.serving.settings import ServerSettings
from sd35.serving.store import Store
from sd35.serving.uploads import Uploads

from .stores import Memory
from .test_fair_queue import job

NOW = 1_000 * DAY_S


def aged(folder: Path, **days: float) -> FolderStorage:
    """A folder with one picture of 100 bytes of each age."""
    storage = FolderStorage(folder / "pictures", SignedUrls("/files", b"secret"))
    for name, age in days.items():
        storage.put(f"{name}.png", bytes(100))
        at = NOW - age * DAY_S
        os.utime(storage.root / f"{name}.png", (at, at))
    return storage


def swept(
    storage: object, store: Store, pictures: str = "", records: str = "", uploads: Uploads | None = None
) -> Swept:
    """One sweep at the fixed time."""
    terms = Terms.of(ServerSettings(keep_pictures=pictures, keep_records=records))
    uploads = uploads or Uploads(Path("/nonexistent"))
    return asyncio.run(Retention(terms, storage, store, uploads, lambda: NOW).sweep())  # type: ignore[arg-type]


@pytest.fixture
def store(url: str) -> object:
    """Jobs that ended 1, 2, 3 and 100 days ago, and one of 100 days ago that still waits."""
    store = Store(url)
    for days in (1, 2, 3, 100, 101):
        one = job("a")
        one.id, one.created_at = f"job_{days}", NOW - days * DAY_S
        store.accept(one).result()
        if days != 101:
            one.token, one.started_at = 1, one.created_at
            store.start(one, "worker").result()
            one.state, one.finished_at = State.SUCCEEDED, one.created_at
            store.end_attempt(one, "succeeded", NOW).result()
    yield store
    store.close()


def test_old_pictures_go(tmp_path: Path, store: Store) -> None:
    """What is older than the term is deleted; what is younger stays."""
    storage = aged(tmp_path, old=31, young=29)
    assert swept(storage, store, pictures="30d") == Swept(1, 0)
    assert [file.name for file in storage.files()] == ["young.png"]


def test_the_oldest_pictures_make_room(tmp_path: Path, store: Store) -> None:
    """By size, the oldest go until the rest fits."""
    storage = aged(tmp_path, a=3, b=2, c=1)
    assert swept(storage, store, pictures="0.00025MB") == Swept(1, 0)
    assert {file.name for file in storage.files()} == {"b.png", "c.png"}


def test_old_records_go_with_their_attempts(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted from a job's end, bite by bite; a job that has not ended stays, however old."""
    monkeypatch.setattr(retention, "LARGEST_BITE", 1)
    assert swept(aged(tmp_path), store, records="36h") == Swept(0, 3)
    left = [one.id for one in store.page(None, None, 10)]
    assert left == ["job_1", "job_101"]
    assert store.attempts("job_1")
    assert not store.attempts("job_100")


def test_without_terms_nothing_goes(tmp_path: Path, store: Store) -> None:
    """For ever is the default."""
    storage = aged(tmp_path, ancient=999)
    assert swept(storage, store) == Swept(0, 0)
    assert len(store.page(None, None, 10)) == 5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"keep_pictures": "soon"}, "keep_pictures can't be 'soon': write an age such as 30d"),
        ({"keep_pictures": "3d,4d"}, "one of each"),
        ({"keep_pictures": "0d"}, "keep_pictures can't be '0d'"),
        ({"keep_records": "3GB"}, "can't be a size"),
        ({"keep_records": "12h"}, "give 1d or more"),
    ],
)
def test_nonsense_is_refused(settings: dict[str, str], said: str) -> None:
    """Before the server starts, in words."""
    with pytest.raises(RequestError, match=said):
        Terms.of(ServerSettings(**settings))


def test_terms_may_be_joined() -> None:
    """An age and a size."""
    assert Term.parse("keep_pictures", "2w, 1.5 GiB") == Term(14 * DAY_S, 3 * 2**29)


def test_a_failing_store_is_tried_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A sweep that fails is logged, and the next one does its work."""
    monkeypatch.setattr(retention, "SWEEP_S", 0.01)
    memory = Memory()
    memory.content["old.png"] = b"x"
    memory.failure = NetworkError("the store is down")
    terms = Terms.of(ServerSettings(keep_pictures="1d"))

    async def watch() -> None:
        keeping = Retention(terms, memory, store, Uploads(Path("/nonexistent")), lambda: NOW)
        task = asyncio.create_task(keeping.run())
        while "the store is down" not in caplog.text:
            await asyncio.sleep(0.01)
        memory.failure = None
        while memory.content:
            await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(asyncio.wait_for(watch(), 20))


def test_uploads_live_as_long_as_their_jobs(tmp_path: Path, store: Store) -> None:
    """An upload goes with the last record that names it, or soon where none ever did; no other goes."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    for name, hours in (("kept", 99), ("waiting", 99), ("forgotten", 99), ("never", 2), ("young", 0.5)):
        path = folder / f"{name}.png"
        path.write_bytes(b"")
        os.utime(path, (NOW - hours * 3600, NOW - hours * 3600))
    for name, days, is_over in (("kept", 1, True), ("forgotten", 90, True), ("waiting", 90, False)):
        one = job("a")
        one.id, one.created_at = f"job_{name}", NOW - days * DAY_S
        one.spec = replace(one.spec, image=name, strength=0.6)
        store.accept(one).result()
        if is_over:
            one.state, one.finished_at = State.SUCCEEDED, one.created_at
            store.end_attempt(one, "succeeded", NOW).result()
    ended = swept(aged(tmp_path), store, records="30d", uploads=Uploads(folder))
    assert ended == Swept(0, 2, 2)
    assert sorted(path.stem for path in folder.iterdir()) == ["kept", "waiting", "young"]
