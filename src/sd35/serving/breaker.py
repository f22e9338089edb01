"""A worker's breaker: abnormal pictures in a row open it, and a second opinion says what was at fault.

While it is open the worker gets no job. It is ended (which frees the card), and the last prompt is drawn
again in 16 bits by a process of its own, the witness:

    the witness draws it well       FP8 is at fault, or what this worker's memory held
    the witness's is abnormal too   prompt or checkpoint: FP8 is not at fault, and the breaker closes
    there is no witness             nobody can tell

In the first and the last case a fresh worker must show one good picture before the breaker closes; in the
first it is asked again, with growing pauses, until it does. Whoever asks for black squares on purpose
shall not keep the server busy with second opinions: after one that accuses the prompt, there is none for a
while.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from sd35.serving.happenings import Diagnosed, Happening, Judged
from sd35.serving.jobs import JobError
from sd35.serving.live import LiveJob
from sd35.serving.messages import Batch, Beat, Died, Drawing, Drawn, Loading, Refused, Stopped, Task
from sd35.serving.problems import Problem
from sd35.serving.settings import ServerSettings
from sd35.serving.uploads import path_of
from sd35.serving.worker_process import WorkerProcess

CALM_S = 600.0  # without another second opinion, after one that accused the prompt
PAUSES_S = (10.0, 60.0, 300.0, 600.0)  # before a worker that failed its trial is tried again
NOT_FINITE_ERROR = JobError(
    Problem.NOT_FINITE.code,
    "Drawing went beyond the numbers (NaN or infinity), so there is no picture: try another seed, and if it "
    "stays so, tell the operator.",
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Commands:
    """How workers are started: the usual one, and the witness in 16 bits, where there can be one."""

    worker: Sequence[str]
    witness: Sequence[str] | None = None

    def on(self, device: str) -> "Commands":
        """The same, for this device."""
        witness = None if self.witness is None else (*self.witness, device)
        return Commands((*self.worker, device), witness)


@dataclass(frozen=True)
class Opinion:
    """What drawing a task once more has shown: what is wrong with it (None: nothing), or why it failed."""

    wrong: str | None = None
    failure: str | None = None

    @property
    def is_good(self) -> bool:
        """Whether there is a picture and nothing is wrong with it."""
        return self.wrong is None and self.failure is None


class Breaker:
    """Counts one worker's abnormal pictures; `closed` waits as long as it may not work."""

    def __init__(
        self, name: str, settings: ServerSettings, commands: Commands, tell: Callable[[Happening], None]
    ) -> None:
        self.name, self._settings, self._commands, self._tell = name, settings, commands, tell
        self._streak, self._calm_until = 0, 0.0
        self._suspect: tuple[LiveJob, Task] | None = None
        self._eye: object | None = None

    @property
    def is_open(self) -> bool:
        """Whether the worker must not be given a job."""
        return self._suspect is not None

    async def look(self, live: LiveJob, drawing: Drawing) -> tuple[str | None, ...]:
        """What is wrong with each of a job's pictures; opens where it was one too many."""
        if not self._settings.judges_pictures:
            return (None,) * len(drawing.images)
        reasons = await asyncio.to_thread(self._looked, live, drawing)
        self._count(live, reasons)
        self._tell(Judged(live.job, self.name, reasons))
        return reasons

    async def closed(self, retire_worker: Callable[[], Awaitable[None]]) -> None:
        """Return when the worker may draw: at once, or after a second opinion and a trial."""
        while self._suspect is not None:
            live, task = self._suspect
            await retire_worker()
            await self._find_out(live, task)
            self._suspect = None

    def _looked(self, live: LiveJob, drawing: Drawing) -> tuple[str | None, ...]:
        from sd35.serving.abnormal import Eye  # numpy, in a thread, with the first picture

        self._eye = eye = self._eye if isinstance(self._eye, Eye) else Eye()
        seeds = [live.job.spec.seed + index for index in range(len(drawing.images))]
        return eye.look(drawing.images, seeds, drawing.finite)

    def _count(self, live: LiveJob, reasons: Sequence[str | None]) -> None:
        for index, reason in enumerate(reasons):
            self._streak = self._streak + 1 if reason else 0
            is_too_many = self._streak >= self._settings.abnormal_in_a_row
            if is_too_many and not self.is_open and time.monotonic() >= self._calm_until:
                spec = live.job.spec
                picture = spec.pictures(live.model)[index]
                upload = path_of(self._settings, spec.image)
                self._suspect = live, Task(live.job.id, 0, live.model, (picture,), upload=upload)
                log.error("%s: %d abnormal pictures in a row (%s)", self.name, self._streak, reason)

    async def _find_out(self, live: LiveJob, task: Task) -> None:
        witness = await self._asked(self._commands.witness, task)
        trial = Opinion()
        if witness is None or not witness.wrong:
            trial = await self._tried(task)
        sentence = _sentence(witness, trial)
        is_fp8 = witness is not None and witness.is_good
        self._tell(Diagnosed(live.job, self.name, is_fp8=is_fp8, text=sentence))
        log.error("%s: %s", self.name, sentence)
        if is_fp8:
            await self._until_good(task, trial)
        elif not trial.is_good or witness is not None:
            self._calm_until = time.monotonic() + CALM_S
        self._streak = 0

    async def _until_good(self, task: Task, trial: Opinion) -> None:
        tries = 0
        while not trial.is_good:
            await asyncio.sleep(PAUSES_S[min(tries, len(PAUSES_S) - 1)])
            tries, trial = tries + 1, await self._tried(task)
            log.warning("%s: trial %d: %s", self.name, tries, trial.wrong or trial.failure or "well drawn")

    async def _tried(self, task: Task) -> Opinion:
        opinion = await self._asked(self._commands.worker, task)
        assert opinion is not None, "there is always a worker to try"
        return opinion

    async def _asked(self, command: Sequence[str] | None, task: Task) -> Opinion | None:
        """A process of its own draws the picture once; None where there is no such process."""
        if command is None:
            return None
        ending = await draw_once(command, task, self._settings)
        if not isinstance(ending, Drawing):
            return Opinion(failure=ending)
        from sd35.serving.abnormal import Eye

        seeds = [picture.seed for picture in task.pictures]
        reasons = await asyncio.to_thread(Eye().look, ending.images, seeds, ending.finite)
        return Opinion(wrong=next(filter(None, reasons), None))


