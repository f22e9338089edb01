"""The database of jobs: SQLite by default, PostgreSQL by URL, one writer either way.

A commit has to reach the disk before a job is acknowledged, and a disk commits a few hundred times a second.
So one thread does all writing: it takes everything that waits, does it in one transaction, and tells all who
asked at once (group commit). Dispatch never asks the database: it is the memory of this process, and the
database is what a restart begins with. The data folder belongs to one server at a time, so a job that a
starting server finds leased was leased by a dead one; leases need no clock.

SQLite runs with WAL and synchronous=FULL: a commit survives a power cut. https://sqlite.org/pragma.html
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from sd35.serving.jobs import FINAL, Job, JobError, JobImage, Priority, Spec, State
from sd35.serving.tables import attempts, jobs, upgrade, webhooks

Operation = Callable[[sa.Connection], Any]
LARGEST_GROUP = 512


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which jobs a listing shows; what is None is not asked about."""

    state: State | None = None
    model: str | None = None
    words: str | None = None  # in the prompt, capitals or not
    sha256: str | None = None  # of one of the pictures
    with_images: bool = False  # only jobs that have pictures


ANY = Wanted()


class Store:
    """Jobs on disk. Writing answers with a Future that is done when the disk has it; reading blocks."""

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url)
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _make_durable)
        upgrade(self._engine)
        self._waiting: queue.SimpleQueue[tuple[Operation, Future[Any]] | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="sd35-store", daemon=True)
        self._writer.start()

    def close(self) -> None:
        """Write what waits, then let go of the database."""
        self._waiting.put(None)
        self._writer.join()
        self._engine.dispose()

    # ---- writing

    def accept(self, job: Job) -> "Future[Job]":
        """Make a job durable; where a PUT used its client_id before, the job of that time comes back."""
        return self._submit(lambda connection: _accept(connection, job))

    def start(self, job: Job, worker: str) -> "Future[None]":
        """Lease a job to a worker and open an attempt with its token."""
        values = {"state": job.state.value, "token": job.token, "started_at": job.started_at}
        attempt = {"job_id": job.id, "token": job.token, "worker": worker, "started_at": job.started_at}

        def operation(connection: sa.Connection) -> None:
            connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(values))
            connection.execute(sa.insert(attempts).values(attempt))

        return self._submit(operation)

    def end_attempt(self, job: Job, outcome: str, now: float) -> "Future[bool]":
        """Close the attempt and write the job as it is now; False if a later attempt holds the lease."""
        row, token, job_id = _row(job), job.token, job.id
        owed = _owed(job, now)

        def operation(connection: sa.Connection) -> bool:
            unfinished = jobs.c.state.not_in([state.value for state in FINAL])
            fence = (jobs.c.id == job_id) & (jobs.c.token == token) & unfinished
            is_ours = connection.execute(sa.update(jobs).where(fence).values(row)).rowcount == 1
            if is_ours:
                ours = (attempts.c.job_id == job_id) & (attempts.c.token == token)
                ending = {"ended_at": now, "outcome": outcome}
                is_open = attempts.c.ended_at.is_(None)
                connection.execute(sa.update(attempts).where(ours & is_open).values(ending))
                if owed is not None:
                    connection.execute(sa.insert(webhooks).values(owed))
            return is_ours

        return self._submit(operation)

    def write(self, operation: Operation) -> "Future[Any]":
        """Do something else in the writer's next transaction."""
        return self._submit(operation)

    def recover(self, now: float) -> "Future[list[Job]]":
        """Take back what a dead server had leased, blaming nobody; all unfinished jobs, oldest first."""

        def operation(connection: sa.Connection) -> list[Job]:
            unfinished = jobs.c.state.not_in([state.value for state in FINAL])
            connection.execute(sa.update(jobs).where(unfinished).values(state=State.QUEUED.value))
            ending = {"ended_at": now, "outcome": "server_died"}
            connection.execute(sa.update(attempts).where(attempts.c.ended_at.is_(None)).values(ending))
            found = sa.select(jobs).where(unfinished).order_by(jobs.c.created_at, jobs.c.id)
            return [job_of(row) for row in connection.execute(found).mappings()]

        return self._submit(operation)

    def rewrite(self, job: Job) -> "Future[None]":
        """Write a job that has ended as it is now: pictures of it were erased."""
        row, job_id = _row(job), job.id
        return self._submit(
            lambda connection: connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(row))
        )

    # ---- reading

    def rows(self, wanted: sa.Select[Any]) -> list[Any]:
        """What a query finds, as mappings."""
        with self._engine.connect() as connection:
            return list(connection.execute(wanted).mappings())

    def get(self, job_id: str) -> Job | None:
        """The job of that id."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).mappings().first()
        return None if row is None else job_of(row)

    def attempts(self, job_id: str) -> list[dict[str, Any]]:
        """What was tried: token, worker, started_at, ended_at, outcome."""
        found = sa.select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.token)
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(found).mappings()]

    def page(
        self, key_id: str | None, before: tuple[float, str] | None, limit: int, wanted: Wanted = ANY
    ) -> list[Job]:
        """A key's jobs (None: everyone's), newest first, from below (created_at, id) on."""
        found = sa.select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
        if key_id is not None:
            found = found.where(jobs.c.key_id == key_id)
        if before is not None:
            at, job_id = before
            found = found.where((jobs.c.created_at < at) | ((jobs.c.created_at == at) & (jobs.c.id < job_id)))
        with self._engine.connect() as connection:
            return [job_of(row) for row in connection.execute(found.where(*_conditions(wanted))).mappings()]

    def asked_since(self, key_id: str, since: float) -> tuple[int, float]:
        """Pictures and megapixel-steps of a key's jobs since then, but for those that came to nothing."""
        found = sa.select(jobs.c.spec, jobs.c.cost).where(
            jobs.c.key_id == key_id,
            jobs.c.created_at >= since,
            jobs.c.state.not_in([State.FAILED.value, State.CANCELLED.value, State.EXPIRED.value]),
        )
        with self._engine.connect() as connection:
            rows = connection.execute(found).all()
        return sum(row.spec["n"] for row in rows), sum(row.cost for row in rows)

    # ---- the writer

    def _submit(self, operation: Operation) -> "Future[Any]":
        future: Future[Any] = Future()
        self._waiting.put((operation, future))
        return future

    def _write(self) -> None:
        while (first := self._waiting.get()) is not None:
            group = [first]
            while len(group) < LARGEST_GROUP and not self._waiting.empty():
                following = self._waiting.get()
                if following is None:  # close() came in between: after this group
                    self._waiting.put(None)
                    break
                group.append(following)
            self._commit(group)

    def _commit(self, group: list[tuple[Operation, "Future[Any]"]]) -> None:
        """One transaction for all; if it fails, one for each, so that nobody suffers for a neighbour."""
        try:
            with self._engine.begin() as connection:
                results = [operation(connection) for operation, _ in group]
        except SQLAlchemyError as error:
            if len(group) == 1:
                group[0][1].set_exception(error)
            else:
                for one in group:
                    self._commit([one])
            return
        for (_, future), result in zip(group, results, strict=True):
            if not future.cancelled():
                future.set_result(result)


