"""Who is next: three priorities, and within each a share of the machine for every key by its weight.

Start-time fair queueing: a job gets a start tag, the larger of the queue's virtual time and the tag at which
its key's previous job ends; a job's length is its cost divided by its key's weight. The smallest tag goes
first, so a key that sends a thousand jobs delays another key's single one by one job, not by a thousand.
Source: Goyal, Vin and Cheng, "Start-time Fair Queuing" (SIGCOMM 1996). The queue is bounded, and says when to
come again from the rate at which jobs have been finished lately.
"""

import heapq
import itertools
import math
from collections import Counter
from dataclasses import dataclass, field

from sd35.serving.jobs import Job, Priority
from sd35.serving.problems import Problem, ServiceError

RANKS = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}
LONGEST_RETRY_S = 120  # what OpenAI's package honours at most


@dataclass
class ServiceRate:
    """Megapixel-steps a second and seconds a job, as moving averages of what was finished."""

    cost_per_s: float | None = None
    job_s: float = 1.0
    _weight: float = field(default=0.2, repr=False)

    def finished(self, cost: float, seconds: float) -> None:
        """A job of this cost took this long."""
        rate, first = cost / max(seconds, 1e-6), self.cost_per_s is None
        self.cost_per_s = rate if first else self._mix(self.cost_per_s or 0.0, rate)
        self.job_s = seconds if first else self._mix(self.job_s, seconds)

    def retry_after_s(self) -> int:
        """Whole seconds until a place in a full queue is free."""
        return max(1, min(math.ceil(self.job_s), LONGEST_RETRY_S))

    def wait_s(self, cost: float) -> float | None:
        """Seconds that work of this cost takes, once something has been measured."""
        return None if self.cost_per_s is None else cost / self.cost_per_s

    def _mix(self, old: float, new: float) -> float:
        return old + self._weight * (new - old)


@dataclass
class FairQueue:
    """The jobs that wait; not for several threads."""

    limit: int
    limit_per_key: int
    rate: ServiceRate = field(default_factory=ServiceRate)
    _lanes: dict[Priority, "_Lane"] = field(default_factory=lambda: {p: _Lane() for p in Priority})
    _waiting: dict[str, Job] = field(default_factory=dict)
    _per_key: Counter[str | None] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self._waiting)

    def admit(self, key_id: str | None, reserved: int = 0, own_limit: int | None = None) -> None:
        """Raise queue_full where no more may wait; `reserved` places are promised already."""
        limit_per_key = min(self.limit_per_key, own_limit or self.limit_per_key)
        if len(self) + reserved >= self.limit:
            raise self._full(f"The queue is full ({self.limit} jobs wait)")
        if self._per_key[key_id] >= limit_per_key:
            raise self._full(f"{limit_per_key} jobs of yours wait already")

    def put(self, job: Job, weight: float = 1.0, *, is_first: bool = False) -> None:
        """Let a job wait, whatever the limit: it has been acknowledged. `is_first`: it has waited before."""
        self._waiting[job.id] = job
        self._per_key[job.key_id] += 1
        self._lanes[job.priority].put(job, weight, is_first=is_first)

    def take(self) -> Job | None:
        """The next job, None if none waits."""
        for priority in Priority:
            while (job := self._lanes[priority].take()) is not None:
                if self._waiting.get(job.id) is job:
                    self.discard(job)
                    return job
        return None

    def discard(self, job: Job) -> bool:
        """Forget a job that waits; False if it doesn't."""
        if self._waiting.pop(job.id, None) is None:
            return False
        self._per_key[job.key_id] -= 1
        return True

    def position(self, job: Job) -> int | None:
        """How many go before it if nobody else comes, None if it doesn't wait."""
        if job.id not in self._waiting:
            return None
        ahead = sum(self._lanes[p].count(self._waiting) for p in Priority if RANKS[p] < RANKS[job.priority])
        return ahead + self._lanes[job.priority].before(job, self._waiting)

    def cost(self) -> float:
        """Megapixel-steps that wait."""
        return sum(job.spec.cost for job in self._waiting.values())

    def by_priority(self) -> dict[str, int]:
        """How many wait in each."""
        counts = Counter(job.priority for job in self._waiting.values())
        return {priority.value: counts[priority] for priority in Priority}

    def _full(self, what: str) -> ServiceError:
        after = self.rate.retry_after_s()
        return ServiceError(Problem.QUEUE_FULL, f"{what}: come again in {after} s.", retry_after_s=after)


@dataclass
class _Lane:
    """One priority: a heap by start tag; removed jobs stay in it until they come up."""

    heap: list[tuple[float, int, Job]] = field(default_factory=list)
    now: float = 0.0  # virtual time: the start tag last taken
    ends: dict[str | None, float] = field(default_factory=dict)
    count_up: "itertools.count[int]" = field(default_factory=itertools.count)

    def put(self, job: Job, weight: float, *, is_first: bool) -> None:
        if is_first:
            heapq.heappush(self.heap, (-1.0, next(self.count_up), job))
            return
        tag = max(self.now, self.ends.get(job.key_id, 0.0))
        self.ends[job.key_id] = tag + job.spec.cost / max(weight, 1e-6)
        heapq.heappush(self.heap, (tag, next(self.count_up), job))

    def take(self) -> Job | None:
        if not self.heap:
            self.ends.clear()  # nobody waits, nobody has an advantage
            self.now = 0.0
            return None
        tag, _, job = heapq.heappop(self.heap)
        self.now = max(self.now, tag)
        return job

    def count(self, waiting: dict[str, Job]) -> int:
        return sum(waiting.get(job.id) is job for _, _, job in self.heap)

    def before(self, job: Job, waiting: dict[str, Job]) -> int:
        own = next((entry[:2] for entry in self.heap if entry[2] is job), None)
        if own is None:
            return 0
        return sum(entry[:2] < own and waiting.get(entry[2].id) is entry[2] for entry in self.heap)
