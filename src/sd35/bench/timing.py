"""Time, told fairly: warm-up apart, medians, and the queue of a device drained before a clock is read.

A card works behind the program's back, so the host's clock can't see a step end. Marks between steps are
events in the device's own queue: they cost it nothing and are read when the drawing is over. The first
step of each drawing is left out, as it carries what an engine does once a request; that work is in the
stage's seconds.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch


class StepMarks:
    """Marks in the queue of a device, one after each step; `milliseconds` are those between them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[torch.cuda.Event] = []
        self._instants: list[float] = []

    def __call__(self, done: int, of: int) -> None:
        """A step is over, or on its way: the listener of a drawing."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._events.append(event)
        else:
            self._instants.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        """From each mark to the next; empty for fewer than two."""
        drain(self._device)
        if self._events:
            pairs = zip(self._events, self._events[1:], strict=False)
            return [begin.elapsed_time(end) for begin, end in pairs]
        return [1e3 * (end - begin) for begin, end in zip(self._instants, self._instants[1:], strict=False)]


class FirstStep:
    """How long until the first step is over: compiling, capturing and all."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._begin = device, time.perf_counter()
        self.seconds: float | None = None

    def __call__(self, done: int, of: int) -> None:
        """Wait for the first step's results, and never again."""
        if self.seconds is None:
            drain(self._device)
            self.seconds = time.perf_counter() - self._begin


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
    marks = StepMarks(device)
    for _ in range(warm):
        work()
    for done in range(rounds + 1):
        marks(done, rounds)
        if done < rounds:
            work()
    return statistics.median(marks.milliseconds()) / 1e3
