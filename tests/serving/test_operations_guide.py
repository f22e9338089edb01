"""The guide to running a server says what is so, and its commands run as written."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sd35.cli.main import build_parser
from sd35.serving.alert_rules import Condition
from sd35.serving.metrics import Metrics

from .conftest import ServerFactory
from .sink import sink
from .test_metrics import GAUGES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/guides/operations.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"


def lines() -> list[str]:
    """Every command of the page."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("line", [line for line in lines() if line.startswith("sd35 ")])
def test_flags_exist(line: str) -> None:
    """The command line understands each."""
    build_parser().parse_args(shlex.split(line)[1:])


def test_the_table_has_every_metric() -> None:
    """No more and no fewer than the server shows."""
    shown = {
        family.name for family in text_string_to_metric_families(Metrics(lambda: GAUGES).text().decode())
    }
    told = {name.removesuffix("_total") for name in re.findall(r"`(sd35_\w+)", PAGE)}
    assert told == {name for name in shown if name.startswith("sd35_")}


def test_the_table_has_every_alert() -> None:
    """By the names that the rules give."""
    source = (ROOT / "src/sd35/serving/alert_rules.py").read_text(encoding="utf-8")
    given = set(re.findall(rf'{Condition.__name__}\(\s*"(\w+)"', source))
    table = PAGE.partition("| alert | begins | ends |")[2].partition("```")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == given
    assert len(given) == 6


def test_the_receiver_runs(start_server: ServerFactory) -> None:
    """The Python of the page takes what a server sends."""
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(block, "operations.md", "exec"), names)
    with sink() as receiver:
        served = start_server(webhook_private=True)
        made = served.end(served.post(webhook_url=receiver.url)["id"])
        (one,) = receiver.await_requests(1)
        secret = served.client.get("/api/v1/webhooks/secret").json()["secret"]
    headers = {name.lower(): value for name, value in one.headers.items()}
    told = names["receive"](one.body, headers, secret)  # type: ignore[operator]
    assert told["data"]["id"] == made["id"]


@pytest.mark.server
def test_commands_run(start_server: ServerFactory, tmp_path: Path) -> None:
    """Copied and pasted, in their order, beside a server that has drawn; `serve` until it listens."""
    served = start_server()
    served.end(served.post()["id"])
    for line in lines():
        if line.startswith("sd35 serve"):
            _starts(line, tmp_path)
            continue
        text = line.replace(ADDRESS, served.url).replace("deploy/", f"{ROOT}/deploy/")
        run = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text], cwd=tmp_path, env=_environment(tmp_path),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.returncode == 0, f"{line}\n{run.stdout}{run.stderr}"
    assert "demo" in (tmp_path / "records.csv").read_text()


def _starts(line: str, folder: Path) -> None:
    words = [*shlex.split(line)[1:], "--engine", "null", "--port", "0", "--data-dir", str(folder / "other")]
    with subprocess.Popen(
        [sys.executable, "-m", "sd35", *words], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        said = server.stdout.readline()
        server.terminate()
        assert said.startswith("sd35 serves on "), line


def _environment(folder: Path) -> dict[str, str]:
    """With our command on the path, and the tests' server as the one of this home."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    if not (home / "serve").exists():
        (home / "serve").symlink_to(folder / "data")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "SD35_HOME": str(home)}
