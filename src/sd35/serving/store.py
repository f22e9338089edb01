"""The database of jobs: SQLite by default, PostgreSQL by URL, one writer either way.

A commit has to reach the disk before a job is acknowledged, and a disk commits a few hundred times a second.
So one thread does all writing: it takes everything that waits, does it in one transaction, and tells all who
asked at once (group commit). Dispatch never asks the database: it is the memory of this process, and the
database is what a restart begins with. The data folder belongs to one server at a time, so a job that a
starting server finds leased was leased by a dead one; leases need no clock.

SQLite runs with WAL and synchronous=FULL: a commit survives a power cut. https://sqlite.org/pragma.html
The statements that every job needs are built once, below: building one costs more than running it.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from sd35.serving.jobs import FINAL, Job, JobError, JobImage, Priority, Spec, State
from sd35.serving.problems import Problem, ServiceError
from sd35.serving.tables import attempts, jobs, upgrade, webhooks

log = logging.getLogger(__name__)

Operation = Callable[[sa.Connection], Any]
LARGEST_GROUP = 512
LOCK_S = 2.0  # that a write waits for another process's lock
# A lease may wait this long for another write to share its commit with: nobody waits for it, and one that is
# lost with the server is an attempt that nobody counts.
LEASE_PATIENCE_S = 0.05

# What SQLite says, and what it means. Source: https://sqlite.org/rescode.html
_SIGNS = {"locked": "another process holds it", "full": "its disk is full", "disk I/O": "its disk fails"}

_UNFINISHED = sa.and_(*(jobs.c.state != state.value for state in sorted(FINAL)))
_THIS_JOB = jobs.c.id == sa.bindparam("this_job")
_ACCEPT = sa.insert(jobs)
_START = sa.update(jobs).where(_THIS_JOB)
# A lower token on the disk is that of a lease which could not be written: the attempt is still the latest.
_END = sa.update(jobs).where(_THIS_JOB & (jobs.c.token <= sa.bindparam("this_token")) & _UNFINISHED)
_BEGIN_ATTEMPT = sa.insert(attempts)
_OWE = sa.insert(webhooks)
_END_ATTEMPT = sa.update(attempts).where(
    (attempts.c.job_id == sa.bindparam("this_job"))
    & (attempts.c.token == sa.bindparam("this_token"))
    & attempts.c.ended_at.is_(None)
)
# What a job keeps from its acceptance to its end.
_FIXED = ("id", "client_id", "key_id", "priority", "body_hash", "model", "cost", "spec", "created_at",
          "deadline_at", "face", "webhook_url")  # fmt: skip


@dataclass(frozen=True)
class _Write:
    """An operation on its way to the disk, whoever waits for it, and how long it may be kept waiting."""

    operation: Operation
    patience_s: float = 0.0
    future: "Future[Any]" = field(default_factory=Future)


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
        self._engine = sa.create_engine(url, hide_parameters=True)  # errors are logged, prompts are not
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _make_durable)
        upgrade(self._engine)
        self._waiting: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._connection: sa.Connection | None = None  # the writer's own, opened and closed by it
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
        lease = {"state": job.state.value, "token": job.token, "started_at": job.started_at}
        attempt = {"job_id": job.id, "token": job.token, "worker": worker, "started_at": job.started_at}

        def operation(connection: sa.Connection) -> None:
            connection.execute(_START, {**lease, "this_job": attempt["job_id"]})
            connection.execute(_BEGIN_ATTEMPT, attempt)

        return self._submit(operation, LEASE_PATIENCE_S)

    def end_attempt(self, job: Job, outcome: str, now: float) -> "Future[bool]":
        """Close the attempt and write the job as it is now; False if a later attempt holds the lease."""
        ours = {"this_job": job.id, "this_token": job.token}
        changed = {name: value for name, value in _row(job).items() if name not in _FIXED}
        owed = _owed(job, now)

        def operation(connection: sa.Connection) -> bool:
            is_ours = connection.execute(_END, {**changed, **ours}).rowcount == 1
            if is_ours:
                connection.execute(_END_ATTEMPT, {"ended_at": now, "outcome": outcome, **ours})
                if owed is not None:
                    connection.execute(_OWE, owed)
            return is_ours

        return self._submit(operation)

    def write(self, operation: Operation) -> "Future[Any]":
        """Do something else in the writer's next transaction."""
        return self._submit(operation)

    def recover(self, now: float) -> "Future[list[Job]]":
        """Take back what a dead server had leased, blaming nobody; all unfinished jobs, oldest first."""

        def operation(connection: sa.Connection) -> list[Job]:
            connection.execute(sa.update(jobs).where(_UNFINISHED).values(state=State.QUEUED.value))
            ending = {"ended_at": now, "outcome": "server_died"}
            connection.execute(sa.update(attempts).where(attempts.c.ended_at.is_(None)).values(ending))
            found = sa.select(jobs).where(_UNFINISHED).order_by(jobs.c.created_at, jobs.c.id)
            return [job_of(row) for row in connection.execute(found).mappings()]

        return self._submit(operation)

    def rewrite(self, job: Job) -> "Future[None]":
        """Write what erasing has left of an ended job; the rest of its row others may be writing."""
        row, job_id = _row(job), job.id
        left = {"spec": row["spec"], "images": row["images"]}
        return self._submit(
            lambda connection: connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(left))
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

    def uploads_named(self) -> set[str]:
        """The uploads that jobs begin with, ended ones included."""
        name = jobs.c.spec["image"].as_string()
        with self._engine.connect() as connection:
            return set(connection.execute(sa.select(name).where(name.is_not(None)).distinct()).scalars())

    # ---- the writer

    def _submit(self, operation: Operation, patience_s: float = 0.0) -> "Future[Any]":
        write = _Write(operation, patience_s)
        self._waiting.put(write)
        return write.future

    def _write(self) -> None:
        while (first := self._waiting.get()) is not None:
            self._commit(self._group(first))
        self._let_go()

    def _group(self, first: _Write) -> list[_Write]:
        """The first write and all that wait with it; where everybody in it has patience, those that come."""
        group, until = [first], time.monotonic() + first.patience_s
        while len(group) < LARGEST_GROUP:
            try:
                following = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if following is None:  # close() came in between: after this group
                self._waiting.put(None)
                break
            group.append(following)
            until = min(until, time.monotonic() + following.patience_s)
        return group

    def _commit(self, group: list[_Write]) -> None:
        """One transaction for all; if it fails, one for each, so that nobody suffers for a neighbour.

        A database that is locked, full or away would fail each of them alike, after as long a wait each.
        """
        try:
            connection = self._connection or self._engine.connect()
            self._connection = connection
            with connection.begin():
                results = [write.operation(connection) for write in group]
        except SQLAlchemyError as error:
            self._let_go()
            if len(group) == 1 or isinstance(error, OperationalError):
                for write in group:
                    write.future.set_exception(error)
            else:
                for one in group:
                    self._commit([one])
            return
        for write, result in zip(group, results, strict=True):
            if not write.future.cancelled():
                write.future.set_result(result)

    def _let_go(self) -> None:
        """End the writer's connection; what comes next opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def database_failed(error: SQLAlchemyError) -> ServiceError:
    """A database that does not answer, as an answer. The whole error is in the log: it may name hosts."""
    log.error("database: %s", error)
    said = str(getattr(error, "orig", error))
    reason = next((words for sign, words in _SIGNS.items() if sign in said), "the server's log says why")
    return ServiceError(
        Problem.STORE_FAILED,
        f"The database of jobs can't be used just now ({reason}): come again.",
        retry_after_s=5,
    )


def _make_durable(connection: Any, _: Any) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={round(1000 * LOCK_S)}"):
        connection.execute(f"PRAGMA {pragma}")


def _accept(connection: sa.Connection, job: Job) -> Job:
    if job.client_id is not None:
        # NULL never equals NULL in SQL, so a caller without a key is looked for by name.
        owner = jobs.c.key_id.is_(None) if job.key_id is None else jobs.c.key_id == job.key_id
        found = sa.select(jobs).where(owner & (jobs.c.client_id == job.client_id))
        if (row := connection.execute(found).mappings().first()) is not None:
            return job_of(row)
    connection.execute(_ACCEPT, _row(job))
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
    """The job as the table has it. `vars` in place of dataclasses.asdict, which copies every leaf."""
    return {
        **vars(job),
        "model": job.spec.model,
        "cost": job.spec.cost,
        "spec": vars(job.spec),
        "state": job.state.value,
        "priority": job.priority.value,
        "images": [vars(image) for image in job.images],
        "seconds": dict(job.seconds),
        "error": None if job.error is None else vars(job.error),
    }


def job_of(row: Any) -> Job:
    """The job that a row holds."""
    values = {name: row[name] for name in row if name not in ("model", "cost")}
    values["spec"] = Spec(**row["spec"])
    values["state"], values["priority"] = State(row["state"]), Priority(row["priority"])
    values["images"] = [JobImage(**image) for image in row["images"]]
    values["error"] = JobError(**row["error"]) if row["error"] else None
    values["face"] = row["face"] or "native"  # rows from before there was more than one
    return Job(**values)
