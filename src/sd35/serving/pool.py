"""All workers: one for each device, what each does next, what each holds, and who loads what beforehand.

Workers hold models as they see fit (`shelf.py`) and say what they hold; this is where that comes together:
where a model is, whether a job for it had better wait for another worker, and how far its loading has come. A
model is loaded once however many ask for it: while it is on its way, asking again is answered with how far.
"""

import asyncio
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from sd35.serving.attendant import Attendant, Books, Errand
from sd35.serving.breaker import Commands
from sd35.serving.dispatch import Dispatcher
from sd35.serving.live import LiveJob
from sd35.serving.messages import Holding, Load, Unload
from sd35.serving.problems import Problem, ServiceError
from sd35.serving.settings import Model, ServerSettings

LONGEST_RETRY_S = 120  # what OpenAI's package honours at most
LOOK_AGAIN_S = 0.25  # at jobs that were left to other workers
BATCH_WAIT_S = 0.02  # at most, for others to draw with
SHARE_TO_WAIT = 0.05  # of the time that a job takes, at most
PLACES = ("on_disk", "loading", "ram", "vram")  # the further right, the sooner it draws


@dataclass(frozen=True)
class Progress:
    """How far a model's loading is: `share` of its weights, seconds spent and left, if anyone can tell."""

    share: float
    seconds: float
    eta_s: float | None

    def as_dict(self) -> dict[str, Any]:
        """For clients."""
        return {"percent": round(100 * self.share), "seconds": self.seconds, "eta_s": self.eta_s}


