"""The folder that comes of it: whole, recorded, found by name, and never mixed with another."""

import hashlib
import itertools
import json
import shutil
from pathlib import Path

import pytest
from loopback_hub import SHARD, WEIGHTS, LoopbackHub, contents

from sd35.checkpoints.fetch.fetch import fetch, refetch
from sd35.checkpoints.fetch.mend import mend
from sd35.checkpoints.fetch.workshop import Workshop
from sd35.checkpoints.manifest import Origin, hash_files, read_manifest
from sd35.checkpoints.store import locate
from sd35.errors import CheckpointError, MissingError, NetworkError, OutputError, RequestError


@pytest.fixture
def folder(hub: LoopbackHub, tmp_path: Path) -> Path:
    """A complete folder, fetched from the hub; the hub's record of requests is empty."""
    fetch("maker/model", tmp_path / "model", endpoint=hub.endpoint)
    hub.requests.clear()
    return tmp_path / "model"


def test_the_manifest(hub: LoopbackHub, folder: Path, wanted: dict[str, bytes]) -> None:
    """Every file with its size and SHA-256, and where they come from."""
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest.files == hash_files(folder)
    assert manifest.files[WEIGHTS].sha256 == hashlib.sha256(wanted[WEIGHTS]).hexdigest()
    assert manifest.origin == Origin("hub", "maker/model", hub.commit, hub.endpoint)


def test_found_by_name(hub: LoopbackHub, repository: dict[str, bytes]) -> None:
    """What is fetched without -o is what `--checkpoint` finds, and Turbo is recorded as Turbo."""
    hub.repository = "stabilityai/stable-diffusion-3.5-large-turbo"
    report = fetch("large-turbo", endpoint=hub.endpoint)
    assert locate("large-turbo") == report.path
    assert report.manifest.variant == "large-turbo"
    hub.repository = "maker/model"
    report = fetch("maker/model", endpoint=hub.endpoint)
    assert locate("maker/model") == report.path


def test_unfinished_is_not_found(hub: LoopbackHub) -> None:
    """A checkpoint that is half here is no checkpoint, and the command that goes on is named."""
    hub.faults[WEIGHTS] = itertools.chain(["cut"], itertools.repeat("403"))
    with pytest.raises(NetworkError):
        fetch("maker/model", endpoint=hub.endpoint)
    with pytest.raises(MissingError, match="run `sd35 fetch maker/model` to go on"):
        locate("maker/model")


def test_nothing_to_do(hub: LoopbackHub, folder: Path) -> None:
    """A complete folder asks nobody; the same branch is looked up, and left alone."""
    assert fetch("maker/model", folder, endpoint=hub.endpoint).brought == 0
    assert not hub.requests
    assert fetch("maker/model", folder, endpoint=hub.endpoint, revision="main").brought_bytes == 0
    assert len(hub.requests) == 1


def test_a_complete_folder_stays_what_it_is(hub: LoopbackHub, folder: Path) -> None:
    """Another commit, repository or layout is not mixed in."""
    before = contents(folder)
    hub.files["README.md"] = b"new"
    with pytest.raises(OutputError, match=f"and main is {hub.commit}"):
        fetch("maker/model", folder, endpoint=hub.endpoint, revision="main")
    with pytest.raises(OutputError, match="holds maker/model: choose another place"):
        fetch("maker/other", folder, endpoint=hub.endpoint)
    with pytest.raises(OutputError, match="holds the diffusers folder of maker/model"):
        fetch("maker/model", folder, endpoint=hub.endpoint, files=("single.safetensors",))
    assert contents(folder) == before


def test_an_unfinished_folder_keeps_its_commit(
    hub: LoopbackHub, tmp_path: Path, wanted: dict[str, bytes]
) -> None:
    """The second run goes on with the commit of the first, although the branch has moved."""
    first = hub.commit
    hub.faults[WEIGHTS] = itertools.repeat("403")
    with pytest.raises(NetworkError):
        fetch("maker/model", tmp_path / "m", endpoint=hub.endpoint)
    hub.faults.clear()
    hub.branches["main"] = "f" * 40
    report = fetch("maker/model", tmp_path / "m", endpoint=hub.endpoint)
    assert report.manifest.origin is not None
    assert report.manifest.origin.commit == first
    assert contents(tmp_path / "m") == wanted


def test_an_unfinished_folder_of_something_else(hub: LoopbackHub, tmp_path: Path) -> None:
    """Two repositories never share a folder."""
    hub.faults[WEIGHTS] = itertools.repeat("403")
    with pytest.raises(NetworkError):
        fetch("maker/model", tmp_path / "m", endpoint=hub.endpoint)
    hub.repository = "maker/other"
    with pytest.raises(OutputError, match="unfinished fetch of maker/model"):
        fetch("maker/other", tmp_path / "m", endpoint=hub.endpoint)


