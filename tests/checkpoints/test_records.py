"""Schemes in headers, manifests in folders, names in the store."""

import json
from itertools import product
from pathlib import Path
from typing import get_args

import pytest

from sd35.checkpoints import store
from sd35.checkpoints.manifest import (
    FORMAT,
    FileRecord,
    Manifest,
    hash_file,
    hash_files,
    read_manifest,
    write_manifest,
)
from sd35.checkpoints.schemes import METADATA_KEY, dump_schemes, load_schemes
from sd35.checkpoints.verify import verify
from sd35.errors import CheckpointError, MissingError
from sd35.fp8 import Activation, Dtype, Granularity, Scheme


def test_every_scheme_survives_the_header() -> None:
    """All combinations of words are written and read back."""
    words = product(get_args(Dtype), get_args(Granularity), get_args(Activation))
    schemes = {f"layer.{i}": Scheme(*word) for i, word in enumerate(words)}
    assert len(schemes) == 18
    assert load_schemes({METADATA_KEY: dump_schemes(schemes)}) == schemes


def test_a_16_bit_file_has_none() -> None:
    """Without the entry there are no FP8 layers."""
    assert load_schemes({"format": "pt"}) == {}


@pytest.mark.parametrize(
    "text", ["", "[]", '{"layers": {"a": {"format": "nvfp4"}}}', '{"layers": {"a": {}}}', '{"layers": 3}']
)
def test_unknown_formats_are_refused(text: str) -> None:
    """A format that we can't read is never read as something else."""
    with pytest.raises(CheckpointError, match=METADATA_KEY):
        load_schemes({METADATA_KEY: text})


def test_manifest_round_trip_and_identity(tmp_path: Path) -> None:
    """A manifest reads back equal; its identity follows contents, not names of folders."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"abc")
    manifest = Manifest(hash_files(tmp_path), variant="demo", tool="t", recipe={"k": 1}, source={})
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, "abc"
    assert manifest.files == {"a/x": FileRecord(3, known)}
    (tmp_path / "a" / "x").write_bytes(b"abd")
    assert Manifest(hash_files(tmp_path)).identity != manifest.identity
    moved = Manifest({"b/x": manifest.files["a/x"]})  # the same content elsewhere is another checkpoint
    assert moved.identity != manifest.identity


@pytest.mark.parametrize("text", ["{}", '{"format": "sd35-checkpoint-1"}', "not json"])
def test_damaged_manifest(tmp_path: Path, text: str) -> None:
    """A manifest that can't be understood is refused, not ignored."""
    (tmp_path / "sd35.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"sd35\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "record",
    [
        {"size": 3, "sha256": 5},
        {"size": 3, "sha256": "5"},
        {"size": "3", "sha256": "0" * 64},
        {"size": True, "sha256": "0" * 64},
        {"size": -1, "sha256": "0" * 64},
        {"size": 3, "sha256": "0" * 40},
    ],
)
def test_records_of_files_are_sizes_and_hashes(tmp_path: Path, record: dict[str, object]) -> None:
    """Whoever compares with a manifest finds a size and a SHA-256 in it, or a refusal of the whole."""
    (tmp_path / "x").write_bytes(b"abc")
    (tmp_path / "sd35.json").write_text(json.dumps({"format": FORMAT, "files": {"x": record}}))
    with pytest.raises(CheckpointError, match=r"sd35\.json is damaged"):
        read_manifest(tmp_path)
    assert any("sd35.json is damaged" in str(finding) for finding in verify(tmp_path).findings)


def test_identity_is_remembered_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without a manifest is hashed once, and again when it changed."""
    calls = []
    monkeypatch.setattr(store, "hash_files", lambda folder: calls.append(1) or hash_files(folder))
    (tmp_path / "x").write_bytes(b"abc")
    first = store.identity(tmp_path)
    assert store.identity(tmp_path) == first
    assert len(calls) == 1
    (tmp_path / "x").write_bytes(b"abcd")
    assert store.identity(tmp_path) != first
    assert len(calls) == 2


def test_names_and_paths(tmp_path: Path) -> None:
    """`demo` is bundled, a path is itself, and an absent checkpoint says where it would be looked for."""
    assert (store.locate("demo") / "model_index.json").is_file()
    assert store.locate(tmp_path) == tmp_path
    with pytest.raises(MissingError, match=r"stabilityai/stable-diffusion-3\.5-large"):
        store.locate("large")
    for nothing in ("nonsense", "~nobody-of-this-name/model", "tests/nothing"):
        with pytest.raises(MissingError, match="one of the names demo"):
            store.locate(nothing)
    (tmp_path / "file").touch()
    with pytest.raises(MissingError, match="one of the names demo"):
        store.locate(tmp_path / "file" / "below")
    with pytest.raises(CheckpointError, match="leads nowhere"):
        store.locate("n" * 5000)


def test_a_path_that_may_not_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether something is there is not known, and the sentence says so."""
    monkeypatch.setattr(Path, "stat", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "denied")))
    with pytest.raises(MissingError, match="permission denied"):
        store.locate(tmp_path)


def test_an_identity_needs_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where SD35_HOME can't be written, the identity is computed each time, and right."""
    (tmp_path / "home").write_text("no folder")
    monkeypatch.setenv("SD35_HOME", str(tmp_path / "home"))
    (tmp_path / "x").write_bytes(b"abc")
    assert store.identity(tmp_path / "x") == hash_file(tmp_path / "x").sha256
    assert store.identity(tmp_path / "x") == hash_file(tmp_path / "x").sha256


def test_an_identity_is_never_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is killed while writing the note leaves none, not an empty one."""
    monkeypatch.setenv("SD35_HOME", str(tmp_path / "home"))
    (tmp_path / "x").write_bytes(b"abc")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", lambda path, *_, **__: path.touch() or _stop())
        with pytest.raises(KeyboardInterrupt):
            store.identity(tmp_path / "x")
    assert store.identity(tmp_path / "x") == hash_file(tmp_path / "x").sha256


def _stop() -> None:
    raise KeyboardInterrupt
