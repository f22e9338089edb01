"""The guide's section on other dialects: what it shows runs as written."""

import re
from pathlib import Path

import pytest
from PIL import Image

from .conftest import Served

GUIDE = (Path(__file__).parents[2] / "docs/guides/serving.md").read_text(encoding="utf-8")
SECTION = GUIDE.partition("## Other APIs\n")[2].partition("\n## ")[0]


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
