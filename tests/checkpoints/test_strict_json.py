"""JSON comes in one way, and strictly."""

from pathlib import Path

import pytest

from sd35.checkpoints.strict_json import is_deeper, parse_json, parse_object, read_json
from sd35.errors import CheckpointError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"a": 1, "a": 1}', "the key a is there twice"),
        (b'{"x": [{"a": 1, "\\u0061": 2}]}', "the key a is there twice"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": -Infinity}', "no JSON number"),
        (b'{"a": 1e999}', "beyond all numbers"),
        (b'{"a": ' + b"1" * 41 + b"}", "41 digits"),
        (b'{"a": "\xff"}', "utf-8"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        (b'{"a":' * 33 + b"1" + b"}" * 33, "too deep"),
        (b"[" * 1_000_000, "too deep"),
        (b"[1]", "no JSON object"),
        (b"null", "no JSON object"),
        (b"", "Expecting value"),
    ],
)
def test_what_is_refused(text: bytes, words: str) -> None:
    """Duplicates, numbers that are none, other encodings, depth, and anything but an object."""
    with pytest.raises(ValueError, match=words):
        parse_object(text)


def test_duplicates_are_printed_plainly() -> None:
    """A key with a control character is escaped in the message."""
    with pytest.raises(ValueError, match=r"\\x1b") as caught:
        parse_json('{"\\u001b": 1, "\\u001b": 1}')
    assert str(caught.value).isprintable()


def test_large_files_are_not_parsed(tmp_path: Path) -> None:
    """B21: beyond the cap nothing is read, and the file is named."""
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": "' + b"x" * 1000 + b'"}')
    assert read_json(path) == {"a": "x" * 1000}
    with pytest.raises(
        CheckpointError, match=r"config\.json is not readable JSON \(it is larger than 100 bytes"
    ):
        read_json(path, largest=100)


def test_a_page_in_place_of_a_config_is_named(tmp_path: Path) -> None:
    """What a server sent instead is said, with the remedy."""
    path = tmp_path / "config.json"
    path.write_bytes(b"<!doctype html><title>Gated</title>")
    with pytest.raises(CheckpointError, match=r"is an HTML page \(Gated\)"):
        read_json(path)


def test_depth_is_counted_in_levels() -> None:
    """A flat object is one level."""
    assert not is_deeper({"a": 1}, 1)
    assert is_deeper({"a": [1]}, 1)
    assert not is_deeper({"a": [1]}, 2)
