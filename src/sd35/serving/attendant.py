"""One worker and whoever cares for it: gives it the next job, listens, and judges how each attempt ended.

A worker that says nothing for `silence_s`, or takes longer than `step_s` for a step, is killed and replaced,
like one that crashed; the job goes back to the head of the queue. Two deaths over one job are the job's
fault, and it fails. What a dead *server* had in hand is nobody's fault.
"""

import asyncio
import logging
import time
from typing import Protocol

from sd35.serving import happenings
from sd35.serving.breaker import Breaker, Commands
from sd35.serving.fair_queue import FairQueue
from sd35.serving.happenings import Drew, Happening, ModelLoaded, WorkerLost
from sd35.serving.jobs import JobError, State
from sd35.serving.live import LiveJob
from sd35.serving.logs import about
from sd35.serving.messages import (
    Beat,
    Cancel,
    Died,
    Drawing,
    FromWorker,
    Loaded,
    Loading,
    Preview,
    Refused,
    Stepped,
    Stopped,
    Task,
)
from sd35.serving.pictures import preview_base64
from sd35.serving.problems import Problem
from sd35.serving.settings import Model, ServerSettings
from sd35.serving.worker_process import WorkerProcess

DEATHS_ALLOWED = 1
LONGEST_PAUSE_S = 10.0

log = logging.getLogger(__name__)


class Books(Protocol):
    """Who keeps the jobs: `JobService`."""

    queue: FairQueue

    async def next_job(self) -> LiveJob:
        """The next job, once there is one and the server takes on work."""

    def tell(self, happening: Happening) -> None:
        """Tell whoever observes."""

    def begin(self, live: LiveJob, worker: str) -> None:
        """An attempt begins."""

    async def give_back(self, live: LiveJob, outcome: str) -> None:
        """The attempt came to nothing: the job goes to the head of the queue."""

    def keep(self, live: LiveJob, drawing: Drawing, loaded: Loaded, breaker: Breaker) -> None:
        """Store the pictures and end the job, beside whatever comes next."""

    async def finish(self, live: LiveJob, state: State, error: JobError | None = None) -> None:
        """The job has come to its end."""


