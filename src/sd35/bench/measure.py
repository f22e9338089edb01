"""Draw, and listen: a warm-up that is told apart, then rounds of which the medians count.

Each round has a new prompt. Our own engine, which keeps embeds, draws the last round's once more.
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch

from sd35.bench.results import Row, empty_row
from sd35.bench.timing import FirstStep, StepMarks, drain, process_seconds, spread
from sd35.bench.workload import OURS, Workload
from sd35.request import Picture
from sd35.runtime.facts import host_peak_bytes, peak_memory_bytes
from sd35.runtime.sampling import OnStep


class Engine(Protocol):
    """Whatever draws: loaded, on its device, and of one workload."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    @property
    def caps(self) -> dict[torch.device, int | None]:
        """Each device that it was given, `device` first, and the most that it might allocate there."""
        ...

    @property
    def precision(self) -> str:
        """Dtypes of the transformer's weights."""
        ...

    @property
    def attention(self) -> str:
        """The implementation of attention."""
        ...

    @property
    def plan(self) -> str:
        """How its weights share the device; "resident" where all of them stay."""
        ...

    @property
    def cap_bytes(self) -> int | None:
        """The most that it was allowed to allocate there, None where nothing was said."""
        ...

    @property
    def load_seconds(self) -> float | None:
        """What its weights took from the disk to where they are used, None where none were read."""
        ...

    def draw(self, pictures: Sequence[Picture], on_step: OnStep) -> dict[str, float]:
        """Draw a batch (or do the workload's one stage of it); seconds of each stage.

        `on_step` hears of each step when it is over, with one more queued where the device has a queue.
        """
        ...


def measure(engine: Engine, name: str, workload: Workload) -> Row:
    """The figures of a loaded engine."""
    first_call = _first_call(engine, workload)
    is_start = workload.checkpoint is not None and workload.stage is None
    first_picture = process_seconds() if is_start else None  # making random weights is nobody's start
    for device in engine.caps:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
    step_ms: list[float] = []
    stages: list[dict[str, float]] = []
    for round_number in range(1, workload.rounds + 1):
        marks = StepMarks()
        stages.append(engine.draw(workload.pictures(round_number), marks))
        step_ms += marks.milliseconds()
    keeps = name == OURS and workload.stage is None
    kept = engine.draw(workload.pictures(workload.rounds), StepMarks()) if keeps else None
    peaks = {str(device): peak_memory_bytes(device) for device in engine.caps}
    row = replace(
        empty_row(name, workload),
        precision=engine.precision,
        attention=engine.attention,
        plan=engine.plan,
        cap_bytes=engine.cap_bytes,
        seconds=statistics.median(sum(one.values()) for one in stages),
        stage_seconds={stage: statistics.median(one[stage] for one in stages) for stage in stages[0]},
        kept_seconds=sum(kept.values()) if kept else None,
        peak_bytes=max(peaks.values()),
        devices=_by_device(peaks, engine.caps) if len(peaks) > 1 else {},
        first_call_seconds=first_call,
        first_picture_seconds=first_picture,
        load_seconds=engine.load_seconds,
        host_peak_bytes=host_peak_bytes(),
    )
    return _with_steps(row, step_ms, stages)


def _by_device(
    peaks: dict[str, int], caps: dict[torch.device, int | None]
) -> dict[str, dict[str, int | None]]:
    by_name = {str(device): cap for device, cap in caps.items()}
    return {name: {"peak_bytes": peak, "cap_bytes": by_name[name]} for name, peak in peaks.items()}


def _first_call(engine: Engine, workload: Workload) -> float | None:
    """Draw once to warm up: seconds until its first step was over; None where there are no steps."""
    first = FirstStep()
    engine.draw(workload.pictures(0), first)
    drain(engine.device)
    return first.seconds


def _with_steps(row: Row, step_ms: list[float], stages: list[dict[str, float]]) -> Row:
    """One step a drawing leaves nothing between marks: the stage's seconds are the step's then."""
    if "denoise" not in stages[0]:
        return row
    step_ms = step_ms or [1e3 * one["denoise"] / row.steps for one in stages]
    return replace(row, ms_per_step=statistics.median(step_ms), spread=spread(step_ms))
