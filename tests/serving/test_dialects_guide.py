"""The guide's section on other dialects: what it shows runs as written."""

import base64
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from .conftest import Served

GUIDE = (Path(__file__).parents[2] / "docs/guides/serving.md").read_text(encoding="utf-8")
SECTION = GUIDE.partition("## Programs that speak other dialects\n")[2].partition("\n## ")[0]


def test_the_python_runs(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Copied and pasted, with this server's port, it saves a picture and prints its infotext."""
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    port = served.url.rpartition(":")[2]
    exec(compile(block.replace("8000", port), "serving.md", "exec"), {})
    with Image.open("apple.png") as picture:
        assert picture.size == (256, 256)
    assert (
        "Steps: 28, Sampler: Euler, Schedule type: Automatic, CFG scale: 4, Seed: 7"
        in capsys.readouterr().out
    )


def test_the_commands_run(served: Served, tmp_path: Path) -> None:
    """One gives a picture, the next JSON with one inside, the last begins with the first one's."""
    (block,) = re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)
    for line in block.splitlines():
        command = shlex.split(line.replace("http://127.0.0.1:8000", served.url))
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    with Image.open(tmp_path / "apple.png") as picture:
        assert picture.size == (336, 192)
    with Image.open(tmp_path / "green.png") as picture:
        assert picture.size[0] / picture.size[1] == pytest.approx(336 / 192, abs=0.05)
    found = json.loads((tmp_path / "apple.json").read_text())
    assert base64.b64decode(found["image"])[:3] == b"\xff\xd8\xff"
