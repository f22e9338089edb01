"""The run: one engine after the other, each in its own process, the same work for all.

Our own engine comes first and, when others followed, once more at the end: the two figures say how much the
card drifted meanwhile, and no claim is worth more than that. Every engine starts with empty compile caches
unless they are to be kept, so that `first_call_seconds` is what a new machine sees. When the budget is spent,
engines that have not begun are skipped and the one that runs is ended; either way its row says so.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sd35.bench.results import Report, Row, empty_row, work_of
from sd35.bench.work import shapes_of
from sd35.bench.workload import OURS, Workload

OnProgress = Callable[[Report, str], None]  # the report has grown; what there is to say of it

_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
_LONGEST_REASON = 300  # characters


@dataclass(frozen=True)
class Plan:
    """What a run measures: engines in order, seconds in all, and which extras.

    Our own engine runs once more with each of the attentions in `also`, and within each of the `caps`.
    """

    workload: Workload
    engines: Sequence[str]
    also: Sequence[str] = ()
    caps: Sequence[str] = ()
    budget: float = 480.0
    profiles: bool = True
    keeps_caches: bool = False


@dataclass
class Outcome:
    """What one process found out before it ended; `failure` is why it ended early."""

    row: Row | None = None
    limits: dict[str, Any] | None = None
    kernels: list[dict[str, Any]] | None = None
    notes: list[str] = field(default_factory=list)
    failure: str | None = None


def bench(plan: Plan, machine: dict[str, Any], on_progress: OnProgress) -> Report:
    """Measure all engines of the plan; a failing one costs its own row alone."""
    report = Report(machine, plan.workload.stage, work_of(shapes_of(plan.workload)))
    deadline = time.monotonic() + plan.budget
    repeats = OURS in plan.engines and len(plan.engines) + len(plan.caps) > 1
    reserve = 0.0  # seconds kept back for our engine's second turn
    turns = [(engine, plan.workload) for engine in plan.engines]
    others = [plan.workload.with_attention(name) for name in plan.also]
    others += [plan.workload.within(cap) for cap in plan.caps]
    turns[1:1] = [(OURS, workload) for workload in others]
    for i, (engine, workload) in enumerate(turns):
        begin = time.monotonic()
        outcome = _turn(plan, engine, workload, deadline - begin - reserve, with_limits=i == 0)
        if i == 0 and repeats:
            reserve = time.monotonic() - begin
        _enter(report, outcome, engine, workload)
        on_progress(report, _words(engine, outcome))
    if repeats:
        outcome = _turn(plan, OURS, plan.workload, deadline - time.monotonic(), with_limits=None)
        report.drift = _drift(report, outcome)
        on_progress(report, _words(f"{OURS} again", outcome))
    return report


def _turn(
    plan: Plan, engine: str, workload: Workload, seconds: float, *, with_limits: bool | None
) -> Outcome:
    """One engine in its own process, or the reason why not; limits None is without the profile too."""
    if seconds <= 0:
        return Outcome(failure=f"skipped: the budget of {plan.budget:.0f} s was spent before its turn")
    task = {
        "engine": engine,
        "workload": workload.as_dict(),
        "profile": with_limits is not None and plan.profiles,
        "limits": bool(with_limits) and plan.profiles and engine == OURS,
    }
    with _caches(plan.keeps_caches) as environment:
        return run_worker(task, seconds, environment)


def run_worker(task: dict[str, Any], seconds: float, environment: dict[str, str]) -> Outcome:
    """Start the worker, wait for its end or for the time to be over, and understand what it said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sd35.bench.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=environment,
        start_new_session=True,  # its compilers are its children, and end with it
    )
    try:
        said, complaints = process.communicate(json.dumps(task), timeout=seconds)
    except subprocess.TimeoutExpired:
        _end(process)
        said, _ = process.communicate()
        return understood(said, f"ended: it was not done within the {seconds:.0f} s that were left")
    finally:
        _end(process)
    return understood(said, _reason(process.returncode, complaints) if process.returncode else None)


def understood(said: str, failure: str | None) -> Outcome:
    """A worker's lines, as far as they go; lines of anyone else are passed over."""
    outcome = Outcome(failure=failure)
    for line in said.splitlines():
        found = _object(line)
        if "row" in found:
            outcome.row = Row(**found["row"])
        outcome.limits = found.get("limits", outcome.limits)
        outcome.kernels = found.get("kernels", outcome.kernels)
        outcome.notes += [found["note"]] if "note" in found else []
    return outcome


def _object(line: str) -> dict[str, Any]:
    """What a whole line of a worker holds; nothing for a library's own, or one that was cut off."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _enter(report: Report, outcome: Outcome, engine: str, workload: Workload) -> None:
    if outcome.limits is not None:
        report.limits = outcome.limits
    if outcome.kernels:
        name = _name(engine, workload, taken=engine in report.kernels)
        report.kernels[name] = outcome.kernels
    report.add(outcome.row or empty_row(engine, workload, outcome.failure))
    if outcome.row is not None and outcome.failure is not None:
        outcome.notes.append(f"after its row was measured: {outcome.failure}")
    report.notes += [f"{engine}: {note}" for note in outcome.notes]


def _name(engine: str, workload: Workload, *, taken: bool) -> str:
    """The engine's, with what makes this turn of it another one."""
    runtime = workload.runtime
    return f"{engine} {runtime.get('max_vram') or runtime.get('attention')}" if taken else engine


def _drift(report: Report, again: Outcome) -> dict[str, float] | None:
    first = next((row for row in report.rows if row.engine == OURS), None)
    if first is None or again.row is None or not first.ms_per_step or not again.row.ms_per_step:
        return None
    return {"first_ms_per_step": first.ms_per_step, "last_ms_per_step": again.row.ms_per_step}


def _words(engine: str, outcome: Outcome) -> str:
    """How an engine did, in a line."""
    if outcome.row is None:
        return f"{engine}: {outcome.failure}"
    if outcome.row.ms_per_step is None:
        return f"{engine}: {outcome.row.seconds:.3f} s"
    return f"{engine}: {outcome.row.ms_per_step:.1f} ms/step"


def _reason(code: int, complaints: str) -> str:
    """Why a process failed: the signal that ended it, or the last error that it named."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}, as a system short of memory does"
    lines = [line.strip() for line in complaints.splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line]
    return (errors or lines or [f"ended with code {code} without a word"])[-1][:_LONGEST_REASON]


def _end(process: subprocess.Popen[str]) -> None:
    """End the process and all that it started."""
    if sys.platform == "win32":  # which has no groups of processes to end
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], capture_output=True, check=False)
    else:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def _caches(keep: bool) -> Iterator[dict[str, str]]:
    """The environment of a worker, with compile caches of its own unless the machine's are to be kept."""
    if keep:
        yield dict(os.environ)
        return
    with TemporaryDirectory(prefix="sd35-bench-", ignore_cleanup_errors=True) as folder:
        yield {**os.environ, **{name: str(Path(folder) / name.lower()) for name in _CACHES}}
