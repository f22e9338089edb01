"""`sd35 generate` as people call it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from sd35.cli.main import main
from sd35.cli.output import OutputPlace, write_whole
from sd35.config import RuntimeConfig
from sd35.errors import OutputError
from sd35.request import GenerationRequest
from sd35.runtime.load import resolve

FAST = ["--steps", "2", "--seed", "3", "--device", "cpu"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and the one line on stderr."""
    try:
        code = main(["generate", *arguments])
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    return code, err


def test_json_says_what_was_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object with the promised keys, true of the files."""
    target = tmp_path / "fox.png"
    assert main(["generate", "a fox", "-o", str(target), "-n", "2", "--width", "128", "--json", *FAST]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [image["path"] for image in report["images"]] == [str(tmp_path / f"fox-{n}.png") for n in (1, 2)]
    for image, seed in zip(report["images"], (3, 4), strict=True):
        content = Path(image["path"]).read_bytes()
        assert image["sha256"] == hashlib.sha256(content).hexdigest()
        assert (image["width"], image["height"], image["seed"]) == (128, 256, seed)
        with Image.open(image["path"]) as opened:
            assert opened.size == (128, 256)
    assert report["checkpoint"] == "demo"
    assert report["precision"]["transformer"] == f"float8_e4m3fn + {compute_dtype()}"
    assert report["attention"] == "sdpa"
    sizes = report["weight_bytes"]
    assert sizes["total"] == sum(size for name, size in sizes.items() if not name.startswith("total"))
    assert sizes["total"] < sizes["total_16bit"]
    assert set(report["seconds"]) == {"import", "load", "encode", "denoise", "decode", "total"}
    assert sum(report["seconds"].values()) < 2.2 * report["seconds"]["total"]
    assert report["peak_memory_bytes"] > sizes["total"]


def test_the_png_tells_its_recipe(tmp_path: Path) -> None:
    """Prompt, seed, steps, checkpoint hash, precision and version are in the file, and no time."""
    for name in ("a.png", "b.png"):
        assert main(["generate", "ein Fuchs \u72d0\u72f8", "-o", str(tmp_path / name), *FAST]) == 0
    with Image.open(tmp_path / "a.png") as opened:
        recipe = json.loads(opened.text["sd35"])
    assert recipe["prompt"]["t5"] == "ein Fuchs \u72d0\u72f8"
    assert (recipe["seed"], recipe["settings"]["num_inference_steps"]) == (3, 2)
    assert len(recipe["checkpoint_sha256"]) == 64
    assert {"precision", "version"} <= set(recipe)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_folder_never_loses_a_picture(tmp_path: Path) -> None:
    """In a folder each picture gets a name of its own; a named file is replaced."""
    for _ in range(2):
        assert main(["generate", "a fox", "-o", str(tmp_path / "new"), *FAST]) == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a-fox-3-2.png", "a-fox-3.png"]


def compute_dtype() -> str:
    """What `auto` computes in here: float32 on a CPU without bf16 instructions."""
    return str(resolve(RuntimeConfig(device="cpu")).dtype).removeprefix("torch.")


def test_bf16_is_another_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--precision reaches the weights."""
    arguments = ["generate", "a fox", "--json", *FAST, "-o"]
    assert main([*arguments, str(tmp_path / "a.png"), "--precision", "bf16"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert "float8" not in report["precision"]["transformer"]
    in_16_bits = report["weight_bytes"]["total_16bit"]
    expected = in_16_bits * getattr(torch, compute_dtype()).itemsize / 2  # CPUs without bf16 widen them
    assert report["weight_bytes"]["total"] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["x", "--width", "100"], 2, "multiple of 16"),
        (["x", "--steps", "many"], 2, "--steps"),
        (["x", "--steps", "0"], 2, "num_inference_steps"),
        (["x", "--guidance-scale", "nan"], 2, "guidance_scale"),
        (["x", "--width", "4096"], 2, "512"),
        (["x", "--variant", "huge"], 2, "huge"),
        (["x", "-o", "picture.jpg"], 2, ".png"),
        ([], 2, "prompt"),
        (["x" * 10_001], 3, "10,001"),
        (["x", "--checkpoint", "nonsense"], 4, "nonsense"),
        (["x", "--checkpoint", "large"], 4, "not on this machine"),
        (["x", "--device", "cuda:77"], 4, "cuda:77"),
        (["x", "--device", "cpu", "--attention", "fa3"], 4, "'fa3' can't run here: it needs a CUDA device"),
        (["x", "--device", "cpu", "--kernels", "triton"], 4, "'triton' can't run here"),
        (["x", "--attention", "best"], 2, "--attention"),
        (["x", "-o", "/proc/none/x.png"], 4, "/proc/none"),
    ],
)
def test_bad_input_ends_in_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    """What, why, what to do; the documented exit code; no traceback; nothing written."""
    monkeypatch.chdir(tmp_path)
    got, line = refused(capsys, *arguments)
    assert (got, words in line) == (code, True), line
    assert not list(tmp_path.rglob("*.png"))


