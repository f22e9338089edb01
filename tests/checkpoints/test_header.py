"""The header gate: what the format's rules and common sense forbid is refused, at once and in one line."""

import json
import re
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sd35.checkpoints.header import MOST_TENSORS, HeaderError, parse_header, read_header
from sd35.checkpoints.reader import TensorReader
from sd35.errors import CheckpointError


def entry(begin: int = 0, end: int = 4, shape: object = (4,), dtype: object = "U8") -> dict[str, object]:
    """A header's entry of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refusal(text: bytes | dict[str, object], data: int = 4) -> str:
    """Why a header with that many bytes of data is refused."""
    raw = text if isinstance(text, bytes) else json.dumps(text).encode()
    with pytest.raises(HeaderError) as caught:
        parse_header(raw, data)
    return str(caught.value)


def test_a_sound_header(tmp_path: Path) -> None:
    """Names, dtypes, shapes and byte ranges of a file of the library's own; spaces at the end are padding."""
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(5, dtype=torch.bfloat16), "none": torch.zeros(0, 7)}
    save_file(tensors, path, metadata={"format": "pt"})
    header = read_header(path)
    assert {name: (one.dtype, one.shape) for name, one in header.entries.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("BF16", (5,)),
        "none": ("F32", (0, 7)),
    }
    assert header.metadata == {"format": "pt"}
    assert header.data_start + 34 == path.stat().st_size
    assert parse_header(json.dumps({"a": entry()}).encode() + b"   ", 4).entries["a"].end == 4


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "empty"),
        (b"1234567", "7 bytes"),
        (struct.pack("<Q", 0) + b"{}", "brace"),
        (struct.pack("<Q", 400) + b'{"a"', "cut off at 12 bytes"),
        (struct.pack("<Q", 9 << 20) + b"{" * 64, "claims a header"),
        (struct.pack("<Q", 2**63) + b"{" * 64, "claims a header"),
        (struct.pack("<Q", 2**64 - 1) + b"{" * 64, "claims a header"),
    ],
)
def test_impossible_lengths(tmp_path: Path, raw: bytes, words: str) -> None:
    """B04: a length of 0, beyond the file, the cap or all numbers, and files too short for one."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=words):
        read_header(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"\xff": 1}', "utf-8"),
        (b"{nothing}", "strict JSON"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too deep"),
        (b' {"a": 1}', "begin with a brace"),
        (b'\xef\xbb\xbf{"a": 1}', "begin with a brace"),
        (b"[1]", "begin with a brace"),
        (b'{"a": 1}\n', "end with a brace"),
        (b'{"a": NaN}', "no JSON number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (json.dumps({"a": {**entry(), "extra": 1}}).encode(), "other fields"),
        (b'{"a": {"dtype": "U8", "shape": [4]}}', "other fields"),
        (b'{"a": 7}', "other fields"),
        (b'{"__metadata__": []}', "metadata"),
        (b'{"__metadata__": {"k": 1}}', "no text"),
    ],
)
def test_no_header(text: bytes, words: str) -> None:
    """B05: bytes that are no strict JSON, and JSON that is no header."""
    assert words in refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        f'{{"a": {json.dumps(entry())}, "a": {json.dumps(entry())}}}',
        '{"__metadata__": {"k": "1", "k": "2"}}',
        '{"a": {"dtype": "U8", "dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}',
        f'{{"a": {json.dumps(entry())}, "\\u0061": {json.dumps(entry())}}}',
    ],
)
def test_nothing_is_there_twice(text: str) -> None:
    """B06: a name, a metadata key, a field, and a name spelled in two ways."""
    assert "there twice" in refusal(text.encode())


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"a": entry(0, 4), "b": entry(2, 6)}, 6, "b so that it overlaps a"),
        ({"a": entry(0, 4), "b": entry(5, 9)}, 9, "b so that it leaves a hole after a"),
        ({"a": entry(1, 5)}, 5, "hole after the header"),
        ({"a": entry()}, 7, "goes on for 3 bytes"),
        ({}, 1, "goes on for 1 bytes"),
        ({"a": entry()}, 3, "is cut off at"),
        ({"a": entry(4, 0)}, 4, "byte range"),
        ({"a": entry(-4, 0)}, 4, "byte range"),
        ({"a": {**entry(), "data_offsets": [0, 4, 8]}}, 4, "byte range"),
        ({"a": {**entry(), "data_offsets": [0.0, 4.0]}}, 4, "byte range"),
        ({"a": {**entry(), "data_offsets": [False, 4]}}, 4, "byte range"),
    ],
)
def test_bytes_are_covered_exactly(header: dict[str, object], data: int, words: str) -> None:
    """B07: overlaps, holes, bytes left over, missing bytes, ranges that are none; the tensor is named."""
    assert words in refusal(header, data)


@pytest.mark.parametrize(
    ("described", "words"),
    [
        (entry(shape=[5]), "4 bytes in place of 5"),
        (entry(shape=[2, 2], dtype="F32"), "4 bytes in place of 16"),
        (entry(shape=[2**31 - 1] * 8), "in place of"),
        (entry(shape=[0, 2**62]), "the shape"),
        (entry(shape=[2**62, 4]), "the shape"),
        (entry(shape=[-4]), "the shape"),
        (entry(shape=[4.0]), "the shape"),
        (entry(shape=[True] * 4), "the shape"),
        (entry(shape=[1] * 9), "the shape"),
        (entry(shape="4"), "the shape"),
        (entry(dtype="F8_E4M3FNUZ"), "the type"),
        (entry(dtype="F4"), "the type"),
        (entry(dtype=["U8"]), "the type"),
        (entry(dtype={}), "the type"),
    ],
)
def test_shapes_and_dtypes(described: dict[str, object], words: str) -> None:
    """B08: sizes that disagree, products beyond all memory, dimensions that are none, unknown dtypes."""
    assert words in refusal({"a": described})


def test_header_bombs() -> None:
    """B09: too many tensors, too many keys of any kind, a name of a megabyte."""
    many = {f"t{i}": entry(0, 0, [0]) for i in range(MOST_TENSORS + 1)}
    assert str(MOST_TENSORS) in refusal(many, 0)
    for bomb in (b'{"x":[' + b"{}," * 300_000 + b"0]}", b"{" + b'"a":0,' * 300_000 + b'"b":0}'):
        assert "more than 200000 keys" in refusal(bomb)
    assert "longer than 512 bytes" in refusal({"x" * 513: entry()})
    assert len(refusal({"x" * 1_000_000: entry()})) < 400


@pytest.mark.parametrize(
    "name", ["", "../../x", "a\\b", "a\0", "a\x1b[2J", "a\nwrong", "\u202edrow", "a\u2066", "\ud800", "a\x7f"]
)
def test_names_are_plain_and_printed_plainly(name: str) -> None:
    """B10: no name with slashes or invisible characters passes, and none reaches the terminal as it is."""
    for header in ({name: entry()}, {"__metadata__": {name: "x"}, "a": entry()}):
        assert refusal(header).isprintable()


@pytest.mark.parametrize("text", ["a\0", "a\x1b[2J", "\u202edrow", "\ud800"])
def test_metadata_hides_nothing(text: str) -> None:
    """B10: metadata may have lines, but no controls that would steer a terminal."""
    assert refusal({"__metadata__": {"k": text}, "a": entry()}).isprintable()
    assert parse_header(json.dumps({"__metadata__": {"k": "two\nlines"}, "a": entry()}).encode(), 4)


def test_reader_passes_the_gate_first(tmp_path: Path) -> None:
    """A header that the library would accept, with an unknown field, never gets to it."""
    text = json.dumps({"a": {**entry(), "extra": 1}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0\0\0\0")
    with pytest.raises(CheckpointError, match="other fields"):
        TensorReader([path])


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_truncation_says_how_much_is_there(tmp_path: Path, kept: float) -> None:
    """A file that stops in its data is cut off at N of M bytes."""
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[: int(whole * kept)])
    with pytest.raises(CheckpointError, match=re.escape(f"cut off at {int(whole * kept)} of {whole} bytes")):
        read_header(path)
