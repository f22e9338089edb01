"""When something is worth an alert: what happened lately, held against bounds.

Rules observe what happens and, asked at a moment, say which conditions hold. That a condition which goes on
is told once is the board's business. A bound that is crossed to and fro would ring every minute, so what is
measured must come well back before its condition ends (`Latch`).
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from sd35.serving.gauges import Gauges
from sd35.serving.happenings import (
    PLACES,
    Diagnosed,
    Drew,
    Ended,
    Happening,
    Judged,
    StoreTried,
    WorkerLost,
)
from sd35.serving.jobs import Job, State
from sd35.serving.problems import Problem
from sd35.serving.settings import ServerSettings

WINDOW_S = 900.0
FEWEST_JOBS = 10  # in the window, before a ratio means anything
# Ends that say nothing of the server's health.
_HEALTHY = (Problem.OUTPUT_BLOCKED.code,)


@dataclass(frozen=True)
class Condition:
    """Something that holds now: `name` and `subject` say which, `text` says it to people."""

    name: str
    subject: str
    severity: str  # warning or critical
    text: str


@dataclass
class Latch:
    """On from `high` upwards, off below `low`, and as it was in between."""

    high: float
    low: float
    is_on: bool = False

    def update(self, value: float) -> bool:
        """Whether it is on after this value."""
        self.is_on = value >= (self.low if self.is_on else self.high)
        return self.is_on


@dataclass
class _Recent:
    """Moments in the window, each with a figure."""

    items: "deque[tuple[float, float]]" = field(default_factory=deque)

    def add(self, now: float, figure: float = 1.0) -> None:
        self.items.append((now, figure))

    def figures(self, now: float) -> list[float]:
        while self.items and self.items[0][0] <= now - WINDOW_S:
            self.items.popleft()
        return [figure for _, figure in self.items]


class Rules:
    """The rules of one server; `clock` counts seconds."""

    def __init__(self, settings: ServerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._ends, self._losses = _Recent(), _Recent()
        self._errors = Latch(settings.alert_error_ratio, settings.alert_error_ratio / 2)
        self._waits = Latch(settings.alert_queue_wait_s, settings.alert_queue_wait_s / 2)
        self._failing: dict[str, str] = {}  # place -> why
        self._diagnoses: dict[str, str] = {}  # worker -> what was found out
        self._cured: set[str] = set()  # workers that draw well again; told once before it is forgotten
        self._vram: dict[str, float] = {}  # worker's machine -> share that was free
        self._last_loss = ""

    def observe(self, happening: Happening) -> None:
        """Remember what the rules need."""
        match happening:
            case Ended(job):
                self._ended(job)
            case WorkerLost(_, _, reason):
                self._losses.add(self._clock())
                self._last_loss = reason
            case StoreTried(place, None):
                self._failing.pop(place, None)
            case StoreTried(place, str(failure)):
                self._failing[place] = failure
            case Diagnosed(_, worker, _, text):
                self._diagnoses[worker] = text
                self._cured.discard(worker)
            case Judged(_, worker, reasons):
                if not any(reasons):
                    self._cured.add(worker)
            case Drew(worker, _, int(free), int(total)):
                self._vram[worker.rpartition(":")[0]] = free / total

    def conditions(self, gauges: Gauges) -> list[Condition]:
        """All that hold now."""
        now = self._clock()
        found = [self._error_ratio(now), self._queue_wait(gauges), self._restart_loop(now)]
        found += [self._store(place, gauges) for place in PLACES]
        found += self._abnormal()
        found += [self._headroom(machine, share) for machine, share in self._vram.items()]
        return [condition for condition in found if condition is not None]

    def _abnormal(self) -> list[Condition]:
        found = [
            Condition("abnormal_pictures", worker, "critical", f"Abnormal pictures in a row. {text}")
            for worker, text in self._diagnoses.items()
        ]
        for worker in self._cured:
            self._diagnoses.pop(worker, None)
        self._cured.clear()
        return found

    def _ended(self, job: Job) -> None:
        if job.state is State.SUCCEEDED:
            self._ends.add(self._clock(), 0.0)
        elif job.state is State.FAILED and (job.error is None or job.error.code not in _HEALTHY):
            self._ends.add(self._clock(), 1.0)

    def _error_ratio(self, now: float) -> Condition | None:
        ends = self._ends.figures(now)
        ratio = sum(ends) / len(ends) if len(ends) >= FEWEST_JOBS else 0.0
        if not self._errors.update(ratio) or not ratio:
            return None
        text = f"{sum(ends):g} of {len(ends)} jobs failed in 15 minutes: their records say why."
        return Condition("error_ratio", "jobs", "critical", text)

    def _queue_wait(self, gauges: Gauges) -> Condition | None:
        if not self._waits.update(gauges.longest_wait_s):
            return None
        waiting, longest = sum(gauges.queued.values()), gauges.longest_wait_s
        text = (
            f"{waiting} jobs wait, the oldest for {longest:.0f} s: add a worker, or lower the keys' quotas."
        )
        return Condition("queue_wait", "queue", "warning", text)

    def _restart_loop(self, now: float) -> Condition | None:
        lost = len(self._losses.figures(now))
        if lost < self._settings.alert_restarts:
            return None
        text = f"{lost} workers were lost in 15 minutes, the last because of this: {self._last_loss}."
        return Condition("restart_loop", "worker", "critical", text)

    def _store(self, place: str, gauges: Gauges) -> Condition | None:
        trouble = self._failing.get(place)
        if trouble is None and place == "storage":
            trouble = gauges.store_trouble
        if trouble is None:
            return None
        waiting = f" {gauges.spooled} pictures wait on the disk." if gauges.spooled else ""
        return Condition("store_failing", place, "critical", f"The {place} fails: {trouble}{waiting}")

    def _headroom(self, machine: str, share: float) -> Condition | None:
        if share >= self._settings.alert_vram_headroom:
            return None
        text = f"{share:.1%} of the card's memory was free when a job took most: larger ones will not fit."
        return Condition("vram_headroom", machine, "warning", text)
