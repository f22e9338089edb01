"""Time, told fairly: warm-up apart, medians, and the queue of a device drained before a clock is read.

A card works behind the program's back. A drawing's listener hears of a step when it is over, while one more
is queued (`sampling.Progress`), so the host's clock is right between steps and no card waits for it. Work
that is shorter than a host's answer is timed by events in the device's own queue. The first step of each
drawing is left out, as it carries what an engine does once a request; that work is in the stage's seconds.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence

import psutil
import torch


class StepMarks:
    """When each step was over: the listener of a drawing; `milliseconds` are those between steps."""

    def __init__(self) -> None:
        self._instants: list[float] = []

    def __call__(self, done: int, of: int) -> None:
        """A step is over."""
        self._instants.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        """From each step's end to the next one's; empty for fewer than two."""
        return [1e3 * (end - begin) for begin, end in itertools.pairwise(self._instants)]


class FirstStep:
    """How long until the first step is over: compiling, recording and all."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self.seconds: float | None = None

    def __call__(self, done: int, of: int) -> None:
        """The first call counts."""
        if self.seconds is None:
            self.seconds = time.perf_counter() - self._begin


def process_seconds() -> float:
    """How long this process has been there: starting Python and importing libraries are in it."""
    return time.time() - psutil.Process().create_time()


def drain(device: torch.device) -> None:
    """Wait until a device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: Sequence[float]) -> float:
    """The distance between the 10th and the 90th percentile."""
    if len(values) < 2:
        return 0.0
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return tenths[-1] - tenths[0]


def median_seconds(
    work: Callable[[], object], device: torch.device, rounds: int = 10, warm: int = 3
) -> float:
    """The median time of a piece of work that fills the device."""
    for _ in range(warm):
        work()
    ticks = [_tick(device)]
    for _ in range(rounds):
        work()
        ticks.append(_tick(device))
    drain(device)
    return statistics.median(_seconds(begin, end) for begin, end in itertools.pairwise(ticks))


def _tick(device: torch.device) -> torch.cuda.Event | float:
    """Now, on the clock of the device."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _seconds(begin: torch.cuda.Event | float, end: torch.cuda.Event | float) -> float:
    if isinstance(begin, float) or isinstance(end, float):
        assert isinstance(begin, float), "both ticks are of one clock"
        assert isinstance(end, float), "both ticks are of one clock"
        return end - begin
    return begin.elapsed_time(end) / 1e3
