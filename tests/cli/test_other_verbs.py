"""`sd35 quantize`, `sd35 convert` and `sd35 compare` as people call them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sd35.checkpoints.store import locate
from sd35.cli.main import entry, main
from sd35.config import RuntimeConfig
from sd35.quantization import folders
from sd35.runtime.load import resolve


def test_quantize_and_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What quantize writes, generate reads; the report tells layers and bytes."""
    folder = tmp_path / "fp8"
    assert main(["quantize", "demo", str(folder), "--t5", "--granularity", "blockwise", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["path"] == str(folder)
    assert report["layers"] > 90
    assert report["bytes_after"] < 0.75 * report["bytes_before"]
    out = ["-o", str(tmp_path / "x.png"), "--steps", "1", "--device", "cpu", "--json"]
    assert main(["generate", "a fox", "--checkpoint", str(folder), *out]) == 0
    assert "float8_e4m3fn" in json.loads(capsys.readouterr().out)["precision"]["text_encoder_3"]


def test_quantize_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A place that exists ends with exit code 4 and a remedy."""
    assert main(["quantize", "demo", str(tmp_path)]) == 4
    assert "remove it or name another" in capsys.readouterr().err


def test_calibration_is_refused_before_it_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A place that is taken, or no prompts to draw, are known before the model is loaded."""
    monkeypatch.setattr("sd35.runtime.load.load_pipeline", lambda *_: pytest.fail("it draws"))
    for arguments, code, words in (
        ([str(tmp_path)], 4, "exists already"),
        ([str(tmp_path / "x"), "-n", "0"], 2, "-n counts prompts"),
        ([str(tmp_path / "x"), "-n", "-3"], 2, "-n counts prompts"),
    ):
        assert main(["quantize", "demo", *arguments, "--static"]) == code
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["quantize"], ["convert", "--format", "16bit"]])
def test_resume_is_a_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: list[str]
) -> None:
    """Interrupted, both verbs end with exit code 5; with --resume they go on from the very files left."""
    command = [*verb, "demo", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(folders, "source_records", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(command) == 5
    assert not (tmp_path / "out").exists()
    left = tmp_path / ".out.partial" / "out" / "transformer" / "diffusion_pytorch_model.safetensors"
    written = left.stat().st_ino
    assert main([*command, "--resume"]) == 0
    assert (tmp_path / "out" / "transformer" / left.name).stat().st_ino == written
    assert str(tmp_path / "out") in capsys.readouterr().out


def test_compare_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Own prompts, a sheet, and figures for every measure."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\n\na red apple\n")
    arguments = ["--prompts", str(prompts), "--steps", "2", "--device", "cpu", "--batch-size", "2"]
    kept = tmp_path / "kept"
    assert main(["compare", *arguments, "--sheet", str(tmp_path / "sheet.png"), "--keep", str(kept)]) == 0
    out = capsys.readouterr().out
    dtype = str(resolve(RuntimeConfig(device="cpu")).dtype).removeprefix("torch.")
    assert out.startswith(f"2 pictures, 2 steps\nreference: {dtype} on ")
    for row in ("| PSNR, dB |", "| SSIM |", "| evaluator feature cosine |", "| same subject"):
        assert row in out
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    assert main(["compare", str(kept / "reference"), str(kept / "candidate"), "--device", "cpu"]) == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--prompts", "/nowhere.txt"], 4, "/nowhere.txt"),
        (["-n", "0"], 2, "count pictures"),
        (["nonsense"], 4, "nonsense"),
    ],
)
def test_compare_refuses_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    """Bad input ends with the documented code and a sentence."""
    assert main(["compare", *arguments]) == code
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_leave_the_cores_to_others(
    monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str
) -> None:
    """The command sets OpenMP's waiting before torch is imported, unless the user has."""
    monkeypatch.delenv("OMP_WAIT_POLICY")
    if given is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    monkeypatch.setattr(sys, "argv", ["sd35", "--version"])
    with pytest.raises(SystemExit):
        entry()
    assert os.environ["OMP_WAIT_POLICY"] == expected


SHELL = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": ""}
SD35 = f"{sys.executable} -m sd35"


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run in a shell, with pipes that tell how their first program ended."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env={**SHELL, **environment}, capture_output=True, encoding="utf-8", timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("environment", [{}, {"PYTHONUNBUFFERED": "1"}])
def test_a_reader_may_leave_early(environment: dict[str, str]) -> None:
    """`| head` ends the output without a word, at whichever letter it leaves."""
    verb = "config show --resolved"
    for reader in ("head -1", "(exec 0<&-; sleep 1)"):
        found = shell(f"(sleep 0.3; {SD35} {verb}) | {reader}", **environment)
        assert (found.returncode, found.stderr) == (0, "")


def test_another_broken_pipe_is_no_success(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A pipe that broke elsewhere is told, though stdout is well."""
    with (tmp_path / "out").open("w") as out, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(
            "sd35.cli.verify._look", lambda *_: (_ for _ in ()).throw(BrokenPipeError(32, "Broken"))
        )
        assert main(["verify", "demo"]) == 4
    assert "Broken" in capsys.readouterr().err


def test_the_systems_refusals_are_sentences(tmp_path: Path) -> None:
    """A full disk behind stdout ends with exit code 4 and one line, not with a traceback."""
    found = shell(f"{SD35} config show > /dev/full")
    assert found.returncode == 4
    assert found.stderr.count("\n") == 1
    assert "No space left on device" in found.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams(closed: str) -> None:
    """A program without stdout or stderr, as schedulers start them, works and ends."""
    assert shell(f"{SD35} verify demo {closed}").returncode == 0


def test_letters_that_the_terminal_lacks(tmp_path: Path) -> None:
    """A path that stdout has no letters for is escaped, and the verb has not failed."""
    shutil.copytree(locate("demo"), tmp_path / "grün")
    found = shell(f"{SD35} verify '{tmp_path}/grün'", PYTHONIOENCODING="ascii")
    assert (found.returncode, "gr\\xfcn" in found.stdout) == (0, True)
