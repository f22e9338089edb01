"""The database of jobs, in SQLite and (marked `server`) in PostgreSQL."""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from sd35.serving.jobs import Job, JobError, JobImage, State
from sd35.serving.store import Store

from .test_fair_queue import job

TIMEOUT_S = 30


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.server)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
        return
    with _postgresql(tmp_path) as address:
        yield address


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """A store on it."""
    store = Store(url)
    yield store
    store.close()


def accepted(store: Store, one: Job) -> Job:
    """The job, on disk."""
    return store.accept(one).result(TIMEOUT_S)


def begun(store: Store, one: Job) -> Job:
    """The job with one more attempt."""
    one.token, one.state, one.started_at = one.token + 1, State.RUNNING, time.time()
    store.start(one, "worker").result(TIMEOUT_S)
    return one


def test_job_comes_back_as_it_went(store: Store) -> None:
    """Every field survives the database."""
    one = accepted(store, job("a"))
    one.images = [JobImage("x.png", 7, 64, 32, "ab", 99)]
    one.state, one.finished_at, one.seconds = State.FAILED, 12.5, {"denoise": 1.25}
    one.error, one.peak_vram_bytes = JobError("code", "message"), 2**40
    assert store.end_attempt(one, "failed", 12.5).result(TIMEOUT_S)
    assert store.get(one.id) == one


def test_client_id_belongs_to_one_job_of_a_key(store: Store) -> None:
    """The same name gives the first job, for callers without a key as well; another key has its own."""
    for key in (None, "a", "b"):
        first, second = job(key), job(key)
        first.client_id = second.client_id = "mine"
        assert accepted(store, first).id == first.id
        assert accepted(store, second).id == first.id


def test_fence_keeps_a_late_result_out(store: Store) -> None:
    """What an attempt brings after another has begun is thrown away."""
    late = begun(store, accepted(store, job()))
    begun(store, Job(**vars(late)))
    late.state = State.SUCCEEDED
    assert not store.end_attempt(late, "succeeded", 1.0).result(TIMEOUT_S)
    found = store.get(late.id)
    assert found is not None
    assert (found.state, found.token) == (State.RUNNING, 2)


def test_a_lease_that_was_never_written_costs_no_result(store: Store) -> None:
    """The disk refused the lease and took the end: the end stands, and the next start has nothing to do."""
    one = accepted(store, job("a"))
    one.token, one.state = 1, State.SUCCEEDED
    assert store.end_attempt(one, "succeeded", 1.0).result(TIMEOUT_S)
    assert store.recover(2.0).result(TIMEOUT_S) == []


def test_errors_keep_prompts_to_themselves(store: Store) -> None:
    """What is logged of a failed write does not repeat what the job asks for."""
    one = job("a")
    accepted(store, one)
    with pytest.raises(sa.exc.IntegrityError) as error:
        accepted(store, one)
    assert one.spec.prompt not in str(error.value)


def test_job_ends_once(store: Store) -> None:
    """The first end stays."""
    one = begun(store, accepted(store, job()))
    one.state = State.CANCELLED
    assert store.end_attempt(one, "cancelled", 1.0).result(TIMEOUT_S)
    one.state = State.SUCCEEDED
    assert not store.end_attempt(one, "succeeded", 2.0).result(TIMEOUT_S)


def test_recovery_takes_back_what_was_leased(store: Store) -> None:
    """Unfinished jobs come back queued, oldest first; the attempt is closed and nobody blamed."""
    running, waiting, done = begun(store, accepted(store, job())), accepted(store, job()), job()
    accepted(store, done)
    done.state = State.SUCCEEDED
    store.end_attempt(done, "succeeded", 1.0).result(TIMEOUT_S)
    found = store.recover(9.0).result(TIMEOUT_S)
    assert [(one.id, one.state, one.deaths) for one in found] == [
        (running.id, State.QUEUED, 0),
        (waiting.id, State.QUEUED, 0),
    ]
    attempt = store.attempts(running.id)[0]
    assert (attempt["outcome"], attempt["ended_at"]) == ("server_died", 9.0)


def test_group_is_one_transaction(store: Store) -> None:
    """What waits while the writer is busy is committed together."""
    gate, commits = threading.Event(), []
    sa.event.listen(store._engine, "commit", lambda _: commits.append(1))
    busy = store._submit(lambda _: gate.wait(TIMEOUT_S))
    futures = [store.accept(job()) for _ in range(50)]
    gate.set()
    assert busy.result(TIMEOUT_S)
    for future in futures:
        future.result(TIMEOUT_S)
    assert len(commits) <= 3


def test_one_failure_does_not_touch_its_neighbours(store: Store) -> None:
    """In a group with a write that fails the others are committed all the same."""
    gate, one = threading.Event(), job()
    busy = store._submit(lambda _: gate.wait(TIMEOUT_S))
    futures = [store.accept(one), store.accept(Job(**vars(one))), store.accept(job())]
    gate.set()
    assert busy.result(TIMEOUT_S)
    assert futures[0].result(TIMEOUT_S).id == one.id
    with pytest.raises(sa.exc.IntegrityError):
        futures[1].result(TIMEOUT_S)
    assert store.get(futures[2].result(TIMEOUT_S).id) is not None


def test_sqlite_survives_a_power_cut(tmp_path: Path) -> None:
    """The journal is a WAL and a commit is synced to the disk."""
    store = Store(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("pragma journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("pragma synchronous").scalar() == 2
    store.close()


class _postgresql:
    """A PostgreSQL of its own in a folder, for one test; it refuses to run as root."""

    def __init__(self, folder: Path) -> None:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if not programs:
            pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
        self._bin, self._data = programs[-1], Path("/tmp") / f"sd35-pg-{folder.name}-{time.time_ns()}"

    def __enter__(self) -> str:
        self._data.mkdir()
        shutil.chown(self._data, "postgres")
        self._run("initdb", "-D", f"{self._data}/db", "-A", "trust")
        options = f"-c listen_addresses='' -k {self._data}"
        self._run("pg_ctl", "-D", f"{self._data}/db", "-w", "-l", f"{self._data}/log", "-o", options, "start")
        return f"postgresql+psycopg://postgres@/postgres?host={self._data}"

    def __exit__(self, *_: object) -> None:
        self._run("pg_ctl", "-D", f"{self._data}/db", "-m", "immediate", "stop")
        shutil.rmtree(self._data)

    def _run(self, program: str, *arguments: str) -> None:
        command = ["runuser", "-u", "postgres", "--", str(self._bin / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/tmp")