class Attendant:
    """Keeps one worker busy; `run` goes on until it is cancelled."""

    def __init__(self, settings: ServerSettings, commands: Commands, books: Books) -> None:
        self._settings, self._command, self._books = settings, commands.worker, books
        self.breaker = Breaker("worker", settings, commands, books.tell)
        self._worker: WorkerProcess | None = None
        self.current: LiveJob | None = None
        self.held: Model | None = None
        self.loading_since: float | None = None  # time.monotonic
        self.restarts = 0
        self._deaths_in_a_row = 0
        self._loaded: Loaded | None = None

    @property
    def load_seconds(self) -> float | None:
        """What the last load took."""
        return self._loaded.seconds if self._loaded else None

    @property
    def worker_pid(self) -> int | None:
        """The worker's process id, None where there is none."""
        return self._worker.pid if self._worker and self._worker.is_alive() else None

    async def run(self) -> None:
        """One job after the other."""
        while True:
            live = await self._books.next_job()
            self.current = live
            try:
                with about(live.job.id):
                    await self.breaker.closed(self.dismiss)
                    await self._attempt(live)
            finally:
                self.current = None

    def cancel(self, live: LiveJob) -> None:
        """Make the worker stop at the next step if it draws this job."""
        if self._worker is not None and live is self.current:
            self._worker.send(Cancel(live.job.id, live.job.token))

    async def dismiss(self) -> None:
        """End the worker and wait until it is gone."""
        if self._worker is not None:
            self._worker.kill()
            await self._worker.gone()

    async def _attempt(self, live: LiveJob) -> None:
        worker = await self._ready_worker()
        if live.is_ending:  # cancelled while a worker was started
            return
        self._books.begin(live, worker.name)
        begin, task = time.monotonic(), self._task(live)
        worker.send(task)
        ending = await self._listen(worker, live)
        if isinstance(ending, Died):
            self._books.tell(WorkerLost(worker.name, ending.kind, ending.reason))
            await self._bury(live, ending)
            return
        self._deaths_in_a_row = 0
        if isinstance(ending, Drawing) and not live.is_ending:
            self._books.tell(
                Drew(worker.name, len(ending.images), ending.free_vram_bytes, ending.total_vram_bytes)
            )
            self._books.queue.rate.finished(live.job.spec.cost, time.monotonic() - begin)
            assert self._loaded is not None, "a worker loads before it draws"
            self._books.keep(live, ending, self._loaded, self.breaker)
        elif isinstance(ending, Refused):
            await self._books.finish(live, State.FAILED, JobError(ending.code, ending.message))

    async def _ready_worker(self) -> WorkerProcess:
        if self._worker is None or not self._worker.is_alive():
            if self._worker is not None:
                self.restarts += 1
                await asyncio.sleep(_pause_s(self._deaths_in_a_row))
            self.held = self._loaded = None
            self._worker = WorkerProcess(self._command)
            log.info("worker %d started", self._worker.pid)
        return self._worker

    def _task(self, live: LiveJob) -> Task:
        spec = live.job.spec
        pictures = tuple(spec.pictures(live.model))
        # What nobody has checked does not leave the server, unfinished pictures included.
        previews = 0 if self._settings.output_check else spec.previews
        return Task(live.job.id, live.job.token, live.model, pictures, previews)

    async def _listen(self, worker: WorkerProcess, live: LiveJob) -> Drawing | Stopped | Refused | Died:
        """Pass the worker's news on until the attempt is over."""
        last_news, patience = time.monotonic(), self._settings.step_s
        while True:
            try:
                message = await asyncio.wait_for(worker.inbox.get(), self._settings.silence_s)
            except TimeoutError:
                reason = f"no sign of life for {self._settings.silence_s:g} s"
                return await self._replace(worker, "silent", reason)
            if isinstance(message, Drawing | Stopped | Refused | Died):
                self.loading_since = None
                return message
            if not isinstance(message, Beat):
                last_news = time.monotonic()
                patience = self._settings.load_s if isinstance(message, Loading) else self._settings.step_s
                await self._pass_on(message, live)
            elif time.monotonic() - last_news > patience:
                return await self._replace(worker, "stalled", f"no progress for {patience:g} s")

    async def _pass_on(self, message: FromWorker, live: LiveJob) -> None:
        match message:
            case Loading():
                self.loading_since = time.monotonic()
                self._change(live, State.LOADING)
            case Loaded():
                self._loaded, self.held, self.loading_since = message, live.model, None
                live.job.seconds["load"] = message.seconds
                self._books.tell(ModelLoaded(live.model.name, message.seconds))
                self._change(live, State.RUNNING)
            case Stepped(done, of):
                # Not every step need be told; a second attempt begins anew.
                made = done - live.progress[0] if done > live.progress[0] else done
                live.progress = (done, of)
                self._books.tell(happenings.Stepped(made * live.job.spec.n))
                live.events.append("progress", {"done": done, "of": of})
            case Preview(index, image):
                encoded = await asyncio.to_thread(preview_base64, image, live.job.spec.output_format)
                live.events.append("preview", {"index": index, "b64_json": encoded})

    def _change(self, live: LiveJob, state: State) -> None:
        if not live.is_ending:
            live.change(state)

    async def _replace(self, worker: WorkerProcess, kind: str, reason: str) -> Died:
        worker.kill()
        await worker.gone()
        self.loading_since = None
        return Died(reason, kind)

    async def _bury(self, live: LiveJob, ending: Died) -> None:
        self._deaths_in_a_row += 1
        log.warning("worker lost over job %s: %s", live.job.id, ending.reason)
        if live.is_ending:
            return
        live.job.deaths += 1
        if live.job.deaths <= DEATHS_ALLOWED:
            await self._books.give_back(live, "worker_died")
            return
        message = (
            f"{live.job.deaths} workers died of this job, the last because of this: {ending.reason}. "
            "It is not tried again; the server's log has more."
        )
        await self._books.finish(live, State.FAILED, JobError(Problem.WORKER_DIED.code, message))


def _pause_s(deaths_in_a_row: int) -> float:
    """Seconds before another worker is started: none after the first death, then ever longer."""
    return 0.0 if deaths_in_a_row < 2 else min(0.1 * 2.0**deaths_in_a_row, LONGEST_PAUSE_S)