class Pool:
    """The attendants, and what they do next; `run` goes on until it is cancelled."""

    def __init__(
        self,
        settings: ServerSettings,
        commands: Commands,
        books: Books,
        lives: Mapping[str, LiveJob],
    ) -> None:
        self._queue = books.queue
        self._dispatcher = Dispatcher(
            books.queue, lives, max_batch=settings.max_batch, skip_s=settings.skip_s
        )
        self.is_closed = self.is_paused = False  # no job begins any more; no job begins just now
        self.expected = 0  # jobs on their way into the database: they have a place in the queue already
        self._arrived = 0  # jobs that have come out of it
        self._news = asyncio.Event()
        self.attendants = [
            Attendant(settings, commands.on(device), books, device) for device in settings.device_names
        ]

    async def run(self) -> None:
        """Keep all workers busy; should one attendant fail, all end."""
        async with asyncio.TaskGroup() as group:
            for attendant in self.attendants:
                group.create_task(attendant.run())

    async def next_work(self, attendant: Attendant) -> list[LiveJob] | Errand:
        """A model to load or unload, or the next jobs to draw together, once there is something.

        A worker that has nothing to do waits a moment for jobs that could join the first.
        """
        was_idle = False
        while True:
            if attendant.errands:
                return attendant.errands.popleft()
            may_draw = len(self._queue) > 0 and not (self.is_closed or self.is_paused)
            if may_draw and was_idle and self.expected:
                await self._await_arrivals()
            if may_draw and (batch := self._dispatcher.take(attendant.awake(), self.elsewhere(attendant))):
                return batch
            was_idle = True
            self._news.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), LOOK_AGAIN_S if may_draw else None)

    def look_again(self) -> None:
        """Have idle workers look for work."""
        self._news.set()

    def pause(self, *, is_paused: bool) -> None:
        """Begin no further job, or begin them again."""
        self.is_paused = is_paused
        self.look_again()

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """While one more job is on its way into the database."""
        self.expected += 1
        try:
            yield
        finally:
            self.expected -= 1
            self._arrived += 1

    async def _await_arrivals(self) -> None:
        """Until those jobs are here that are on their way now, but not so long as to matter."""
        wanted = self._arrived + self.expected
        end = time.monotonic() + min(BATCH_WAIT_S, SHARE_TO_WAIT * self._queue.rate.job_s)
        while self._arrived < wanted and time.monotonic() < end:
            await asyncio.sleep(0.001)

    async def dismiss(self) -> None:
        """End all workers."""
        await asyncio.gather(*(attendant.dismiss() for attendant in self.attendants))

    def in_hand(self) -> dict[str, LiveJob]:
        """The jobs that are being drawn, by id."""
        return {job_id: live for one in self.attendants for job_id, live in one.in_hand.items()}

    def cancel(self, live: LiveJob) -> None:
        """Tell the worker that draws this job, if one does."""
        for attendant in self.attendants:
            attendant.cancel(live)

    def elsewhere(self, asking: Attendant) -> dict[str, float]:
        """Models that other workers hold ready, and the seconds that loading each took last."""
        others = (name for one in self.attendants if one is not asking for name in one.awake())
        return {name: self.load_seconds(name) or 0.0 for name in others}

    def load_seconds(self, name: str) -> float | None:
        """What loading this model took last, wherever."""
        measured = (one.load_seconds.get(name) for one in self.attendants)
        return max((seconds for seconds in measured if seconds), default=None)

    def place(self, name: str) -> str:
        """The best place that the model has: on_disk, loading, ram or vram."""
        places = [one.place for _, one in self._holdings(name)]
        if self.progress(name) is not None:
            places.append("loading")
        return max(places, key=PLACES.index, default="on_disk")

    def progress(self, name: str) -> Progress | None:
        """How far the model's loading is, None where nobody loads it."""
        now = time.monotonic()
        for attendant in self.attendants:
            loading = attendant.loading
            if loading is not None and loading.name == name:
                spent, share = now - loading.since, loading.share
                expected = spent / share if share else self.load_seconds(name)
                return Progress(share, spent, None if expected is None else max(0.0, expected - spent))
        if any(name in attendant.wanted() for attendant in self.attendants):
            return Progress(0.0, 0.0, self.load_seconds(name))
        return None

    def describe(self, name: str) -> dict[str, Any]:
        """A model's row for clients."""
        held, progress = self._holdings(name), self.progress(name)
        return {
            "state": self.place(name),
            "loading": None if progress is None else progress.as_dict(),
            "bytes": max((one.bytes for _, one in held), default=None),
            "last_used_at": max((one.used_at for _, one in held), default=None),
            "workers": [{"device": device, "state": one.place} for device, one in held],
        }

    def load(self, model: Model) -> None:
        """Have a worker get the model ready, the least busy one; nothing happens if one has."""
        if self.place(model.name) in ("vram", "loading"):
            return
        holding = [one for one in self.attendants if model.name in {held.name for held in one.holdings()}]
        chosen = min(holding or self.attendants, key=lambda one: (len(one.in_hand), len(one.errands)))
        chosen.errands.append(Load(model))
        self.look_again()

    def unload(self, model: Model) -> None:
        """Have every worker let go of the model, after what it draws now."""
        for attendant in self.attendants:
            attendant.errands.append(Unload(model))
        self.look_again()

    def refuse_unless_ready(self, model: Model, wait_s: float) -> None:
        """model_loading for a client that won't wait as long as loading takes; the loading begins."""
        if self.place(model.name) in ("vram", "ram"):
            return
        self.load(model)
        progress = self.progress(model.name)
        assert progress is not None, "it was just asked for"
        if progress.eta_s is not None and progress.eta_s <= wait_s:
            return
        after = min(LONGEST_RETRY_S, math.ceil(progress.eta_s or 5))
        raise ServiceError(
            Problem.MODEL_LOADING,
            f"The model {model.name!r} is being loaded: come again in {max(1, after)} s.",
            retry_after_s=max(1, after),
            loading={"state": "loading", **progress.as_dict()},
        )

    def _holdings(self, name: str) -> list[tuple[str, Holding]]:
        return [
            (attendant.device, one)
            for attendant in self.attendants
            for one in attendant.holdings()
            if one.name == name
        ]
