"""`sd35 quantize`, `sd35 convert` and `sd35 compare` as people call them."""

import json
import os
import sys
from pathlib import Path

import pytest

from sd35.cli.main import entry, main
from sd35.quantization import folders


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
    assert out.startswith("2 pictures, 2 steps\nreference: bfloat16 on ")
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
