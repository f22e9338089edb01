"""`sd35 bench` and `sd35 doctor` as people call them."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from sd35.cli.bench import _command, _plan
from sd35.cli.main import build_parser, main


def test_quick_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo's sizes in a process of its own: a result with its machine, a chart, a table at the end."""
    out, chart = tmp_path / "r.json", tmp_path / "c.png"
    assert main(["bench", "--quick", "--device", "cpu", "--out", str(out), "--chart", str(chart)]) == 0
    printed = capsys.readouterr()
    result = json.loads(out.read_text())
    row = result["rows"][0]
    assert (row["engine"], row["variant"], row["width"], row["steps"]) == ("sd35", "demo", 128, 4)
    assert 0 < row["ms_per_step"] < 1e3 * row["seconds"]
    assert set(row["stage_seconds"]) == {"encode", "denoise", "decode"}
    assert 0 < row["share_of_limit"] < 1
    assert {"torch", "cpu", "commit", "command", "date"} <= set(result["machine"])
    assert result["kernels"]["sd35"]
    assert "| sd35 | float8_e4m3fn" in printed.out
    assert "ms/step" in printed.err
    with Image.open(chart) as picture:
        assert picture.width == 960


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--size", "big"], 2, "1024x1024"),
        (["--size", "100x100"], 2, "multiple of 16"),
        (["--rounds", "0"], 2, "rounds"),
        (["--budget", "0"], 2, "budget"),
        (["--kernels", "magic"], 2, "kernels"),
        (["--device", "cuda:99"], 4, "cuda:99"),
        (["--devices", "cuda:0,cuda:99"], 4, "is not there"),
        (["--devices", "cpu,cpu", "--stage", "denoise"], 2, "one device"),
        (["--out", "/no/such/folder/r.json"], 4, "does not exist"),
    ],
)
def test_bench_refuses_in_one_line(
    capsys: pytest.CaptureFixture[str], flags: list[str], code: int, words: str
) -> None:
    """Bad input ends with the documented code and a sentence, before any engine starts."""
    assert main(["bench", "--quick", *flags]) == code
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "runtime"),
    [
        ([], {}),
        (["--attention", "sdpa", "--no-cuda-graphs"], {"attention": "sdpa", "cuda_graphs": False}),
        (["--device", "cpu", "--kernels", "reference"], {"device": "cpu", "kernels": "reference"}),
        (["--devices", "cpu,cpu:0"], {"devices": "cpu,cpu:0"}),
    ],
)
def test_how_to_run_is_said_in_flags(flags: list[str], runtime: dict[str, object]) -> None:
    """Each field of RuntimeConfig is a flag, and what is not said stays RuntimeConfig's own default."""
    plan = _plan(build_parser().parse_args(["bench", *flags]))
    assert plan.workload.runtime == runtime
    assert (plan.workload.variant, plan.engines) == ("large", ("sd35",))


def test_the_command_without_its_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result names the command that made it, and no path of the machine."""
    words = ["sd35", "bench", "--out", "/home/me/r.json", "--steps", "4", "--chart=/home/me/c.png", "--json"]
    monkeypatch.setattr(sys, "argv", words)
    assert _command() == "sd35 bench --steps 4"


def test_doctor_prints_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    """Choices and refusals in words, and the same as JSON."""
    assert main(["doctor", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "FP8 product: reference" in text
    assert "it needs a CUDA device, not cpu" in text
    assert main(["doctor", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["operations"][1]["chosen"] == "reference"
