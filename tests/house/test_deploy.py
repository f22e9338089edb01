"""What operators copy: the unit, the container's recipe, the settings and the guide."""

import base64
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sd35.cli.main import main
from sd35.serving.sources import resolve

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
GUIDE = (ROOT / "docs/guides/deploy.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent


def run(*command: object, **options: object) -> "subprocess.CompletedProcess[str]":
    """The ended process, with what it said."""
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with the one change that this machine needs: where sd35 is."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not there: apt-get install systemd")
    text = (DEPLOY / "sd35.service").read_text(encoding="utf-8")
    assert "ExecStart=/opt/sd35/bin/sd35 serve" in text
    file = tmp_path / "sd35.service"
    file.write_text(text.replace("/opt/sd35/bin/sd35", str(BIN / "sd35")), encoding="utf-8")
    return file


def test_the_unit_is_understood(unit: Path) -> None:
    """systemd knows every line of it and complains of none."""
    checked = run("systemd-analyze", "verify", unit)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_unit_is_hardened(unit: Path) -> None:
    """An exposure of 2.0 at most on systemd's scale from 0 to 10; a plain service has 9.2."""
    checked = run("systemd-analyze", "security", "--offline=true", "--threshold=20", unit)
    assert checked.returncode == 0, checked.stdout[-300:]


def test_the_unit_gives_the_server_its_time() -> None:
    """systemd waits longer than a stop takes, and signals the server alone."""
    text = (DEPLOY / "sd35.service").read_text(encoding="utf-8")
    found = re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert found is not None
    assert int(found[1]) > 30
    assert "\nKillMode=mixed\n" in text


def test_the_dockerfile_has_no_findings() -> None:
    """hadolint, with nothing passed over but what the file itself explains."""
    checked = run(BIN / "hadolint", "--no-color", DEPLOY / "Dockerfile")
    assert checked.returncode == 0, checked.stdout


def test_the_image_gets_all_that_the_package_is_built_from(tmp_path: Path) -> None:
    """The files that the first stage copies, past the ignore file, make a wheel with the demo in it."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    copied = [
        word for line in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE) for word in line.split()
    ]
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for name in copied:
        assert f"!{name}" in allowed
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet")
    built = run(*pip, "--wheel-dir", tmp_path / "out", tmp_path)
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "out").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "sd35/serving/server.py" in names
    assert fnmatch.filter(names, "sd35/demo/*.safetensors") or fnmatch.filter(
        names, "sd35/demo/**/*.safetensors"
    )


def test_the_example_settings_are_settings(tmp_path: Path) -> None:
    """deploy/sd35.toml is read, and each of its commented lines is too, once its mark is gone."""
    file = DEPLOY / "sd35.toml"
    assert resolve({"config": str(file)}, {}).settings.data_dir == "/var/lib/sd35/serve"
    text = re.sub(r"^# (\w+ = )", r"\1", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    whole = tmp_path / "sd35.toml"
    whole.write_text(text, encoding="utf-8")
    assert resolve({"config": str(whole)}, {}).settings.policy == "/etc/sd35/policy.yaml"


def test_the_rehearsal_ends_with_a_picture(tmp_path: Path) -> None:
    """The guide's block, pasted into a shell: settings shown, key made, picture drawn, server stopped."""
    block = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)[0]
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    done = run("sh", "-e", "-u", "-c", block, cwd=tmp_path, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 'data_dir = "rehearsal"' in done.stdout
    answer = json.loads((tmp_path / "answer.json").read_text(encoding="utf-8"))
    assert base64.b64decode(answer["data"][0]["b64_json"]).startswith(b"\x89PNG")


def test_the_guides_settings_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`sd35 config show` of the shipped file, as the guide has it, plain and resolved."""
    file = tmp_path / "sd35.toml"
    shutil.copy(DEPLOY / "sd35.toml", file)
    assert main(["config", "show", "--config", str(file)]) == 0
    assert 'models = "large"' in capsys.readouterr().out
    assert main(["config", "show", "--config", str(file), "--resolved"]) == 0
    assert "max_queued = 1000" in capsys.readouterr().out