async def draw_once(command: Sequence[str], task: Task, settings: ServerSettings) -> Drawing | str:
    """Let a process draw this and end it; the reason in words where it gives no drawing."""
    worker = WorkerProcess(command, settings.terms())
    try:
        worker.send(Batch((task,)))
        return await _heard(worker, settings)
    finally:
        worker.kill()
        await asyncio.shield(worker.gone())


async def _heard(worker: WorkerProcess, settings: ServerSettings) -> Drawing | str:
    patience, last_news = settings.step_s, time.monotonic()
    while True:
        try:
            message = await asyncio.wait_for(worker.inbox.get(), settings.silence_s)
        except TimeoutError:
            return f"no sign of life for {settings.silence_s:g} s"
        match message:
            case Drawn(_, drawing):
                return drawing
            case Refused(_, _, words) | Died(words):
                return words
            case Stopped():
                return "it was stopped"
            case Beat() if time.monotonic() - last_news > patience:
                return f"no progress for {patience:g} s"
            case Beat():
                continue
        last_news = time.monotonic()
        patience = settings.load_s if isinstance(message, Loading) else settings.step_s


def _sentence(witness: Opinion | None, trial: Opinion) -> str:
    again = trial.wrong or (f"no picture: {trial.failure}" if trial.failure else "well drawn")
    if witness is not None and witness.is_good:
        return f"FP8 is at fault: in 16 bits the same picture is well drawn; by a fresh worker: {again}."
    if witness is not None and witness.wrong:
        return f"FP8 is not at fault: in 16 bits the same picture is {witness.wrong} too; see to the prompt."
    why = "there is no 16-bit witness" if witness is None else f"the 16-bit witness failed: {witness.failure}"
    return f"It can't be told whether FP8 is at fault, for {why}; by a fresh worker: {again}."
