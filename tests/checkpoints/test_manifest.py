"""What a manifest may say, and what it comes to on another system."""

import json
from pathlib import Path

import pytest

from sd35.checkpoints.manifest import FORMAT, FileRecord, Manifest, read_manifest, record, write_manifest
from sd35.errors import CheckpointError

RECORD = FileRecord(2, "0" * 64)


@pytest.mark.parametrize(
    "path",
    ["../up.json", "/etc/x.json", "vae//config.json", "vae/./x.json", "", "C:/x.json", "C:x.json", "a\\..\\b",
     "vae/config.json:hidden", "a\nb"],
)  # fmt: skip
def test_paths_that_lead_out_are_refused(tmp_path: Path, path: str) -> None:
    """A stranger's list names files of its own folder alone, as Linux, macOS and Windows read a name."""
    listed = {"format": FORMAT, "files": {"model_index.json": vars(RECORD), path: vars(RECORD)}}
    (tmp_path / "sd35.json").write_text(json.dumps(listed), encoding="utf-8")
    with pytest.raises(CheckpointError, match="is no path in the folder"):
        read_manifest(tmp_path)


def test_what_could_not_be_read_is_not_recorded(tmp_path: Path) -> None:
    """A name that a manifest may not list ends the recording in a sentence."""
    (tmp_path / "notes: mine.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="no name that every system can have"):
        record(tmp_path, "test")
    assert not (tmp_path / "sd35.json").exists()


def test_equal_manifests_have_equal_bytes(tmp_path: Path) -> None:
    """Lines end with a line feed on every system, and what was written is read."""
    manifest = Manifest({"vae/config.json": RECORD}, variant="medium")
    write_manifest(tmp_path, manifest)
    assert b"\r" not in (tmp_path / "sd35.json").read_bytes()
    assert read_manifest(tmp_path) == manifest
