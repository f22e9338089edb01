"""A run survives its engines: whoever fails costs its own row alone."""

import io
import json
import os
import sys
from dataclasses import asdict, replace
from typing import Any

import pytest

from sd35.bench import bench as room
from sd35.bench import worker
from sd35.bench.bench import Outcome, Plan, bench, run_worker, understood
from sd35.bench.results import Report, empty_row, floor_ms
from sd35.bench.workload import Workload

ROW = {"ms_per_step": 100.0, "precision": "float8_e4m3fn", "seconds": 1.0}
LIMITS = {"gemm_tflops": {"all": 1.0}, "fp8_gemm_tflops": {"all": 2.0}, "attention_tflops": {"flash": 1.0}}


def ignore(report: Report, words: str) -> None:
    """A listener that does nothing."""


def outcome(engine: str, workload: Workload, **figures: Any) -> Outcome:
    """What a worker that did well has found."""
    row = empty_row(engine, workload)
    return Outcome(row=type(row)(**{**asdict(row), **ROW, **figures}))


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Workers are scripted: eager fails, ours drifts from 100 to 110 ms; the tasks they were given."""
    tasks: list[dict[str, Any]] = []

    def scripted(task: dict[str, Any], seconds: float, environment: dict[str, str]) -> Outcome:
        tasks.append(task)
        workload = Workload(**task["workload"])
        if task["engine"] == "diffusers-eager":
            return Outcome(failure="OutOfMemoryError: no room")
        again = sum(one["engine"] == task["engine"] for one in tasks) > 1
        found = outcome(task["engine"], workload, ms_per_step=110.0 if again else 100.0)
        found.limits = LIMITS if task["limits"] else None
        return found

    monkeypatch.setattr(room, "run_worker", scripted)
    return tasks


def test_a_failing_peer_is_a_row_with_a_reason(tiny: Workload, turns: list[dict[str, Any]]) -> None:
    """The others' figures stand; ours is measured again at the end, and every change is reported at once."""
    heard: list[tuple[int, str]] = []
    plan = Plan(tiny, ("sd35", "diffusers-eager", "torchao-compile"))
    report = bench(plan, {}, lambda report, words: heard.append((len(report.rows), words)))
    assert [row.reason for row in report.rows] == [None, "OutOfMemoryError: no room", None]
    assert report.drift == {"first_ms_per_step": 100.0, "last_ms_per_step": 110.0}
    assert [count for count, _ in heard] == [1, 2, 3, 3]
    assert heard[1][1] == "diffusers-eager: OutOfMemoryError: no room"
    assert [task["limits"] for task in turns] == [True, False, False, False]


def test_rows_are_judged_by_the_limits(tiny: Workload, turns: list[dict[str, Any]]) -> None:
    """TFLOP/s from work and time; the share is what FP8 products and attention alone would take of it."""
    report = bench(Plan(tiny, ("sd35",)), {}, ignore)
    linear, attention = report.work["linear_tflop_per_step"], report.work["attention_tflop_per_step"]
    assert report.rows[0].tflops == pytest.approx((linear + attention) / 0.1)
    assert report.rows[0].share_of_limit == pytest.approx((linear / 2 + attention / 1) / 0.1)


def test_attention_in_fp8_is_a_yardstick_for_itself_alone(tiny: Workload) -> None:
    """An exact row is held to the best exact attention, a row of FP8 attention to that."""
    work = {"linear_tflop_per_step": 0.0, "attention_tflop_per_step": 6.0}
    limits = {"gemm_tflops": {"all": 1.0}, "attention_tflops": {"cudnn": 2.0, "fa3": 3.0, "fa3-fp8": 6.0}}
    row = empty_row("sd35", tiny)
    assert floor_ms(work, limits, replace(row, attention="cudnn")) == pytest.approx(2000)
    assert floor_ms(work, limits, replace(row, attention="fa3-fp8")) == pytest.approx(1000)
    assert floor_ms(work, {}, row) is None


def test_a_spent_budget_skips(
    tiny: Workload, turns: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has no time left is not started, and says so: as much is kept back as our first turn took."""
    clock = iter([0.0, 0.0, 40.0, 70.0, 75.0])
    monkeypatch.setattr(room.time, "monotonic", lambda: next(clock))
    report = bench(Plan(tiny, ("sd35", "torchao-compile"), budget=100.0), {}, ignore)
    assert report.rows[1].reason == "skipped: the budget of 100 s was spent before its turn"
    assert [task["engine"] for task in turns] == ["sd35", "sd35"]


def test_lines_count_as_far_as_they_go(tiny: Workload) -> None:
    """What was said before a failure stands, and what others print is passed over."""
    row = json.dumps({"row": asdict(empty_row("sd35", tiny))})
    others = "hello\n7\n{a library}\n"
    found = understood(f"{others}{row}\n" + '{"limits": {"copy": 1}}\n{"kern', "it fell over")
    assert found.row == empty_row("sd35", tiny)
    assert (found.limits, found.kernels, found.failure) == ({"copy": 1}, None, "it fell over")


def in_the_worker(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let workers run this code instead."""
    start = room.subprocess.Popen
    monkeypatch.setattr(room.subprocess, "Popen", lambda _, **how: start([sys.executable, "-c", code], **how))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise MemoryError('no room')", "MemoryError: no room"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL"),
        ("raise SystemExit(7)", "ended with code 7 without a word"),
    ],
)
def test_the_reason_of_a_failure(monkeypatch: pytest.MonkeyPatch, code: str, reason: str) -> None:
    """It is the last error that the process named, or how it ended."""
    in_the_worker(monkeypatch, code)
    assert (run_worker({}, 60, dict(os.environ)).failure or "").startswith(reason)


def test_a_worker_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """It and its children are gone, and what it had said stands."""
    in_the_worker(
        monkeypatch, 'print(\'{"limits": {"a": 1}}\', flush=True); import threading; threading.Event().wait()'
    )
    found = run_worker({}, 1, dict(os.environ))
    assert found.limits == {"a": 1}
    assert (found.failure or "").startswith("ended: it was not done within")


def test_caches_are_fresh_unless_kept(tiny: Workload) -> None:
    """A worker's compile caches are a new folder each time, which is gone afterwards."""
    with room._caches(keep=False) as first, room._caches(keep=False) as second:
        folders = [one["TORCHINDUCTOR_CACHE_DIR"] for one in (first, second)]
        assert folders[0] != folders[1]
    with room._caches(keep=True) as kept:
        assert kept == dict(os.environ)


def test_refusals_end_a_worker_in_a_sentence(
    tiny: Workload, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the library refuses is exit code 1 and its own words, without a traceback."""
    task = {"engine": "sd35", "workload": {**tiny.as_dict(), "variant": "huge"}}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(task)))
    assert worker.main() == 1
    assert capsys.readouterr().err.startswith("There is no variant 'huge'")
