"""One worker and whoever cares for it: gives it the next batch, listens, and judges how each attempt ended.

A worker that says nothing for `silence_s`, or takes longer than `step_s` for a step, is killed and replaced,
like one that crashed; its jobs go back to the head of the queue. Two deaths over one job are the job's
fault, and it fails. A death over a batch is nobody's fault yet: its jobs are drawn one by one from then on.
What a dead *server* had in hand is nobody's fault either.
"""

import asyncio
import logging
import platform
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sd35.serving import happenings
from sd35.serving.breaker import Breaker, Commands
from sd35.serving.fair_queue import FairQueue
from sd35.serving.happenings import Drew, Happening, ModelLoaded, WorkerLost
from sd35.serving.jobs import JobError, State
from sd35.serving.live import LiveJob
from sd35.serving.logs import about
from sd35.serving.messages import (
    Batch,
    BatchDrawn,
    Beat,
    Cancel,
    Died,
    Drawing,
    Drawn,
    FromWorker,
    Holding,
    Load,
    Loaded,
    Loading,
    Managed,
    Preview,
    Refused,
    Stepped,
    Stopped,
    Task,
    Unload,
)
from sd35.serving.pictures import preview_base64
from sd35.serving.problems import Problem
from sd35.serving.settings import ServerSettings
from sd35.serving.uploads import path_of
from sd35.serving.worker_process import WorkerProcess

DEATHS_ALLOWED = 1
LONGEST_PAUSE_S = 10.0

log = logging.getLogger(__name__)


Errand = Load | Unload


@dataclass(frozen=True)
class LoadingModel:
    """A model on its way: this share of it is there; `since` by time.monotonic."""

    name: str
    share: float
    since: float


