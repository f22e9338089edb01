"""Two ways to press on a server, and what comes out of them.

Closed loop: so many clients, each of which asks again as soon as it has its answer. It finds the throughput,
and hides waiting: a slow server is asked less often. Open loop: requests come at a rate of their own, as from
people who don't know of each other, and each one's time runs from the moment it was due. It shows
the waiting.
Source: Schroeder, Wierman and Harchol-Balter, "Open Versus Closed: A Cautionary Tale" (NSDI 2006).
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

Ask = Callable[[], Awaitable[None]]  # one request and its answer; AskFailed where that is no success


class AskFailed(Exception):
    """A request without success; the message is a word or two to count by, such as "status 429"."""


@dataclass
class Answers:
    """What a loop has seen: seconds of each success, failures by reason, seconds from first to last."""

    times: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    elapsed: float = 0.0

    @property
    def per_second(self) -> float:
        """Successes a second."""
        return len(self.times) / self.elapsed if self.elapsed else 0.0


async def closed_loop(ask: Ask, clients: int, seconds: float) -> Answers:
    """So many clients for so long; what is under way at the end is waited for."""
    answers, begin = Answers(), time.perf_counter()

    async def client() -> None:
        while (now := time.perf_counter()) - begin < seconds:
            await _note(ask, now, answers)

    await asyncio.gather(*(client() for _ in range(clients)))
    answers.elapsed = time.perf_counter() - begin
    return answers


async def open_loop(ask: Ask, rate: float, seconds: float) -> Answers:
    """`rate` requests a second, evenly spaced, whatever becomes of those before."""
    answers, begin = Answers(), time.perf_counter()
    under_way = []
    for number in range(max(1, round(rate * seconds))):
        due = begin + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        under_way.append(asyncio.create_task(_note(ask, due, answers)))
    await asyncio.gather(*under_way)
    answers.elapsed = time.perf_counter() - begin
    return answers


async def _note(ask: Ask, since: float, answers: Answers) -> None:
    try:
        await ask()
    except AskFailed as failure:
        answers.failures[str(failure)] += 1
    else:
        answers.times.append(time.perf_counter() - since)


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that this share of all does not exceed (nearest rank); None of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None
