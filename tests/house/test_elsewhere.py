"""Windows and macOS: what sd35 does there, as far as a machine with Linux can tell."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sd35.checkpoints.manifest import read_manifest
from sd35.cli.main import main

HOUSE = Path(__file__).parent
SOURCE = HOUSE.parents[1] / "src" / "sd35"
SOURCES = sorted(path for path in SOURCE.rglob("*.py") if path.parent.name != "serving")
PROMPT = "画 a fox"  # no code page of the West has the first word


def as_on_windows(home: Path, *commands: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run these in one process that sees Windows, on a console that knows Western letters alone."""
    environment = {**os.environ, "SD35_HOME": str(home), "PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, "-X", "warn_default_encoding", str(HOUSE / "as_on_windows.py")]
    return subprocess.run(
        [*command, json.dumps(commands)], capture_output=True, encoding="utf-8", env=environment, check=False
    )


def test_the_commands_need_nothing_that_windows_lacks(tmp_path: Path) -> None:
    """A picture, one made from it, quantize, convert, fetch, verify, doctor; the files are those of Linux."""
    drawn, again = str(tmp_path / "drawn"), str(tmp_path / "again.png")
    fp8, single, fetched = (str(tmp_path / name) for name in ("fp8", "one.safetensors", "fetched"))
    few = ["--device", "cpu", "--steps", "2", "--seed", "1"]
    picture = str(tmp_path / "drawn" / "画-a-fox-1.png")
    run = as_on_windows(
        tmp_path / "home",
        ["generate", PROMPT, *few, "-o", drawn],
        ["generate", PROMPT, *few, "--image", picture, "--strength", "0.6", "-o", again],
        ["quantize", "demo", fp8],
        ["convert", fp8, single, "--format", "comfy", "--requantize"],
        ["fetch", fp8, "-o", fetched],
        ["verify", fetched],
        ["doctor"],
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert picture in run.stdout
    assert Path(picture).stat().st_size > 10_000 < Path(again).stat().st_size
    assert not [path.name for path in tmp_path.rglob("*") if path.name.startswith(".")]
    assert main(["quantize", "demo", str(tmp_path / "here")]) == 0
    here, there, brought = (read_manifest(tmp_path / name) for name in ("here", "fp8", "fetched"))
    assert here is not None
    assert brought is not None
    assert there == here
    assert brought.files == here.files


def test_serving_is_refused_there(tmp_path: Path) -> None:
    """One sentence that says where it runs."""
    run = as_on_windows(tmp_path, ["config", "show"], ["serve"])
    assert run.returncode == 4
    assert run.stderr.count("\n") == 1
    assert "WSL 2" in run.stderr


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("import fcntl", "No module named 'fcntl'"),
        ("from resource import getrusage", "No module named 'resource'"),
        ("import os; os.memfd_create('x')", "no attribute 'memfd_create'"),
        ("from os import fork", "cannot import name 'fork'"),
        ("import os; os.O_DIRECTORY", "no attribute 'O_DIRECTORY'"),
        ("import signal; signal.SIGKILL", "no attribute 'SIGKILL'"),
        ("import sys; assert sys.platform == 'linux'", "AssertionError"),
        ("import os; file = open('x', 'w'); os.replace('x', 'y')", "in use"),
        ("import pathlib; file = open('x', 'w'); pathlib.Path('x').unlink()", "in use"),
        ("import os, mmap; f = open('x', 'w+b'); f.write(b'x'); f.flush(); m = mmap.mmap(f.fileno(), 0); "
         "f.close(); os.rename('x', 'y')", "in use"),
    ],
)  # fmt: skip
def test_the_rehearsal_is_strict(tmp_path: Path, code: str, complaint: str) -> None:
    """What Windows would refuse fails in the process that the tests above run in."""
    lines = (
        f"import sys; sys.path.insert(0, {str(HOUSE)!r})",
        "import as_on_windows; as_on_windows.show(); as_on_windows.hold_open_files()",
        f"exec({code!r}, {{'__file__': as_on_windows.OURS + '/x.py', '__name__': 'sd35.x'}})",
    )
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert run.returncode == 1
    assert complaint in run.stderr.splitlines()[-1]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_text_has_the_same_bytes_everywhere(path: Path) -> None:
    """Whoever reads or writes text names its encoding, and who writes it its line ends."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            missing = _wanted(node) - {keyword.arg for keyword in node.keywords}
            assert not missing, f"line {node.lineno} leaves {missing} to the system"


def _wanted(node: ast.Call) -> set[str]:
    """The keywords that this call must have."""
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    if name in ("run", "Popen", "check_output") and any(keyword.arg == "text" for keyword in node.keywords):
        return {"encoding"}
    is_text = any(
        isinstance(one, ast.Constant) and one.value in ("w", "a", "x", "w+", "a+") for one in node.args
    )
    writes = {"encoding", "newline"} if name == "write_text" or (name == "open" and is_text) else set()
    return {"encoding"} if name == "read_text" else writes
