"""Wrong files are named for what they are, by their contents."""

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from sd35.checkpoints.header import read_header
from sd35.checkpoints.sniff import looks_like_safetensors, read_pointer, sniff, sniff_bytes, zero_tail
from sd35.errors import CheckpointError

OID = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{OID}\nsize 16460379262\n"


class Canary:
    """A pickle of this would create a file, were it ever loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def zipped(**names: bytes) -> bytes:
    """A zip archive of these files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(content: bytes) -> bytes:
    """A tar archive with one file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("data.pkl")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def torch_saved() -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, file)
    return file.getvalue()


def code_files(canary: Path) -> dict[str, bytes]:
    """B01-B03: pickles of every protocol, in archives of every kind, broken on purpose."""
    evil = pickle.dumps(Canary(canary))
    archive = zipped(**{"archive/data.pkl": evil})
    flagged = bytearray(archive)
    flagged[6] |= 1  # "encrypted", so that scanners skip it
    bad_crc = bytearray(archive)
    bad_crc[14] ^= 0xFF
    return {
        **{f"protocol {i}": pickle.dumps(Canary(canary), protocol=i) for i in range(6)},
        "import by opcode": b"cbuiltins\neval\n(S'1'\ntR.",
        "zip": archive,
        "zip with flags": bytes(flagged),
        "zip with a bad CRC": bytes(bad_crc),
        "zip in zip": zipped(inner=archive),
        "torch": torch_saved(),
        "7z": b"7z\xbc\xaf\x27\x1c" + evil,
        "gzip": gzip.compress(evil),
        "bzip2": bz2.compress(evil),
        "xz": lzma.compress(evil),
        "tar": tarred(evil),
        "NumPy": b"\x93NUMPY" + evil,
        "script": b"#!/usr/bin/env python\n",
    }


@pytest.mark.parametrize("kind", sorted(code_files(Path("x"))))
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "noext"])
def test_code_is_code_under_any_name(tmp_path: Path, kind: str, name: str) -> None:
    """Recognised by format, refused as a header, and never run."""
    path = tmp_path / name
    path.write_bytes(code_files(tmp_path / "canary")[kind])
    found = sniff(path)
    assert found is not None
    assert found.is_code
    with pytest.raises(CheckpointError, match="never read"):
        read_header(path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("content", "words", "remedy"),
    [
        (POINTER.encode(), f"16460379262 bytes (SHA-256 {OID})", "git lfs pull --include x.safetensors"),
        (b"<!DOCTYPE html><html><head><title>Sign in</title>", "HTML page (Sign in)", "token"),
        (b"\n  <html>", "HTML page", "fetch it again"),
        (
            b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
            "XML error (AccessDenied)",
            "token",
        ),
        (b'{"error": "Repository not found"}', "(Repository not found)", "token"),
        (b"", "empty file", "fetch it again"),
        (bytes(5000), "nothing but zeros", "fetch it again"),
        (b"GGUF\3\0\0\0", "a GGUF file", "safetensors"),
        (b"\x89PNG\r\n", "a PNG picture", "safetensors"),
    ],
)
def test_what_people_find_in_place_of_weights(
    tmp_path: Path, content: bytes, words: str, remedy: str
) -> None:
    """B14: each is named, with the command that mends it."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert words in str(caught.value)
    assert remedy in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"#version: 0.2\ni n\nt h\n",
        b"\x0a\x0e\n\x05<unk>",
        b'{"a": 1}',
        b"# A model card\n",
        b"one two three .",
    ],
)
def test_what_belongs_there_has_no_other_name(tmp_path: Path, content: bytes) -> None:
    """Merges, SentencePiece models, JSON and text are what they seem."""
    path = tmp_path / "x"
    path.write_bytes(content)
    assert sniff(path) is None


def test_a_header_length_is_no_pickle() -> None:
    """A header of 640 bytes begins as a pickle of protocol 2 does, and is a header."""
    assert sniff_bytes((640).to_bytes(8, "little") + b'{"a"', Path("x")) is None
    assert looks_like_safetensors((640).to_bytes(8, "little") + b"{")
    assert not looks_like_safetensors(pickle.dumps([1]))


def test_pointers_are_read_strictly() -> None:
    """Its hash and size; a longer or a changed file is none."""
    pointer = read_pointer(POINTER.encode())
    assert pointer is not None
    assert (pointer.sha256, pointer.size) == (OID, 16_460_379_262)
    assert read_pointer(POINTER.encode() + b"x" * 1000) is None
    assert read_pointer(POINTER.replace("sha256", "sha1").encode()) is None


def test_zero_tail(tmp_path: Path) -> None:
    """Counted over blocks; looking stops where it was told to."""
    path = tmp_path / "x"
    path.write_bytes(b"a" + bytes(3 << 20))
    assert zero_tail(path) == 3 << 20
    assert zero_tail(path, most=5) == 1 << 20
    path.write_bytes(b"a")
    assert zero_tail(path) == 0