def test_a_folder_without_a_part(demo_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An incomplete checkpoint is refused with the part's name."""
    (demo_copy / "tokenizer_2" / "tokenizer_config.json").unlink()
    code, line = refused(capsys, "x", "--checkpoint", str(demo_copy), "-o", str(tmp_path / "out"))
    assert code == 3
    assert "tokenizer_2" in line


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk says no in the middle, the old file stays and no temporary one remains."""
    target = tmp_path / "x.png"
    target.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        write_whole(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    assert target.read_bytes() == b"old"


def test_a_device_is_written_into(tmp_path: Path) -> None:
    """What is no regular file stays what it is: nobody wants /dev/null to become a picture."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, b"new")
    assert os.read(reader, 9) == b"new"
    assert pipe.is_fifo()
    os.close(reader)
    with pytest.raises(OutputError, match="directory"):
        write_whole(tmp_path, b"new")


def test_the_umask_holds(tmp_path: Path) -> None:
    """Who keeps new files to himself keeps pictures to himself."""
    before = os.umask(0o077)
    try:
        write_whole(tmp_path / "x.png", b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "x.png").stat().st_mode & 0o777 == 0o600


def test_names_come_from_prompts(tmp_path: Path) -> None:
    """Any prompt makes a file name: other scripts, long ones, none at all."""
    stems = [
        OutputPlace.at(str(tmp_path), GenerationRequest(prompt)).stem
        for prompt in ("A Fox, flat/style!", "../..", "\u72d0\u72f8", "word " * 100)
    ]
    assert stems[:3] == ["a-fox-flat-style", "picture", "\u72d0\u72f8"]
    assert len(stems[3]) <= 48


def test_ctrl_c_ends_cleanly(tmp_path: Path) -> None:
    """Interrupted in the loop: exit code 5, one sentence, and not a byte in the folder."""
    command = [sys.executable, "-m", "sd35", "generate", "a fox", "--steps", "1000", "--device", "cpu"]
    with subprocess.Popen(
        [*command, "-o", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        # A shell that runs this suite in the background makes its children ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        seen = b""
        while b"/1000" not in seen:
            heard = process.stderr.read1(4096)
            assert heard, seen
            seen += heard
        process.send_signal(signal.SIGINT)
        seen += process.stderr.read()
    assert process.returncode == 5
    assert b"interrupted" in seen
    assert b"Traceback" not in seen
    assert list((tmp_path / "out").iterdir()) == []


def test_a_budget_reaches_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--max-vram decides the plan; JSON has it with its stages, and --verbose prints the table to stderr."""
    target = ["-o", str(tmp_path / "fox.png"), "--width", "128", "--height", "128", *FAST]
    assert main(["generate", "a fox", "--json", "--verbose", "--max-vram", "180MiB", *target]) == 0
    out, err = capsys.readouterr()
    plan = json.loads(out)["plan"]
    assert plan["name"] in ("staged", "streamed")
    assert plan["budget_bytes"] == 180 << 20
    assert [stage["stage"] for stage in plan["stages"]] == ["encode", "tables", "loop", "decode"]
    assert all(stage["bytes"] <= 0.95 * (180 << 20) for stage in plan["stages"])
    assert f"plan: {plan['name']}" in err
    assert "headroom" in err


def test_two_devices_share_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """--devices divides what the first has no room for: said, in the table of --verbose, and in JSON."""
    target = ["-o", str(tmp_path / "fox.png"), "--width", "128", "--height", "128", *FAST[:4]]
    flags = ["--devices", "cpu,cpu:0", "--max-vram", "174MiB,1GiB", "--verbose", "--json"]
    assert main(["generate", "a fox", *flags, *target]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["plan"]["name"] == "beside"
    assert report["plan"]["division"]["encoders"] == 1
    first, second = report["plan"]["devices"]
    assert (first["device"], first["budget_bytes"]) == ("cpu", 174 << 20)
    assert (second["device"], second["budget_bytes"]) == ("cpu:0", 1 << 30)
    assert all(stage["bytes"] <= 0.95 * (174 << 20) for stage in first["stages"])
    assert list(report["peak_memory_bytes_by_device"]) == ["cpu", "cpu:0"]
    assert report["peak_memory_bytes"] == max(report["peak_memory_bytes_by_device"].values())
    assert "divided over cpu, cpu:0 by the plan 'beside'" in caplog.text
    assert any(line.startswith("cpu:0  encoders") for line in err.splitlines())


@pytest.mark.parametrize(
    ("flags", "code", "word"),
    [
        (["--device", "cpu", "--devices", "cpu,cpu:0"], 2, "twice"),
        (["--devices", "cpu,cpu:0", "--max-vram", "1GiB,2GiB,3GiB"], 2, "3 amounts"),
        (["--devices", "cpu,tpu9"], 4, "no kind of device"),
    ],
)
def test_impossible_devices_are_one_sentence(
    flags: list[str], code: int, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two answers to one question, amounts for other devices, and what is not there."""
    found, err = refused(capsys, "a fox", "-o", str(tmp_path), *FAST[:4], *flags)
    assert found == code
    assert word in err


@pytest.mark.parametrize(("amount", "code", "word"), [("8 bananas", 2, "max_vram"), ("1MiB", 4, "fits")])
def test_an_impossible_budget_is_one_sentence(
    amount: str, code: int, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is no amount is a wrong flag; too little memory is something that is not there."""
    found, err = refused(capsys, "a fox", "-o", str(tmp_path), "--max-vram", amount, *FAST)
    assert found == code
    assert word in err


def test_a_picture_to_begin_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The picture begins there, has its shape, and tells its pixels' hash and the strength."""
    source, target = tmp_path / "in.webp", tmp_path / "out.png"
    Image.new("RGB", (90, 60), (200, 30, 20)).save(source, lossless=True)
    flags = ["--image", str(source), "--strength", "0.5", "-o", str(target), "--json", *FAST]
    assert main(["generate", "a fox", *flags]) == 0
    capsys.readouterr()
    pixels = hashlib.sha256(b"90x60\n" + bytes([200, 30, 20]) * 5400).hexdigest()
    with Image.open(target) as opened:
        recipe = json.loads(opened.text["sd35"])
        assert opened.size == (320, 208)
    assert (recipe["image_sha256"], recipe["strength"]) == (pixels, 0.5)


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--image", "gone.png"], 4, "can't be read"),
        (["--image", "."], 4, "can't be read"),
        (["--image", "in.gif"], 3, "no PNG, JPEG or WEBP"),
        (["--image", "in.png", "--strength", "0"], 2, "strength is 0"),
        (["--image", "in.png", "--strength", "1.5"], 2, "outside its range"),
        (["--strength", "0.5"], 2, "give an image too"),
    ],
)
def test_pictures_that_nothing_begins_with(
    flags: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A source that is not there or no picture, or a strength that means nothing, ends in one line."""
    monkeypatch.chdir(tmp_path)
    for kind in ("gif", "png"):
        Image.new("RGB", (32, 32)).save(f"in.{kind}")
    found, said = refused(capsys, "a fox", *flags)
    assert (found, words in said) == (code, True), said
