"""The guide to image to image: its commands run as written, and do what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import ServerFactory

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/guides/image-to-image.md").read_text(encoding="utf-8")
SHELL = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def run(block: str, folder: Path) -> str:
    """A block of commands, all of which must succeed; what they print."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ended = subprocess.run(
        ["sh", "-e", "-c", block], cwd=folder, env={**os.environ, "PATH": path}, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def test_the_commands_run(
    start_server: ServerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The red apple is green at 0.6 and its background still blue, in the shell and from Python alike."""
    drawing, asking = SHELL
    run(drawing, tmp_path)
    monkeypatch.chdir(tmp_path)
    (block,) = PYTHON
    exec(compile(block, "image-to-image.md", "exec"), {})
    red, green, blue = np.asarray(Image.open("green.png"))[150, 128].astype(int)
    assert green > red > blue
    red, green, blue = np.asarray(Image.open("green.png"))[8, 8].astype(int)
    assert blue > max(red, green)
    assert np.array_equal(np.asarray(Image.open("green.png")), np.asarray(Image.open("from-python.png")))
    served = start_server()
    start, _, question = asking.partition("\n")
    assert start.startswith("sd35 serve ")
    answer = run(question.replace("http://127.0.0.1:8000", served.url), tmp_path)
    assert '"strength":0.6' in answer


def test_the_figures_are_right() -> None:
    """Sizes and steps of the page are those of the code."""
    from sd35.request import first_step_of, size_for
    from sd35.variants import VARIANTS

    assert "4000 x 3000 becomes 1184 x 880" in " ".join(PAGE.split())
    assert size_for((4000, 3000), None, None, VARIANTS["large"]) == (1184, 880)
    assert "28 steps at 0.6 are 17 steps" in PAGE
    assert 28 - first_step_of(28, 0.6) == 17
