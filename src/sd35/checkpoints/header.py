"""Our own gate for safetensors headers: everything is checked before the library sees the file.

    8 bytes            length N of the header, little endian
    N bytes            JSON: name -> {"dtype", "shape", "data_offsets": [begin, end)}, "__metadata__" -> texts
    the rest           the data, to which the offsets refer

The library (0.8.0) accepts what its specification forbids, such as a name that is there twice, and what no
sound file has: unknown fields, spaces before the brace, a million tensors, names with control characters,
a shape of [0, 2^62]. Two readers may take different values out of such a file, so we refuse it. The byte
ranges must cover the data exactly, without overlap or hole, in whatever order the names come. Only the
header is read, so a refusal costs milliseconds however large the file is.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sd35.checkpoints.files import open_regular
from sd35.checkpoints.findings import BadFileError, bad_file, printable
from sd35.checkpoints.sniff import sniff
from sd35.checkpoints.strict_json import parse_json

LONGEST_HEADER = 8 << 20  # bytes; Large has 1,227 tensors and needs a few hundred kB
MOST_TENSORS = 20_000
LONGEST_NAME = 512  # bytes
_MOST_KEYS = 10 * MOST_TENSORS  # three a tensor, and those of the JSON inside the metadata
MOST_DIMENSIONS = 8
LARGEST_DIMENSION = 2**31 - 1
_FIELDS = {"dtype", "shape", "data_offsets"}
_METADATA = "__metadata__"

# The dtypes that any SD3.5 checkpoint holds, and their bytes.
ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip

# Controls (but tab and the two line ends), bidirectional overrides, lone surrogates.
_HIDDEN = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Entry:
    """What the header says of one tensor; `begin` and `end` count from the start of the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A sound header: `entries` by name in the file's order, and where the data begins."""

    metadata: dict[str, str]
    entries: dict[str, Entry]
    data_start: int


class HeaderError(ValueError):
    """The header breaks a rule; the message is the predicate of a sentence about the file."""


def read_header(path: Path) -> Header:
    """The header of a safetensors file; CheckpointError with the rule that it breaks."""
    try:
        with open_regular(path) as file:
            return _read(file)
    except HeaderError as error:
        raise _refusal(path, str(error)) from error


def parse_header(text: bytes, data_bytes: int) -> Header:
    """A header from its JSON and the number of data bytes that follow; HeaderError if it breaks a rule."""
    content = _parse(text)
    metadata = _metadata(content.pop(_METADATA, {}))
    if len(content) > MOST_TENSORS:
        raise HeaderError(f"lists {len(content)} tensors, and {MOST_TENSORS} are the most that we read")
    entries = {name: _entry(name, value) for name, value in content.items()}
    start = 8 + len(text)
    _check_cover(entries, start, data_bytes)
    return Header(metadata, entries, start)


def _read(file: BinaryIO) -> Header:
    size = file.seek(0, 2)
    file.seek(0)
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8:
        raise HeaderError(f"has {size} bytes, too few for the length of a header")
    if length > LONGEST_HEADER:
        raise HeaderError(
            f"claims a header of {length} bytes, and {LONGEST_HEADER} are the most that we read"
        )
    if length > size - 8:
        raise HeaderError(f"is cut off at {size} bytes, inside its header of {length} bytes")
    return parse_header(file.read(length), size - 8 - length)


def _refusal(path: Path, reason: str) -> BadFileError:
    """The rule that is broken, or what the file is where it is no safetensors file at all."""
    sniffed = sniff(path)
    if sniffed is not None:
        return bad_file(path, sniffed.words, sniffed.remedy)
    return bad_file(path, reason)


def _parse(text: bytes) -> dict[str, Any]:
    if text[:1] != b"{":
        raise HeaderError("has a header that does not begin with a brace")
    if text.rstrip(b" ")[-1:] != b"}":
        raise HeaderError("has a header that does not end with a brace")
    _check_counts(text)
    try:
        content = parse_json(text)
    except ValueError as error:
        raise HeaderError(f"has a header that is not strict JSON: {error}") from error
    assert isinstance(content, dict)
    return content


def _check_counts(text: bytes) -> None:
    """Refuse a bomb before it is parsed: counting is a hundred times cheaper."""
    listed = text.count(b'"data_offsets"')
    if listed > MOST_TENSORS:
        raise HeaderError(f"lists {listed} tensors, and {MOST_TENSORS} are the most that we read")
    if max(text.count(b'":'), text.count(b"{"), text.count(b"[")) > _MOST_KEYS:
        raise HeaderError(f"has a header of more than {_MOST_KEYS} keys")


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise HeaderError("has metadata that is no JSON object")
    for key, text in value.items():
        _check_name(key, "metadata key")
        if not isinstance(text, str):
            raise HeaderError(f"has metadata {printable(key)} that is no text")
        if _HIDDEN.search(text):
            raise HeaderError(f"has metadata {printable(key)} with control characters")
    return value


def _entry(name: str, value: object) -> Entry:
    _check_name(name, "tensor name")
    shown = printable(name)
    if not isinstance(value, dict) or value.keys() != _FIELDS:
        raise HeaderError(f"describes {shown} with other fields than dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise HeaderError(f"gives {shown} the type {printable(dtype)}, which no SD3.5 checkpoint holds")
    if not _are_counts(shape, LARGEST_DIMENSION) or len(shape) > MOST_DIMENSIONS:
        raise HeaderError(f"gives {shown} the shape {printable(shape)}, which is none")
    if not _are_counts(offsets, 2**63 - 1) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise HeaderError(f"gives {shown} the byte range {printable(offsets)}, which is none")
    entry = Entry(dtype, tuple(shape), *offsets)
    if entry.end - entry.begin != _num_bytes(entry):
        raise HeaderError(
            f"gives {shown}, {dtype} of shape {list(shape)}, {entry.end - entry.begin} bytes "
            f"in place of {_num_bytes(entry)}"
        )
    return entry


def _check_name(name: str, what: str) -> None:
    if not name or len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
        raise HeaderError(
            f"has a {what} that is empty or longer than {LONGEST_NAME} bytes: {printable(name)}"
        )
    if not name.isprintable() or "/" in name or "\\" in name:
        raise HeaderError(f"has a {what} with slashes or invisible characters: {printable(name)}")


def _are_counts(value: object, largest: int) -> bool:
    return isinstance(value, list) and all(type(one) is int and 0 <= one <= largest for one in value)


def _num_bytes(entry: Entry) -> int:
    product = ITEM_BYTES[entry.dtype]
    for dimension in entry.shape:
        product *= dimension
    return product


def _check_cover(entries: dict[str, Entry], start: int, data_bytes: int) -> None:
    """The ranges, in the order of their places, must join without gap and end where the file ends."""
    reached, before = 0, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != reached:
            kind = "overlaps" if entry.begin < reached else "leaves a hole after"
            raise HeaderError(f"places {printable(name)} so that it {kind} {printable(before)}")
        reached, before = entry.end, name
    if reached > data_bytes:
        raise HeaderError(f"is cut off at {start + data_bytes} of {start + reached} bytes")
    if reached < data_bytes:
        raise HeaderError(f"goes on for {data_bytes - reached} bytes after its last tensor")
