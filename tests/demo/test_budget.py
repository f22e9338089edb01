"""Training by the clock: stages stop, learning rates fall to zero, logs can be read back."""

import json
from pathlib import Path

import pytest

from sd35.demo import budget
from sd35.demo.budget import Budget, TrainingLog, cosine, hold_then_fall


def test_budget_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget of ten seconds is over after ten seconds and not before."""
    now = [100.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: now[0])
    ten = Budget(10)
    now[0] = 109.0
    assert not ten.over(step=10_000)
    assert ten.share() == pytest.approx(0.9)
    now[0] = 110.0
    assert ten.over(step=0)


def test_max_steps_end_a_rehearsal() -> None:
    """With a limit on steps, time left does not matter."""
    assert Budget(1000, max_steps=3).over(step=3)
    assert not Budget(1000, max_steps=3).over(step=2)


def test_learning_rates_start_and_end_right() -> None:
    """Cosine warms up from zero, both end at zero, holding holds."""
    assert cosine(0.0) == 0
    assert cosine(0.02) == pytest.approx(1)
    assert cosine(1.0) == pytest.approx(0, abs=1e-9)
    assert hold_then_fall(0.3, hold=0.3) == 1
    assert hold_then_fall(0.65, hold=0.3) == pytest.approx(0.5)
    assert hold_then_fall(1.0, hold=1.0) == 1


def test_log_is_appended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second leg adds its rows to the first leg's."""
    TrainingLog(tmp_path / "log.jsonl").write(stage="vae", step=1, loss=0.5)
    TrainingLog(tmp_path / "log.jsonl").write(stage="vae", step=2, loss=0.25)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == [0.5, 0.25]
    assert "loss 0.25" in capsys.readouterr().out
