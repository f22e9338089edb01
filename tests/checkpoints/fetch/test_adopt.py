"""Folders that other downloaders made: kept where they are right, never overwritten unasked."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from loopback_hub import SHARD, WEIGHTS, LoopbackHub, contents

from sd35.checkpoints.fetch.fetch import fetch
from sd35.checkpoints.manifest import read_manifest
from sd35.cli.main import main
from sd35.errors import NetworkError, OutputError


def lay_out(folder: Path, files: dict[str, bytes]) -> Path:
    """A folder with these files, as `hf download --local-dir` leaves it."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    (folder / ".cache" / "huggingface" / "download").mkdir(parents=True)
    return folder


def brought(hub: LoopbackHub) -> set[str]:
    """The files that the hub was asked for."""
    asked = {path for method, path, _ in hub.requests if "/resolve/" in path and method == "GET"}
    return {path.split("/", 5)[5] for path in asked}


def test_what_is_right_is_kept(hub: LoopbackHub, tmp_path: Path, wanted: dict[str, bytes]) -> None:
    """Only what is lacking comes; the manifest is that of an ordinary fetch."""
    there = {path: content for path, content in wanted.items() if path not in (WEIGHTS, "vae/config.json")}
    folder = lay_out(tmp_path / "m", there)
    before = (folder / SHARD).stat()
    report = fetch("maker/model", folder, endpoint=hub.endpoint)
    assert brought(hub) == {WEIGHTS, "vae/config.json"}
    assert (folder / SHARD).stat().st_mtime_ns == before.st_mtime_ns
    assert contents(folder) == wanted
    assert report.manifest == read_manifest(folder)
    assert (
        report.manifest.files == fetch("maker/model", tmp_path / "new", endpoint=hub.endpoint).manifest.files
    )


def test_a_clone_with_pointers(hub: LoopbackHub, tmp_path: Path, wanted: dict[str, bytes]) -> None:
    """Pointers make room for what they stand for; what else the clone holds is recorded if it is right."""
    large = wanted[WEIGHTS]
    hash_of = hashlib.sha256(large).hexdigest()
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{hash_of}\nsize {len(large)}\n"
    own = {"README.md": hub.files["README.md"], "notes.txt": b"mine", WEIGHTS: text.encode()}
    folder = lay_out(tmp_path / "m", {**wanted, **own})
    report = fetch("maker/model", folder, endpoint=hub.endpoint)
    assert brought(hub) == {WEIGHTS}
    assert (folder / WEIGHTS).read_bytes() == large
    assert report.manifest.files.keys() == {*wanted, "README.md"}
    assert report.strangers == ["notes.txt"]
    assert (folder / "notes.txt").read_bytes() == b"mine"


@pytest.mark.parametrize("damage", ["another", "short", "link"])
def test_nothing_is_overwritten_unasked(
    hub: LoopbackHub, tmp_path: Path, wanted: dict[str, bytes], damage: str
) -> None:
    """A file that is something else is named, and goes only with leave; until then nothing has changed."""
    folder = lay_out(tmp_path / "m", wanted)
    place, config = folder / WEIGHTS, folder / "vae" / "config.json"
    place.unlink()
    if damage == "link":
        place.symlink_to(config)
    else:
        place.write_bytes(b"my own training" if damage == "short" else bytes(len(wanted[WEIGHTS])))
    before = contents(folder)
    with pytest.raises(OutputError, match=rf"holds 1 files that are not what .*{WEIGHTS} \(.*--replace"):
        fetch("maker/model", folder, endpoint=hub.endpoint)
    assert contents(folder) == before
    assert not (folder / ".fetch").exists()
    assert fetch("maker/model", folder, endpoint=hub.endpoint, may_replace=True).brought == 1
    assert contents(folder) == wanted
    assert config.read_bytes() == wanted["vae/config.json"]


def test_leave_is_asked_for_once(hub: LoopbackHub, tmp_path: Path, wanted: dict[str, bytes]) -> None:
    """What was cut off after the leave goes on without it."""
    folder = lay_out(tmp_path / "m", {**wanted, WEIGHTS: b"old", SHARD: b"old"})
    hub.faults[SHARD] = iter(["403"])
    with pytest.raises(NetworkError, match="is gated"):
        fetch("maker/model", folder, endpoint=hub.endpoint, may_replace=True, jobs=1)
    fetch("maker/model", folder, endpoint=hub.endpoint)
    assert contents(folder) == wanted


def test_a_single_file(hub: LoopbackHub, tmp_path: Path) -> None:
    """One file that somebody has downloaded is enough of a trace."""
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "single.safetensors").write_bytes(hub.files["single.safetensors"])
    report = fetch("maker/model", folder, endpoint=hub.endpoint, files=("single.safetensors",))
    assert "single.safetensors" not in brought(hub)
    assert "single.safetensors" in report.manifest.files


def test_a_folder_without_hashes_is_no_judge(tmp_path: Path, wanted: dict[str, bytes]) -> None:
    """A plain folder promises nothing, so what is here is not known to be right, and stays."""
    source = lay_out(tmp_path / "source", wanted)
    shutil.copytree(source, tmp_path / "m")
    with pytest.raises(OutputError, match="that it has no hash for"):
        fetch(str(source), tmp_path / "m")


def test_the_verb(
    hub: LoopbackHub, tmp_path: Path, wanted: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """It says how many were right, and what was left alone."""
    folder = lay_out(tmp_path / "m", {**wanted, "notes.txt": b"mine", WEIGHTS: b"old"})
    command = ["fetch", "maker/model", "-o", str(folder), "--endpoint", hub.endpoint]
    assert main(command) == 4
    assert "with --replace" in capsys.readouterr().err
    assert main([*command, "--replace"]) == 0
    out = capsys.readouterr().out
    assert f"1 fetched and verified, {len(wanted) - 1} were here and are right" in out
    assert "left alone, and no part of it: notes.txt" in out
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fetched_files"] == 0
