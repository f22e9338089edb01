"""Who is next: three priorities, and within each a share of the machine for every key by its weight.

Start-time fair queueing: a job gets a start tag, the larger of the queue's virtual time and the tag at which
its key's previous job ends; a job's length is its cost divided by its key's weight. The smallest tag goes
first, so a key that sends a thousand jobs delays another key's single one by one job, not by a thousand.
Source: Goyal, Vin and Cheng, "Start-time Fair Queuing" (SIGCOMM 1996). The queue is bounded, and says when to
come again from the rate at which jobs have been finished lately.
"""

import itertools
import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from sd35.serving.jobs import Job, Priority
from sd35.serving.problems import Problem, ServiceError

RANKS = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}
LONGEST_RETRY_S = 120  # what OpenAI's package honours at most


@dataclass
class ServiceRate:
    """Megapixel-steps a second and seconds a job on one worker, as moving averages of what was finished."""

    workers: int = 1  # that draw at the same time
    cost_per_s: float | None = None
    job_s: float = 1.0
    _weight: float = field(default=0.2, repr=False)

    def finished(self, cost: float, seconds: float) -> None:
        """A job of this cost took this long, or its share of a batch."""
        rate, first = cost / max(seconds, 1e-6), self.cost_per_s is None
        self.cost_per_s = rate if first else self._mix(self.cost_per_s or 0.0, rate)
        self.job_s = seconds if first else self._mix(self.job_s, seconds)

    def retry_after_s(self) -> int:
        """Whole seconds until a place in a full queue is free."""
        return max(1, min(math.ceil(self.job_s / self.workers), LONGEST_RETRY_S))

    def wait_s(self, cost: float) -> float | None:
        """Seconds that work of this cost takes, once something has been measured."""
        return None if self.cost_per_s is None else cost / (self.cost_per_s * self.workers)

    def _mix(self, old: float, new: float) -> float:
        return old + self._weight * (new - old)


@dataclass
class FairQueue:
    """The jobs that wait; not for several threads."""

    limit: int
    limit_per_key: int
    rate: ServiceRate = field(default_factory=ServiceRate)
    _lanes: dict[Priority, "_Lane"] = field(default_factory=lambda: {p: _Lane() for p in Priority})
    _per_key: Counter[str | None] = field(default_factory=Counter)

    def __len__(self) -> int:
        return sum(len(lane.jobs) for lane in self._lanes.values())

    def admit(self, key_id: str | None, reserved: int = 0, own_limit: int | None = None) -> None:
        """Raise queue_full where no more may wait; `reserved` places are promised already."""
        limit_per_key = min(self.limit_per_key, own_limit or self.limit_per_key)
        if len(self) + reserved >= self.limit:
            raise self._full(f"The queue is full ({self.limit} jobs wait)")
        if self._per_key[key_id] >= limit_per_key:
            raise self._full(f"{limit_per_key} jobs of yours wait already")

    def put(self, job: Job, weight: float = 1.0, *, is_first: bool = False) -> None:
        """Let a job wait, whatever the limit: it has been acknowledged. `is_first`: it has waited before."""
        self._per_key[job.key_id] += 1
        self._lanes[job.priority].put(job, weight, is_first=is_first)

    def take(self, chosen: Job | None = None) -> Job | None:
        """The next job, or the chosen one; None if none waits."""
        lanes = self._lanes.values() if chosen is None else [self._lanes[chosen.priority]]
        for lane in lanes:
            if (job := lane.take(chosen)) is not None:
                self._per_key[job.key_id] -= 1
                return job
        return None

    def in_order(self) -> Iterator[Job]:
        """All jobs that wait, the next one first; nobody may come or go meanwhile."""
        for lane in self._lanes.values():
            yield from (lane.jobs[job_id] for _, _, job_id in lane.order)

    def discard(self, job: Job) -> bool:
        """Forget a job that waits; False if it doesn't."""
        if not self._lanes[job.priority].remove(job):
            return False
        self._per_key[job.key_id] -= 1
        return True

    def position(self, job: Job) -> int | None:
        """How many go before it if nobody else comes, None if it doesn't wait."""
        own = self._lanes[job.priority]
        if job.id not in own.jobs:
            return None
        ahead = (lane for p, lane in self._lanes.items() if RANKS[p] < RANKS[job.priority])
        return sum(len(lane.jobs) for lane in ahead) + own.before(job)

    def eta_s(self, job: Job) -> float | None:
        """Seconds for what goes before a waiting job, and for itself; None before anything was measured."""
        own = self._lanes[job.priority]
        if job.id not in own.jobs:
            return None
        ahead = (lane for p, lane in self._lanes.items() if RANKS[p] < RANKS[job.priority])
        before = sum(one.spec.cost for lane in ahead for one in lane.jobs.values())
        return self.rate.wait_s(before + own.cost_before(job) + job.spec.cost)

    def cost(self) -> float:
        """Megapixel-steps that wait."""
        return sum(job.spec.cost for lane in self._lanes.values() for job in lane.jobs.values())

    def oldest_at(self) -> float | None:
        """When the job was made that waits longest, in seconds since 1970; None if none waits."""
        made = (job.created_at for lane in self._lanes.values() for job in lane.jobs.values())
        return min(made, default=None)

    def by_priority(self) -> dict[str, int]:
        """How many wait in each."""
        return {priority.value: len(lane.jobs) for priority, lane in self._lanes.items()}

    def _full(self, what: str) -> ServiceError:
        after = self.rate.retry_after_s()
        return ServiceError(Problem.QUEUE_FULL, f"{what}: come again in {after} s.", retry_after_s=after)


@dataclass
class _Lane:
    """One priority: places sorted by start tag, in a list (moving ten thousand of them is one copy)."""

    jobs: dict[str, Job] = field(default_factory=dict)
    order: list["_Place"] = field(default_factory=list)
    places: dict[str, "_Place"] = field(default_factory=dict)
    now: float = 0.0  # virtual time: the start tag last taken
    ends: dict[str | None, float] = field(default_factory=dict)
    count_up: "itertools.count[int]" = field(default_factory=itertools.count)

    def put(self, job: Job, weight: float, *, is_first: bool) -> None:
        tag = -1.0
        if not is_first:
            tag = max(self.now, self.ends.get(job.key_id, 0.0))
            self.ends[job.key_id] = tag + job.spec.cost / weight
        place = (tag, next(self.count_up), job.id)
        self.jobs[job.id], self.places[job.id] = job, place
        insort(self.order, place)

    def take(self, chosen: Job | None) -> Job | None:
        if not self.order:
            self.ends.clear()  # nobody waits, nobody has an advantage
            self.now = 0.0
            return None
        tag, _, job_id = self.order[0] if chosen is None else self.places[chosen.id]
        self.now = max(self.now, tag)
        job = self.jobs[job_id]
        self.remove(job)
        return job

    def remove(self, job: Job) -> bool:
        if job.id not in self.jobs:
            return False
        del self.order[self.before(job)], self.jobs[job.id], self.places[job.id]
        return True

    def cost_before(self, job: Job) -> float:
        return sum(self.jobs[job_id].spec.cost for _, _, job_id in self.order[: self.before(job)])

    def before(self, job: Job) -> int:
        return bisect_left(self.order, self.places[job.id])


_Place = tuple[float, int, str]  # start tag, order of arrival, job
