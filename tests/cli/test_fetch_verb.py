"""`sd35 fetch` as people call it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sd35.checkpoints.manifest import read_manifest
from sd35.checkpoints.store import locate
from sd35.cli.main import main


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of its own."""
    monkeypatch.setenv("SD35_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def test_fetch_a_folder(tmp_path: Path, demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo from its folder, then nothing to do; JSON tells path, bytes and origin."""
    assert main(["fetch", str(demo), "-o", str(tmp_path / "copy")]) == 0
    printed = capsys.readouterr()
    assert f"fetched and verified\nfrom {demo}\n" in printed.out
    assert main(["fetch", str(demo), "-o", str(tmp_path / "copy"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    manifest = read_manifest(tmp_path / "copy")
    assert manifest is not None
    assert report["path"] == str(tmp_path / "copy")
    assert report["fetched_files"] == report["fetched_bytes"] == 0
    assert report["bytes"] == sum(record.size for record in manifest.files.values()) > 1_000_000
    assert report["origin"]["place"] == str(demo)
    assert report["checkpoint_sha256"] == manifest.identity


def test_a_name_to_draw_with(tmp_path: Path, demo: Path) -> None:
    """Without -o the folder gets the source's name, by which it is found."""
    (tmp_path / "mine").symlink_to(demo)
    assert main(["fetch", str(tmp_path / "mine"), "--json"]) == 0
    assert (locate("mine") / "model_index.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nonsense"], 2, "'nonsense' is no source: give one of "),
        (["a/b", "--jobs", "0"], 2, "give 1 to 32"),
        (["/nowhere/at/all"], 4, "There is no folder /nowhere/at/all"),
        (["a/b", "--endpoint", "ftp://x"], 2, "is no endpoint"),
        (["a/b", "--endpoint", "http://127.0.0.1:9", "--revision", "x"], 4, "HF_HUB_OFFLINE is set"),
    ],
)
def test_refuses_in_one_line(
    arguments: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bad input ends with the documented code and one sentence."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["fetch", *arguments]) == code
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_interrupted(tmp_path: Path, demo: Path) -> None:
    """Ctrl-C ends with exit code 5 and leaves no checkpoint that is half there."""
    folder = tmp_path / "copy"
    code = (
        "import sys, sd35.checkpoints.fetch.part as part\n"
        "from sd35.cli.main import main\n"
        "def interrupt(*_): raise KeyboardInterrupt\n"
        "part.Part.settle = interrupt\n"
        f"sys.exit(main(['fetch', {str(demo)!r}, '-o', {str(folder)!r}]))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=False
    )
    assert run.returncode == 5
    assert "interrupted" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (folder / "model_index.json").exists()
    assert read_manifest(folder) is None
