"""The one way in which JSON comes in: what two parsers could read differently is refused.

A duplicate key means one value to us and another to the next tool, NaN is no JSON at all, and a number of
a million digits or an array nested a million deep is an attack on whoever reads it. Sizes are bounded before
a byte is parsed. Every JSON file of a checkpoint (configs, indexes, manifests, safetensors headers and what
they carry) is parsed here.
"""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from sd35.checkpoints.files import open_regular
from sd35.checkpoints.findings import bad_file, printable
from sd35.checkpoints.sniff import sniff_bytes

LARGEST_FILE = 8 << 20
DEEPEST = 32
_LONGEST_NUMBER = 40  # digits; transformers writes 10^30 for "no limit"


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON text; ValueError that says why where it is not strict JSON in UTF-8."""
    text = data.decode("utf-8") if isinstance(data, bytes) else data
    try:
        value = json.loads(
            text,
            object_pairs_hook=_without_duplicates,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_short,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    return value


def read_json(path: Path, largest: int = LARGEST_FILE) -> dict[str, Any]:
    """A JSON object from a file; CheckpointError with the reason where there is none."""
    try:
        with open_regular(path) as file:
            data = file.read(largest + 1)
    except FileNotFoundError as error:
        raise bad_file(path, "is missing, so this is no complete SD3.5 folder") from error
    try:
        return parse_object(data, largest)
    except ValueError as error:
        sniffed = sniff_bytes(data, path)
        if sniffed is not None:
            raise bad_file(path, sniffed.words, sniffed.remedy) from error
        raise bad_file(path, f"is not readable JSON ({error})") from error


def parse_object(data: bytes, largest: int = LARGEST_FILE) -> dict[str, Any]:
    """A JSON object within bounds of size and depth; ValueError that says why where it is none."""
    if len(data) > largest:
        raise ValueError(f"it is larger than {largest} bytes")
    content = parse_json(data)
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    if is_deeper(content, DEEPEST):
        raise ValueError("it is nested too deep")
    return content


def is_deeper(value: object, deepest: int) -> bool:
    """Whether lists and objects are nested more than `deepest` levels."""
    level = [value]
    for _ in range(deepest + 1):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: object) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {printable(twice)} is there twice")
    return content


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{printable(text)} is beyond all numbers")
    return value


def _short(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"it has a number of {len(text)} digits")
    return int(text)
