"""`sd35 bench --serve` as people call it."""

import json
from pathlib import Path

import pytest

from sd35.bench.null_server import null_server
from sd35.bench.serve import ServePlan, bench_serve
from sd35.cli.main import main

SHORT = ["--seconds", "0.3", "--rate", "10", "--clients", "2"]


def test_a_server_is_started_and_pressed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both faces closed and open, then accepts; nothing fails, and the file says on what it was measured."""
    out = tmp_path / "r.json"
    flags = ["--size", "64x64", "--steps", "2", "--images", "2", "--out", str(out)]
    assert main(["bench", "--serve", "null", *SHORT, *flags]) == 0
    result = json.loads(out.read_text())
    loops = [(None, 1), (10, None), (None, 2)]
    expected = [("livez", None, 1), ("livez", 10, None)]
    expected += [(face, *loop) for face in ("openai", "native") for loop in loops]
    expected += [("accept", None, 2), ("accept+draw", None, 2)]
    assert [(row["errand"], row["rate"], row["clients"]) for row in result["rows"]] == expected
    for row in result["rows"]:
        assert row["succeeded"] >= 1
        assert row["failed"] == {}
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["server_cpu_ms"] is not None
    drawn = next(row for row in result["rows"] if row["errand"] == "openai")
    assert drawn["images_per_minute"] == pytest.approx(2 * 60 * drawn["per_second"])
    assert result["rows"][-1]["images_per_minute"] is None
    assert {"cpu", "threads", "commit", "command", "date"} <= set(result["machine"])
    assert (result["asked"]["width"], result["commit_ms"] > 0) == (64, True)
    assert "2 at once" in capsys.readouterr().out


def test_a_running_server_is_pressed_and_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """By its address: no jobs are left behind in its queue, and its processor time is its own affair."""
    with null_server("demo") as server:
        assert main(["bench", "--serve", server.url, *SHORT, "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert [row["errand"] for row in result["rows"]] == ["livez"] * 2 + ["openai"] * 3 + ["native"] * 3
        assert all(row["server_cpu_ms"] is None for row in result["rows"])
        assert server.url not in json.dumps({**result, "machine": None})


def test_refusals_are_counted() -> None:
    """Requests that the server refuses are failures by their status, not pictures."""
    with null_server("demo") as server:
        plan = ServePlan(target=server.url, clients=2, rate=10, seconds=0.2, asked={"n": 99})
        report = bench_serve(plan, {}, lambda report, row: None)
    refused = [row for row in report.rows if row.errand != "livez"]
    assert all(row.succeeded == 0 and set(row.failed) == {"status 400"} for row in refused)
    assert all(row.p50_ms is None and row.images_per_day == 0 for row in refused)


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--serve", "here"], 2, "https://"),
        (["--serve", "null", "--clients", "0"], 2, "clients"),
        (["--serve", "null", "--rate", "-1"], 2, "rate"),
        (["--serve", "null", "--quick"], 2, "--quick says nothing about a server"),
        (["--serve", "null", "--device", "cpu"], 2, "--device says nothing about a server"),
        (["--serve", "null", "--models", "stranger"], 4, "did not start"),
        (["--serve", "http://127.0.0.1:9"], 4, "No server answers at http://127.0.0.1:9"),
        (["--serve", "null", "--key-file", "/no/such/key"], 4, "--key-file"),
        (["--serve", "null", "--out", "/no/such/folder/r.json"], 4, "does not exist"),
    ],
)
def test_bad_input_is_one_sentence(
    capfd: pytest.CaptureFixture[str], flags: list[str], code: int, words: str
) -> None:
    """It ends with the documented code before anything is measured."""
    assert main(["bench", *flags]) == code
    assert words in capfd.readouterr().err


def test_a_key_comes_from_a_file(tmp_path: Path) -> None:
    """A server with keys lets the bench in, and the key is in no result."""
    from sd35.serving.keys import KeyStore

    with null_server("demo", tmp_path / "data") as server:
        keys = KeyStore(tmp_path / "data")
        _, text = keys.add("bench")
        keys.close()
        file, out = tmp_path / "key", tmp_path / "r.json"
        file.write_text(f"{text}\n")
        flags = [*SHORT, "--key-file", str(file), "--out", str(out)]
        assert main(["bench", "--serve", server.url, *flags]) == 0
    result = out.read_text()
    assert all(not row["failed"] for row in json.loads(result)["rows"])
    assert text not in result
    assert str(file) not in result