def test_other_peoples_files(hub: LoopbackHub, tmp_path: Path) -> None:
    """A folder with something in it, or a file, is not touched."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not mixed with other things"):
        fetch("maker/model", tmp_path / "m", endpoint=hub.endpoint)
    with pytest.raises(OutputError, match="is a file"):
        fetch("maker/model", tmp_path / "m" / "thesis.txt", endpoint=hub.endpoint)
    assert contents(tmp_path / "m") == {"thesis.txt": b"mine"}


def test_one_fetch_at_a_time(hub: LoopbackHub, tmp_path: Path) -> None:
    """A second fetch into the same folder is refused while the first is under way."""
    with Workshop(tmp_path / "m"), pytest.raises(OutputError, match="Another sd35 fetch"):
        fetch("maker/model", tmp_path / "m", endpoint=hub.endpoint)


def test_a_corner_that_was_left(hub: LoopbackHub, folder: Path, wanted: dict[str, bytes]) -> None:
    """What a kill in the last moment left behind is cleared by the next fetch."""
    (folder / ".fetch" / "git").mkdir(parents=True)
    fetch("maker/model", folder, endpoint=hub.endpoint)
    assert contents(folder) == wanted
    assert not (folder / ".fetch").exists()


def test_lost_files_come_back(hub: LoopbackHub, folder: Path, wanted: dict[str, bytes]) -> None:
    """A complete folder that lost files, or has one of another size, gets just those."""
    (folder / WEIGHTS).unlink()
    (folder / SHARD).write_bytes(b"short")
    report = fetch("maker/model", folder, endpoint=hub.endpoint)
    assert report.brought == 2
    assert contents(folder) == wanted
    assert {path for method, path, _ in hub.requests if "resolve" in path and method == "GET"} == {
        f"/maker/model/resolve/{hub.commit}/{path}" for path in (WEIGHTS, SHARD)
    }


def test_refetch(hub: LoopbackHub, folder: Path, wanted: dict[str, bytes]) -> None:
    """Damaged files, large and small, are brought again from the commit in the manifest; others are not."""
    before = read_manifest(folder)
    for path in (WEIGHTS, "tokenizer/merges.txt"):
        (folder / path).write_bytes(bytes(len(wanted[path])))
    report = refetch(folder, [WEIGHTS, "tokenizer/merges.txt"])
    assert report.brought == 2
    assert contents(folder) == wanted
    assert read_manifest(folder) == before
    assert len(hub.downloads(WEIGHTS)) == 1
    assert not hub.downloads(SHARD)


def test_refetch_leaves_what_is_sound(hub: LoopbackHub, folder: Path) -> None:
    """A file that is what the manifest says costs no byte."""
    assert refetch(folder, [WEIGHTS]).brought == 0
    assert not hub.downloads(WEIGHTS)


def test_refetch_believes_the_manifest(
    hub: LoopbackHub, folder: Path, wanted: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub that has something else under the old commit now is refused, and the damaged file stays."""
    commit = hub.commit
    monkeypatch.setattr(LoopbackHub, "commit", property(lambda _: commit))
    (folder / WEIGHTS).write_bytes(bytes(400_000))
    hub.files[WEIGHTS] = wanted[WEIGHTS][::-1]
    with pytest.raises(CheckpointError, match="no longer has the transformer"):
        refetch(folder, [WEIGHTS])
    assert (folder / WEIGHTS).read_bytes() == bytes(400_000)
    assert not (folder / ".fetch").exists()


def test_refetch_of_nothing_known(hub: LoopbackHub, folder: Path, tmp_path: Path) -> None:
    """Paths outside the manifest, and folders without an origin, are refused in words."""
    with pytest.raises(RequestError, match=r"\.\./x is no file of"):
        refetch(folder, ["../x"])
    shutil.copytree(folder, tmp_path / "copy")
    manifest = json.loads((folder / "sd35.json").read_text())
    (tmp_path / "copy" / "sd35.json").write_text(json.dumps({**manifest, "origin": None}))
    with pytest.raises(CheckpointError, match="does not say where it was fetched from"):
        refetch(tmp_path / "copy", [WEIGHTS])


@pytest.mark.parametrize("form", ["{}", "../victim", "vae/../../victim"])
def test_a_strangers_manifest_reaches_no_file_outside(
    hub: LoopbackHub, folder: Path, tmp_path: Path, form: str
) -> None:
    """A manifest and a hub that agree on a path out of the folder don't get anything written there."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    path = form.format(victim)
    hub.files[path] = b"theirs"
    manifest = json.loads((folder / "sd35.json").read_text())
    manifest["files"][path] = {"size": 6, "sha256": hashlib.sha256(b"theirs").hexdigest()}
    manifest["origin"]["commit"] = hub.commit
    (folder / "sd35.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="victim"):
        mend(folder, [path])
    assert victim.read_bytes() == b"mine"


def test_a_strangers_endpoint_sees_no_token(
    hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mending a folder whose manifest names a foreign endpoint sends that endpoint no token."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (folder / WEIGHTS).unlink()
    refetch(folder, [WEIGHTS])
    assert hub.requests
    assert all("Authorization" not in headers for _, _, headers in hub.requests)
    (folder / WEIGHTS).unlink()
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    hub.requests.clear()
    refetch(folder, [WEIGHTS])
    assert all(headers["Authorization"] == "Bearer hf_secret" for _, _, headers in hub.requests)


def test_single_file(hub: LoopbackHub, tmp_path: Path, repository: dict[str, bytes]) -> None:
    """One file and the licence, and the second time nothing."""
    files = ("single.safetensors",)
    fetch("maker/model", tmp_path / "m", endpoint=hub.endpoint, files=files)
    assert contents(tmp_path / "m") == {path: repository[path] for path in (*files, "LICENSE.md")}
    assert fetch("maker/model", tmp_path / "m", endpoint=hub.endpoint, files=files).brought == 0
    with pytest.raises(OutputError, match="holds single files of maker/model"):
        fetch("maker/model", tmp_path / "m", endpoint=hub.endpoint)


def test_progress(hub: LoopbackHub, tmp_path: Path, wanted: dict[str, bytes]) -> None:
    """Counts from nothing to all bytes, though one file had to be begun again."""
    hub.faults[WEIGHTS] = iter(["wrong"])
    seen: list[tuple[int, int]] = []
    fetch("maker/model", tmp_path / "m", endpoint=hub.endpoint, show=lambda *count: seen.append(count))
    total = sum(len(content) for content in wanted.values())
    assert {of for _, of in seen} == {total}
    assert seen[-1] == (total, total)
    assert max(done for done, _ in seen) <= total
