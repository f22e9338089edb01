"""The job core: every face hands requests to it, and only it changes jobs.

    submit -> (database) -> queue -> attendant -> worker -> pictures -> (database) -> whoever waits

A job is acknowledged when the database has it, and told to be done when the database has that: whatever is
killed in between, the next start takes up what is unfinished. All of it runs on one event loop, so the memory
of this class needs no lock; what blocks (database, storage, encoding) runs in threads and answers by futures.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from sd35.errors import Sd35Error, UnavailableError
from sd35.serving import pictures
from sd35.serving.attendant import Attendant, Errand
from sd35.serving.breaker import NOT_FINITE_ERROR, Breaker, Commands
from sd35.serving.fair_queue import FairQueue, ServiceRate
from sd35.serving.happenings import NOT_FINITE, Began, Ended, Happening, Observers, StoreTried
from sd35.serving.jobs import Job, JobError, JobImage, State
from sd35.serving.keys import Caller
from sd35.serving.live import LiveJob
from sd35.serving.messages import Drawing, Loaded
from sd35.serving.output_check import OutputCheck
from sd35.serving.pool import Pool
from sd35.serving.problems import BUG_WORDS, Problem, ServiceError
from sd35.serving.quotas import has_quotas, hold_to_quotas
from sd35.serving.recent import RecentPictures
from sd35.serving.settings import ServerSettings
from sd35.serving.storage import Storage
from sd35.serving.store import Store, database_failed

REMEMBERED = 1000  # finished jobs whose events can still be replayed
DATABASE_PAUSE_S = 1.0

log = logging.getLogger(__name__)


class JobService:
    """Jobs from acceptance to their end."""

    def __init__(
        self,
        settings: ServerSettings,
        store: Store,
        storage: Storage,
        commands: Commands,
        check: OutputCheck | None = None,
        observers: Observers | None = None,
    ) -> None:
        self.settings, self._store = settings, store
        self.storage = RecentPictures(storage)
        self.check, self._observers = check, observers or Observers()
        self.models = settings.catalogue()
        rate = ServiceRate(workers=len(settings.device_names))
        self.queue = FairQueue(settings.max_queued, settings.max_queued_per_key, rate)
        self._lives: dict[str, LiveJob] = {}
        self.pool = Pool(settings, commands, self, self._lives)
        self.is_draining = False
        self.erasing = asyncio.Lock()  # for `gallery`
        self._counting: dict[str | None, asyncio.Lock] = {}  # by key, for those that have quotas
        self.ended = dict.fromkeys((state.value for state in State if state.is_final), 0)
        self._remembered: OrderedDict[str, None] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._care: asyncio.Task[None] | None = None

    # ---- life of the server

    async def start(self) -> None:
        """Take up what an earlier server left unfinished, then work."""
        for job in await asyncio.wrap_future(self._store.recover(time.time())):
            if (model := self.models.get(job.spec.model)) is None:
                log.warning("job %s waits for the model %r, which isn't served", job.id, job.spec.model)
                continue
            self._enqueue(LiveJob(job, model, is_suspect=job.deaths > 0))
        self._care = asyncio.create_task(self.pool.run())

    def is_ready(self) -> bool:
        """Whether a request would be taken and worked on."""
        are_open = all(one.breaker.is_open for one in self.pool.attendants)
        is_cared_for = self._care is not None and not self._care.done() and not are_open
        return is_cared_for and not self.is_draining and len(self.queue) < self.settings.max_queued

    async def drain(self) -> None:
        """Take nothing new, give the running job its time, leave the rest to the next start."""
        self.is_draining = self.pool.is_closed = True
        running = list(self.pool.in_hand().values())
        for live in list(self._lives.values()):
            if live.job.id not in self.pool.in_hand() and live.job.state is State.QUEUED:
                live.part()
        if running:
            await _within(self.settings.drain_s, asyncio.gather(*(live.settled.wait() for live in running)))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.settings.drain_s)

    async def stop(self) -> None:
        """End the worker, giving its job back; nothing runs afterwards."""
        self.is_draining = self.pool.is_closed = True
        running = list(self.pool.in_hand().values())
        if self._care is not None:
            self._care.cancel()
            await asyncio.wait([self._care])
        await self.pool.dismiss()
        for live in running:
            if not live.is_ending and live.job.state is not State.SAVING:
                await self.give_back(live, "drained")
        for live in self._lives.values():
            live.part()
        await asyncio.to_thread(self._store.close)

    # ---- what clients do

    async def submit(self, job: Job, caller: Caller) -> LiveJob:
        """Acknowledge a job: when this returns, the database has it. A PUT's job may be one of before."""
        self._refuse_if_draining()
        if (earlier := self._named(job)) is not None:
            return self._same(earlier, job)
        self.queue.admit(caller.key_id, self.pool.expected, caller.quotas.queued_jobs)
        with self.pool.expecting():
            try:
                accepted = await self._counted(job, caller)
            except SQLAlchemyError as error:
                self.tell(StoreTried("database", str(error)))
                raise database_failed(error) from error
        if accepted.id != job.id:
            return self._same(self._known(accepted), job)
        live = LiveJob(accepted, self.models[job.spec.model], caller.quotas.weight)
        self._enqueue(live)
        return live

    async def find(self, job_id: str, caller: Caller) -> LiveJob:
        """The caller's own job, an admin's any; not_found for strangers' as well."""
        live = self._lives.get(job_id)
        if live is None:
            job = await self.read(self._store.get, job_id)
            live = None if job is None else self._known(job)
        if live is None or not (caller.key_id == live.job.key_id or "admin" in caller.scopes):
            raise ServiceError(Problem.NOT_FOUND, f"There is no job {job_id!r}.")
        return live

    async def page(self, caller: Caller, *which: Any) -> list[LiveJob]:
        """The caller's jobs, newest first; `which` as in `Store.page`."""
        return [self._known(job) for job in await self.read(self._store.page, caller.key_id, *which)]

    async def rewrite(self, job: Job) -> None:
        """Write what erasing has left of an ended job."""
        await asyncio.wrap_future(self._store.rewrite(job))

    async def cancel(
        self, live: LiveJob, state: State = State.CANCELLED, error: JobError | None = None
    ) -> None:
        """End a job early: at once for everyone, and at the next step for the worker."""
        if live.job.state.is_final:
            return
        self.queue.discard(live.job)
        self.pool.cancel(live)
        await self.finish(live, state, error)

    def unfinished_twin(self, job: Job) -> LiveJob | None:
        """A job of the same caller that asks for the same and has not ended: what a retry means."""
        twin = (job.key_id, job.body_hash)
        alike = (live for live in self._lives.values() if (live.job.key_id, live.job.body_hash) == twin)
        return next((live for live in alike if not live.job.state.is_final), None)

    async def read_picture(self, name: str) -> bytes:
        """A stored picture's content."""
        if (remembered := self.storage.recall(name)) is not None:
            return remembered
        try:
            return await asyncio.to_thread(self.storage.open, name)
        except UnavailableError as error:
            raise ServiceError(Problem.STORAGE_FAILED, str(error)) from error

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Let something go on beside; draining waits for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def read(self, query: Any, *arguments: Any) -> Any:
        """Ask the database, beside the event loop."""
        try:
            return await asyncio.to_thread(query, *arguments)
        except SQLAlchemyError as error:
            raise database_failed(error) from error

    # ---- what the attendant does

    async def next_work(self, attendant: Attendant) -> list[LiveJob] | Errand:
        """What its worker does next, once there is something."""
        return await self.pool.next_work(attendant)

    def begin(self, live: LiveJob, worker: str) -> None:
        """Lease the job; the writer keeps the order, so nobody need wait for this write."""
        job = live.job
        job.token, job.started_at = job.token + 1, time.time()
        job.seconds["queue"] = job.started_at - job.created_at
        job.worker = worker
        live.change(State.RUNNING)
        self.tell(Began(job, worker))
        self._store.start(job, worker).add_done_callback(_log_failure)

    def tell(self, happening: Happening) -> None:
        """Tell whoever observes."""
        self._observers.tell(happening)

    async def give_back(self, live: LiveJob, outcome: str) -> None:
        """Back to the head of the queue."""
        live.change(State.QUEUED)
        await self._write(live.job, outcome)
        if not self.is_draining and not live.is_ending:
            self._enqueue(live, is_first=True)

    def keep(self, live: LiveJob, drawing: Drawing, loaded: Loaded, breaker: Breaker) -> None:
        """Store the pictures while the worker goes on."""
        live.job.checkpoint_sha256, live.job.precision = loaded.identity, loaded.precision
        live.change(State.SAVING)
        self.spawn(self._save(live, drawing, loaded, breaker))

    async def finish(self, live: LiveJob, state: State, error: JobError | None = None, **found: Any) -> None:
        """Write the end, then tell it; whoever comes first decides how a job ends."""
        if live.is_ending:
            return
        live.is_ending = True
        ended = replace(live.job, state=state, error=error, finished_at=time.time(), **found)
        await self._write(ended, state.value)
        live.job = ended
        self.ended[state.value] += 1
        live.tell()
        self.tell(Ended(ended))
        self._remember(ended.id)

    # ---- inside

    async def _counted(self, job: Job, caller: Caller) -> Job:
        """The job, in the database; one of a key with quotas at a time, for they are counted there."""
        if not has_quotas(caller):
            return await asyncio.wrap_future(self._store.accept(job))
        async with self._counting.setdefault(caller.key_id, asyncio.Lock()):
            await hold_to_quotas(self._store, job, caller)
            return await asyncio.wrap_future(self._store.accept(job))

    async def _save(self, live: LiveJob, drawing: Drawing, loaded: Loaded, breaker: Breaker) -> None:
        job, begin = live.job, time.monotonic()
        wrong = set(filter(None, await breaker.look(live, drawing)))
        job.abnormal = ",".join(sorted(wrong)) or None
        if NOT_FINITE in wrong:
            await self.finish(live, State.FAILED, NOT_FINITE_ERROR)
            return
        try:
            images: list[JobImage] = await asyncio.to_thread(
                pictures.save, self.storage, self.check, job, live.model, drawing, loaded,
                with_prompt=self.settings.prompt_in_pictures,
            )  # fmt: skip
        except Sd35Error as error:
            problem = error.problem if isinstance(error, ServiceError) else Problem.STORAGE_FAILED
            if problem is Problem.STORAGE_FAILED:
                self.tell(StoreTried("storage", str(error)))
            await self.finish(live, State.FAILED, JobError(problem.code, str(error)))
            return
        except Exception:  # whatever breaks here, the job has an end
            log.exception("job %s: its pictures could not be saved", job.id)
            await self.finish(live, State.FAILED, JobError(Problem.BUG.code, BUG_WORDS))
            return
        if live.is_ending:  # cancelled in the meantime: nobody will ask for these
            for image in images:
                await asyncio.to_thread(self.storage.delete, image.name)
            return
        self.tell(StoreTried("storage", None))
        seconds = {**job.seconds, **drawing.seconds, "save": time.monotonic() - begin}
        await self.finish(
            live, State.SUCCEEDED, images=images, seconds=seconds, peak_vram_bytes=drawing.peak_vram_bytes
        )

    async def _write(self, job: Job, outcome: str) -> None:
        """Bring a job's state to the disk, however long the database takes to come back."""
        while True:
            try:
                await asyncio.wrap_future(self._store.end_attempt(job, outcome, time.time()))
                self.tell(StoreTried("database", None))
                return
            except SQLAlchemyError as error:
                self.tell(StoreTried("database", str(error)))
                log.error("job %s can't be written yet: %s", job.id, error)
                await asyncio.sleep(DATABASE_PAUSE_S)

    def _enqueue(self, live: LiveJob, *, is_first: bool = False) -> None:
        job = live.job
        self._lives[job.id] = live
        self.queue.put(job, live.weight, is_first=is_first)
        if not is_first:
            live.tell()
            self._watch_deadline(live)
        self.pool.look_again()

    def _watch_deadline(self, live: LiveJob) -> None:
        if live.job.deadline_at is None:
            return
        message = "The deadline passed before the job was done: give it longer, or come at a quieter time."
        error = JobError(Problem.EXPIRED.code, message)

        def expire() -> None:
            self.spawn(self.cancel(live, State.EXPIRED, error))

        asyncio.get_running_loop().call_later(max(0.0, live.job.deadline_at - time.time()), expire)

    def _named(self, job: Job) -> LiveJob | None:
        if job.client_id is None:
            return None
        name = (job.key_id, job.client_id)
        alike = (live for live in self._lives.values() if (live.job.key_id, live.job.client_id) == name)
        return next(alike, None)

    def _same(self, earlier: LiveJob, job: Job) -> LiveJob:
        if earlier.job.body_hash == job.body_hash:
            return earlier
        raise ServiceError(
            Problem.CONFLICT,
            f"The name {job.client_id!r} belongs to a job that asks for something else: take another name.",
        )

    def _known(self, job: Job) -> LiveJob:
        """The live job, or one from the database that has ended (or whose model is not served now)."""
        if (live := self._lives.get(job.id)) is not None:
            return live
        live = LiveJob(job, self.models.get(job.spec.model) or next(iter(self.models.values())))
        live.tell()
        live.part()
        return live

    def _remember(self, job_id: str) -> None:
        self._remembered[job_id] = None
        while len(self._remembered) > REMEMBERED:
            oldest, _ = self._remembered.popitem(last=False)
            self._lives.pop(oldest, None)

    def _refuse_if_draining(self) -> None:
        if self.is_draining:
            raise ServiceError(Problem.DRAINING, "The server is stopping: come again.", retry_after_s=5)


async def _within(seconds: float, waiting: Any) -> None:
    try:
        await asyncio.wait_for(waiting, seconds)
    except TimeoutError:
        log.warning("the running job did not end in %g s; the next start takes it up", seconds)


def _log_failure(future: Any) -> None:
    if not future.cancelled() and future.exception() is not None:
        log.error("a lease could not be written: %s", future.exception())