class Books(Protocol):
    """Who keeps the jobs: `JobService`."""

    queue: FairQueue

    async def next_work(self, attendant: "Attendant") -> "list[LiveJob] | Errand":
        """The next jobs for this one's worker, or a model to load or unload, once there is something."""

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

    def __init__(self, settings: ServerSettings, commands: Commands, books: Books, device: str) -> None:
        self._settings, self._command, self._books = settings, commands.worker, books
        self.breaker = Breaker(f"{platform.node()}/{device}", settings, commands, books.tell)
        self._worker: WorkerProcess | None = None
        self.in_hand: dict[str, LiveJob] = {}  # the batch's jobs that have not come to an end, by id
        self.device = device
        self.errands: deque[Errand] = deque()
        self.load_seconds: dict[str, float] = {}  # that a model's loading took last
        self.loading: LoadingModel | None = None
        self.restarts = 0
        self._deaths_in_a_row = 0
        self._errand: Errand | None = None  # that the worker is busy with
        self._loaded: dict[str, Loaded] = {}

    @property
    def current(self) -> LiveJob | None:
        """A job that is being drawn."""
        return next(iter(self.in_hand.values()), None)

    @property
    def worker_pid(self) -> int | None:
        """The worker's process id, None where there is none."""
        return self._worker.pid if self._worker and self._worker.is_alive() else None

    def holdings(self) -> tuple[Holding, ...]:
        """What the worker holds."""
        return self._worker.holdings if self._worker and self._worker.is_alive() else ()

    def awake(self) -> set[str]:
        """Names of the models that it could draw with at once, or soon, as it loads them."""
        ready = {one.name for one in self.holdings() if one.place == "vram"}
        return ready | ({self.loading.name} if self.loading else set())

    def wanted(self) -> set[str]:
        """Names of the models that it will load when it comes to it."""
        orders = [*self.errands, *([self._errand] if self._errand else [])]
        return {order.model.name for order in orders if isinstance(order, Load)}

    async def run(self) -> None:
        """One batch after the other, and errands between them."""
        while True:
            batch = await self._books.next_work(self)
            if isinstance(batch, Load | Unload):
                await self._run_errand(batch)
                continue
            self.in_hand = {live.job.id: live for live in batch}
            try:
                with about(",".join(self.in_hand)):
                    await self.breaker.closed(self.dismiss)
                    await self._attempt(batch)
            finally:
                self.in_hand = {}

    def cancel(self, live: LiveJob) -> None:
        """Tell the worker that this job is not wanted, if it draws it: alone, it stops at the next step."""
        if self._worker is not None and live.job.id in self.in_hand:
            self._worker.send(Cancel(live.job.id, live.job.token))

    async def dismiss(self) -> None:
        """End the worker and wait until it is gone."""
        if self._worker is not None:
            self._worker.kill()
            await self._worker.gone()

    async def _attempt(self, batch: list[LiveJob]) -> None:
        worker = await self._ready_worker()
        wanted = [live for live in batch if not live.is_ending]  # some were cancelled while a worker started
        self.in_hand = {live.job.id: live for live in wanted}
        if not wanted:
            return
        for live in wanted:
            self._books.begin(live, worker.name)
        worker.send(Batch(tuple(self._task(live) for live in wanted)))
        ending = await self._listen(worker, len(wanted), lambda: not self.in_hand)
        if ending is not None:
            self._books.tell(WorkerLost(worker.name, ending.kind, ending.reason))
            await self._bury(ending, wanted)
            return
        self._deaths_in_a_row = 0

    async def _run_errand(self, errand: Errand) -> None:
        if isinstance(errand, Unload) and errand.model.name not in {one.name for one in self.holdings()}:
            return
        self._errand = errand
        worker = await self._ready_worker()
        worker.send(errand)
        ending = await self._listen(worker, 1, lambda: self._errand is None)
        self._errand = None
        if ending is not None:
            self._deaths_in_a_row += 1
            self._books.tell(WorkerLost(worker.name, ending.kind, ending.reason))
            log.warning("worker lost over the model %s: %s", errand.model.name, ending.reason)

    async def _ready_worker(self) -> WorkerProcess:
        if self._worker is None or not self._worker.is_alive():
            if self._worker is not None:
                self.restarts += 1
                await asyncio.sleep(_pause_s(self._deaths_in_a_row))
            self._loaded, self.loading = {}, None
            self._worker = WorkerProcess(self._command, self._settings.terms())
            log.info("worker %d started", self._worker.pid)
        return self._worker

    def _task(self, live: LiveJob) -> Task:
        spec = live.job.spec
        pictures = tuple(spec.pictures(live.model))
        # What nobody has checked does not leave the server, unfinished pictures included.
        previews = 0 if self._settings.output_check else spec.previews
        upload = path_of(self._settings, spec.image)
        return Task(live.job.id, live.job.token, live.model, pictures, previews, upload)

    async def _listen(
        self, worker: WorkerProcess, batch_size: int, is_over: Callable[[], bool]
    ) -> Died | None:
        """Pass the worker's news on until the work is over, or until it is gone."""
        begin = last_news = time.monotonic()
        patience = self._settings.step_s
        while not is_over():
            try:
                message = await asyncio.wait_for(worker.inbox.get(), self._settings.silence_s)
            except TimeoutError:
                reason = f"no sign of life for {self._settings.silence_s:g} s"
                return await self._replace(worker, "silent", reason)
            if isinstance(message, Died):
                self.loading = None
                return message
            if not isinstance(message, Beat):
                last_news = time.monotonic()
                patience = self._settings.load_s if isinstance(message, Loading) else self._settings.step_s
                await self._pass_on(message, batch_size, begin)
            elif time.monotonic() - last_news > patience:
                return await self._replace(worker, "stalled", f"no progress for {patience:g} s")
        return None

    async def _pass_on(self, message: FromWorker, batch_size: int, begin: float) -> None:
        match message:
            case Loading(name, share):
                if self.loading is None:
                    self._change(State.LOADING)
                since = self.loading.since if self.loading else time.monotonic()
                self.loading = LoadingModel(name, share, since)
            case Loaded(seconds, model=name):
                if self.loading is not None:
                    self._change(State.RUNNING)
                    for live in self.in_hand.values():
                        live.job.seconds["load"] = seconds
                if seconds:
                    self.load_seconds[name] = seconds
                    self._books.tell(ModelLoaded(name, seconds))
                self._loaded[name], self.loading = message, None
            case Managed(error):
                self._errand = self.loading = None
                if error is not None:
                    log.warning("a model could not be made ready: %s", error)
            case Stepped(jobs, done, of):
                for live in self._known(jobs):
                    # Not every step need be told; a second attempt begins anew.
                    made = done - live.progress[0] if done > live.progress[0] else done
                    live.progress = (done, of)
                    self._books.tell(happenings.Stepped(made * live.job.spec.n))
                    live.events.append("progress", {"done": done, "of": of})
            case Preview(job_id, index, picture, image):
                for live in self._known((job_id,)):
                    encoded = await asyncio.to_thread(preview_base64, image, live.job.spec.output_format)
                    place = {"index": index, "picture": picture}
                    size = {"width": image.width, "height": image.height}
                    live.events.append("preview", {**place, **size, "b64_json": encoded})
            case BatchDrawn(pictures, free, total):
                self._books.tell(Drew(f"{self.breaker.name}:{self.worker_pid}", pictures, free, total))
            case Drawn(job_id, drawing):
                seconds = (time.monotonic() - begin) / batch_size
                self._keep(self.in_hand.pop(job_id), drawing, seconds)
            case Refused(job_id, code, text):
                self.loading = None
                await self._books.finish(self.in_hand.pop(job_id), State.FAILED, JobError(code, text))
            case Stopped(job_id):
                del self.in_hand[job_id]

    def _keep(self, live: LiveJob, drawing: Drawing, seconds: float) -> None:
        if live.is_ending:  # cancelled too late for the worker to know
            return
        self._books.queue.rate.finished(live.job.spec.cost, seconds)
        self._books.keep(live, drawing, self._loaded[live.model.name], self.breaker)

    def _known(self, jobs: Sequence[str]) -> list[LiveJob]:
        return [self.in_hand[job_id] for job_id in jobs if job_id in self.in_hand]

    def _change(self, state: State) -> None:
        for live in self.in_hand.values():
            if not live.is_ending:
                live.change(state)

    async def _replace(self, worker: WorkerProcess, kind: str, reason: str) -> Died:
        worker.kill()
        await worker.gone()
        self.loading = None
        return Died(reason, kind)

    async def _bury(self, ending: Died, batch: list[LiveJob]) -> None:
        self._deaths_in_a_row += 1
        left = [live for live in batch if live.job.id in self.in_hand and not live.is_ending]
        log.warning("worker lost over %s: %s", ", ".join(live.job.id for live in left), ending.reason)
        for live in left:
            live.is_suspect = True
            live.job.deaths += len(batch) == 1
            if live.job.deaths <= DEATHS_ALLOWED:
                await self._books.give_back(live, "worker_died")
                continue
            message = (
                f"{live.job.deaths} workers died of this job, the last because of this: {ending.reason}. "
                "It is not tried again; the server's log has more."
            )
            await self._books.finish(live, State.FAILED, JobError(Problem.WORKER_DIED.code, message))


def _pause_s(deaths_in_a_row: int) -> float:
    """Seconds before another worker is started: none after the first death, then ever longer."""
    return 0.0 if deaths_in_a_row < 2 else min(0.1 * 2.0**deaths_in_a_row, LONGEST_PAUSE_S)
