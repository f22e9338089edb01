"""Which of the waiting jobs a worker draws next, and which others with it.

The fair queue gives the order; two things may go past it, and both save the machine work. A worker takes a
job whose model it holds before one whose model it would have to load; and jobs that can share their steps are
drawn as one batch with it. Who is passed over for that is remembered: a job that was first passed over
`skip_s` ago lets nobody past any more, so that is how long it waits at most for what is behind it. Nobody
passes a higher priority.

A job whose model another worker holds is left to that one for as long as loading it here would take: sooner
or later, waiting is the longer way.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice, takewhile

from sd35.serving.fair_queue import FairQueue
from sd35.serving.jobs import Job
from sd35.serving.live import LiveJob

LOOK_AHEAD = 256  # jobs


class Dispatcher:
    """Chooses from one queue; `lives` has all jobs in it by id."""

    def __init__(
        self,
        queue: FairQueue,
        lives: Mapping[str, LiveJob],
        *,
        max_batch: int,
        skip_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue, self._lives, self._clock = queue, lives, clock
        self._max_batch, self._skip_s = max_batch, skip_s

    def take(self, held: Collection[str], elsewhere: Mapping[str, float]) -> list[LiveJob]:
        """Take jobs off the queue for a worker that holds these models; none: leave them to others.

        `elsewhere` are the models that other workers hold, with the seconds that loading one here would take.
        """
        first = self._first(held, elsewhere)
        if first is None:
            return []
        batch = [first, *self._companions(first)]
        for live in batch:
            self._queue.take(live.job)
        return batch

    def has_room(self, batch: list[LiveJob]) -> bool:
        """Whether a batch could be larger."""
        return not batch[0].is_suspect and _pictures(batch) < self._max_batch

    def _first(self, held: Collection[str], elsewhere: Mapping[str, float]) -> LiveJob | None:
        waiting = list(self._waiting())
        ours = [live for live in waiting if not self._is_for_another(live, held, elsewhere)]
        ready = (live for live in ours if live.job.spec.model in held or self._is_impatient(live))
        found = next(ready, None) or next(iter(ours), None)
        self._pass_over(waiting[: waiting.index(found)] if found else waiting)
        return found

    def _companions(self, first: LiveJob) -> list[LiveJob]:
        """Jobs of the same kind and priority that fit beside it."""
        if first.is_suspect:
            return []
        found: list[LiveJob] = []
        passed: list[LiveJob] = []
        room = self._max_batch - first.job.spec.n
        for live in self._waiting():
            if live is first:
                continue
            if live.job.priority != first.job.priority or room < 1:
                break
            if not live.is_suspect and kind(live.job) == kind(first.job) and live.job.spec.n <= room:
                found.append(live)
                self._pass_over(passed)
                room -= live.job.spec.n
            elif self._is_impatient(live):
                break
            else:
                passed.append(live)
        return found

    def _waiting(self) -> Iterator[LiveJob]:
        """The jobs of the highest priority that has some, the next in turn first."""
        jobs = self._queue.in_order()
        first = next(jobs, None)
        if first is not None:
            alike = takewhile(lambda job: job.priority is first.priority, jobs)
            yield from (
                self._lives[job.id] for job in islice((first, *islice(alike, LOOK_AHEAD)), LOOK_AHEAD)
            )

    def _is_for_another(self, live: LiveJob, held: Collection[str], elsewhere: Mapping[str, float]) -> bool:
        model = live.job.spec.model
        if model in held or model not in elsewhere:
            return False
        waited = 0.0 if live.passed_at is None else self._clock() - live.passed_at
        return waited < min(elsewhere[model], self._skip_s)

    def _is_impatient(self, live: LiveJob) -> bool:
        return live.passed_at is not None and self._clock() - live.passed_at >= self._skip_s

    def _pass_over(self, lives: list[LiveJob]) -> None:
        for live in lives:
            if live.passed_at is None:
                live.passed_at = self._clock()


def kind(job: Job) -> tuple[object, ...]:
    """What jobs that are drawn as one batch have in common."""
    spec = job.spec
    size = spec.width, spec.height
    return spec.model, *size, spec.num_inference_steps, spec.guidance_scale > 1, spec.strength


def _pictures(batch: list[LiveJob]) -> int:
    return sum(live.job.spec.n for live in batch)
