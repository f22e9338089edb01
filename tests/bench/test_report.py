"""Tables and chart say what the result holds, and nothing else."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd35.bench.chart import chart
from sd35.bench.report import memory_section, readme_section, short_table
from sd35.bench.results import read_results
from sd35.errors import CheckpointError


def test_the_short_table(result: dict[str, Any]) -> None:
    """Engines with their figures, the card's limits, kinds of kernels, drift, and who is missing with why."""
    text = short_table(result)
    ours = next(line for line in text.splitlines() if line.startswith("| sd35 |"))
    for figure in (
        " 50.0 |",
        " 0.5 |",
        " 600 |",
        " 80% |",
        " 3.00 s |",
        " 2.80 s |",
        " 6.0 GiB |",
        " 8.00 s |",
    ):
        assert figure in ours
    assert "| torchao-compile |" not in text
    assert "torchao-compile: not installed" in text
    assert "FP8 products 1200 TFLOP/s" in text
    assert "gemm 30.0, attention 15.0" in text
    assert "50.00 ms/step at the start and 51.25 at the end" in text


def test_the_readme_has_a_line_a_run(result: dict[str, Any]) -> None:
    """Ours and the peers of one run side by side, a batch's seconds by the picture, "-" for the absent."""
    line = readme_section([result]).splitlines()[-1]
    assert line == (
        "| Stable Diffusion 3.5 Large, 1024 x 1024, 2 images, 28 steps, guidance, attention sdpa "
        "| **50.0** | 125.0 | - | - | 1.50 s | 6.0 GiB | 8.00 s |"
    )


def test_peers_at_other_work_are_not_beside_us(result: dict[str, Any]) -> None:
    """A row of another size in the same file is no comparison."""
    result["rows"][1]["width"] = 512
    assert "125.0" not in readme_section([result])


def test_machines_are_told_apart(result: dict[str, Any]) -> None:
    """With results of two machines each line names its own."""
    other = copy.deepcopy(result)
    other["machine"]["gpu"] = "Card 7"
    lines = readme_section([result, other]).splitlines()[-2:]
    assert ["Card 9000" in line for line in lines] == [True, False]
    assert ["Card 7" in line for line in lines] == [False, True]


def test_a_cap_is_beside_the_run_without_one(result: dict[str, Any]) -> None:
    """Ratios of loop, new prompt and kept prompt, in the table of memory and not in that of speed."""
    free = result["rows"][0]
    stages = {"encode": 1.1, "denoise": 3.5, "decode": 0.4}
    capped = {**free, "cap_bytes": 7 * 2**30, "plan": "staged", "seconds": 5.0, "stage_seconds": stages}
    result["rows"].append({**capped, "cap_bytes": 4 * 2**30, "plan": "streamed"})
    result["rows"].append(capped)
    lines = memory_section([result]).splitlines()[-2:]
    assert ["staged" in line for line in lines] == [True, False]
    assert lines[0] == (
        "| Stable Diffusion 3.5 Large, 1024 x 1024, 2 images, 28 steps, guidance, attention sdpa "
        "| 7.0 GiB | staged | 6.0 GiB | 50.0 | 3.50 s (1.25x) | 5.00 s (1.67x) | 3.90 s (1.34x) |"
    )
    assert readme_section([result]) == ""
    free["kept_seconds"], capped["kept_seconds"] = 2.0, 4.5
    assert "| 4.50 s (2.25x) |" in memory_section([result])


def test_a_divided_plan_names_its_cards(result: dict[str, Any]) -> None:
    """The bench's table has each card's peak beside the plan; the README's is of single cards."""
    peaks = {f"cuda:{i}": {"peak_bytes": i * 2**30 + 2**30, "cap_bytes": 7 * 2**30} for i in range(2)}
    row = {**result["rows"][0], "cap_bytes": 7 * 2**30, "plan": "split", "devices": peaks}
    result["rows"].append(row)
    words = "| split: cuda:0 1.0 GiB, cuda:1 2.0 GiB |"
    assert words in short_table(result)
    assert memory_section([result]) == ""


def test_nothing_measured_is_no_section() -> None:
    """Without results the README says nothing of speed."""
    assert readme_section([]) == memory_section([]) == ""


def test_other_results_are_passed_over(tmp_path: Path, result: dict[str, Any]) -> None:
    """Only files with rows of speed are read; a damaged one is named."""
    (tmp_path / "a.json").write_text(json.dumps(result))
    (tmp_path / "b.json").write_text('{"figures": []}')
    (tmp_path / "c.json").write_text('{"rows": [{"name": "tensorwise"}]}')
    assert read_results(sorted(tmp_path.glob("*.json"))) == [result]
    (tmp_path / "d.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"d\.json"):
        read_results([tmp_path / "d.json"])


def test_bars_are_as_long_as_steps_take(result: dict[str, Any]) -> None:
    """125 ms is two and a half times as long as 50, and who has no figure has no bar."""
    pixels = np.asarray(chart(result)).reshape(-1, 960, 3)
    ours, theirs = ((pixels == color).all(axis=2).sum(axis=1) for color in ((228, 87, 46), (169, 180, 192)))
    assert theirs.max() / ours.max() == pytest.approx(2.5, rel=0.02)
    assert np.flatnonzero(ours).max() < np.flatnonzero(theirs).min()  # ours is the first
    assert len(np.flatnonzero(theirs)) <= 34  # one bar of theirs, and none for the third
