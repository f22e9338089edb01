"""A folder as a source."""

import os
from pathlib import Path

import pytest
from loopback_hub import WEIGHTS, contents, pointer_to

from sd35.checkpoints.fetch.fetch import fetch, refetch
from sd35.checkpoints.manifest import Manifest, Origin, hash_files, read_manifest, write_manifest
from sd35.errors import CheckpointError, MissingError, RequestError


@pytest.fixture
def source(tmp_path: Path, repository: dict[str, bytes]) -> Path:
    """The repository as a folder, with its weights behind a link as in the hub's cache."""
    folder = tmp_path / "source"
    for path, content in repository.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    (folder / WEIGHTS).rename(tmp_path / "blob")
    (folder / WEIGHTS).symlink_to(tmp_path / "blob")
    return folder


def test_copied_with_hashes(source: Path, tmp_path: Path, wanted: dict[str, bytes],
                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """By the same allow-list, as files of their own, offline; a lost file comes back from there."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    report = fetch(str(source), tmp_path / "m")
    assert contents(tmp_path / "m") == wanted
    assert not (tmp_path / "m" / WEIGHTS).is_symlink()
    assert report.manifest.files == hash_files(tmp_path / "m")
    assert report.manifest.origin == Origin("folder", str(source))
    (tmp_path / "m" / WEIGHTS).write_bytes(bytes(400_000))
    refetch(tmp_path / "m", [WEIGHTS])
    assert contents(tmp_path / "m") == wanted


def test_its_manifest_is_believed(source: Path, tmp_path: Path) -> None:
    """A file that is not what the source's own manifest says is not copied."""
    write_manifest(source, Manifest(hash_files(source)))
    (tmp_path / "blob").write_bytes(bytes(400_000))
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS} is damaged"):
        fetch(str(source), tmp_path / "m")
    assert not (tmp_path / "m" / WEIGHTS).exists()
    assert read_manifest(tmp_path / "m") is None


def test_pointers_are_no_weights(source: Path, tmp_path: Path) -> None:
    """A clone without its large files is recognised before anything is copied."""
    (tmp_path / "blob").write_bytes(pointer_to(b"weights"))
    with pytest.raises(CheckpointError, match="a Git LFS pointer, not the file itself: run `git lfs pull`"):
        fetch(str(source), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_no_folder(tmp_path: Path) -> None:
    """A path that is none, and a revision of a folder."""
    with pytest.raises(MissingError, match="There is no folder"):
        fetch(str(tmp_path / "nowhere"), tmp_path / "m")
    with pytest.raises(RequestError, match="no revisions"):
        fetch(str(tmp_path), tmp_path / "m", revision="main")
    assert not (tmp_path / "m").exists()


def test_a_part_that_may_not_be_listed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without rights is told as such, and not as a part that is missing there."""
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("vae"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(MissingError, match="vae can't be listed"):
        fetch(str(source), tmp_path / "m")