def _make_durable(connection: Any, _: Any) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000"):
        connection.execute(f"PRAGMA {pragma}")


def _accept(connection: sa.Connection, job: Job) -> Job:
    if job.client_id is not None:
        # NULL never equals NULL in SQL, so a caller without a key is looked for by name.
        owner = jobs.c.key_id.is_(None) if job.key_id is None else jobs.c.key_id == job.key_id
        found = sa.select(jobs).where(owner & (jobs.c.client_id == job.client_id))
        if (row := connection.execute(found).mappings().first()) is not None:
            return job_of(row)
    connection.execute(sa.insert(jobs).values(_row(job)))
    return job


def _conditions(wanted: Wanted) -> list[sa.ColumnElement[bool]]:
    images = sa.cast(jobs.c.images, sa.String)  # as JSON text, in SQLite and PostgreSQL alike
    found: list[sa.ColumnElement[bool]] = []
    if wanted.state is not None:
        found.append(jobs.c.state == wanted.state.value)
    if wanted.model is not None:
        found.append(jobs.c.model == wanted.model)
    if wanted.words is not None:
        found.append(jobs.c.spec["prompt"].as_string().icontains(wanted.words, autoescape=True))
    if wanted.sha256 is not None:
        found.append(images.contains(f'"{wanted.sha256}"', autoescape=True))
    if wanted.with_images:
        found.append(images != "[]")
    return found


def _owed(job: Job, now: float) -> dict[str, Any] | None:
    """The webhook that the end of a job calls for."""
    if job.webhook_url is None or not job.state.is_final:
        return None
    return {"job_id": job.id, "key_id": job.key_id, "url": job.webhook_url, "tries": 0, "next_at": now}


def _row(job: Job) -> dict[str, Any]:
    row = {**asdict(job), "model": job.spec.model, "cost": job.spec.cost}
    return {**row, "state": job.state.value, "priority": job.priority.value}


def job_of(row: Any) -> Job:
    """The job that a row holds."""
    values = {name: row[name] for name in row if name not in ("model", "cost")}
    values["spec"] = Spec(**row["spec"])
    values["state"], values["priority"] = State(row["state"]), Priority(row["priority"])
    values["images"] = [JobImage(**image) for image in row["images"]]
    values["error"] = JobError(**row["error"]) if row["error"] else None
    values["face"] = row["face"] or "native"  # rows from before there was more than one
    return Job(**values)
