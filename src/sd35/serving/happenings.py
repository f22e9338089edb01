"""What happens in a server, told to whoever observes: metrics count it, alerts judge it, logs write it.

The job core tells, and asks nothing back. An observer may not raise into a job: whatever it raises is logged
and forgotten. Observers are called on the event loop, so they count and return; a job that comes with a
happening may change later, so what is needed of it is read at once.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from sd35.serving.jobs import Job

FACES = ("native", "openai", "sdapi", "stability")
PLACES = ("database", "storage")
LOST = ("crashed", "killed", "silent", "stalled")  # how a worker ends
NOT_FINITE = "not_finite"
ABNORMAL = (NOT_FINITE, "black", "flat", "saturated", "noise", "identical")  # what a picture can be

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refused:
    """A request never became a job: the face it came by, a Problem's code, and the filter's list if it was
    that.
    """

    face: str
    code: str
    filter_list: str | None = None


@dataclass(frozen=True)
class Began:
    """An attempt at a job begins."""

    job: Job
    worker: str


@dataclass(frozen=True)
class ModelLoaded:
    """A worker holds a model now."""

    model: str
    seconds: float


@dataclass(frozen=True)
class Stepped:
    """A worker has made so many more steps, counted for each picture."""

    steps: int


@dataclass(frozen=True)
class Drew:
    """A worker has drawn a batch of so many pictures; of its card's memory, what was left then, and all."""

    worker: str
    pictures: int
    free_vram_bytes: int | None = None
    total_vram_bytes: int | None = None


@dataclass(frozen=True)
class Judged:
    """A job's pictures were looked at: each one's abnormality, None where it has none."""

    job: Job
    worker: str
    reasons: tuple[str | None, ...]


@dataclass(frozen=True)
class Diagnosed:
    """A worker's breaker has opened over a job, and this is what was found out."""

    job: Job
    worker: str
    is_fp8: bool  # whether FP8 is at fault
    text: str


@dataclass(frozen=True)
class WorkerLost:
    """A worker died or was killed: `kind` is one of a few words, `reason` a sentence."""

    worker: str
    kind: str
    reason: str


@dataclass(frozen=True)
class StoreTried:
    """The `database` or the `storage` of pictures took something, or failed for a reason."""

    place: str
    failure: str | None


@dataclass(frozen=True)
class WebhookTried:
    """A webhook was sent, or failed for a reason."""

    url: str
    failure: str | None


@dataclass(frozen=True)
class Ended:
    """A job has come to its end."""

    job: Job


Happening = (
    Refused
    | Began
    | ModelLoaded
    | Stepped
    | Drew
    | Judged
    | Diagnosed
    | WorkerLost
    | StoreTried
    | WebhookTried
    | Ended
)
Observer = Callable[[Happening], None]


class Observers:
    """Everyone who wants to know."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = list(observers)

    def add(self, observer: Observer) -> None:
        """Tell this one, too."""
        self._observers.append(observer)

    def tell(self, happening: Happening) -> None:
        """Tell all; one that raises harms neither the others nor the job."""
        for observer in self._observers:
            try:
                observer(happening)
            except Exception:
                log.exception("an observer failed over %s", type(happening).__name__)
