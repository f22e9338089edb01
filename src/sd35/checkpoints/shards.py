"""Shards: one component in several files, and the index that says which tensor lies in which.

    model.safetensors.index.json    {"metadata": {"total_size": bytes}, "weight_map": {tensor: shard}}

The index is a promise about files that we open next, so it is held to it: shards lie beside it and nowhere
else, each tensor is in the shard that is named and in no other, and the sizes add up. transformers and
accelerate join these names to the folder unchecked (huggingface/transformers#47176).
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd35.checkpoints.files import refuse_outside, refuse_special
from sd35.checkpoints.findings import bad_file, printable, some_of
from sd35.checkpoints.header import LONGEST_NAME, MOST_TENSORS, Header, read_header
from sd35.checkpoints.strict_json import read_json

MOST_SHARDS = 100


@dataclass(frozen=True)
class Index:
    """Which shard holds each tensor, and the bytes of all tensors together, where the index says so."""

    weight_map: dict[str, str]
    total_size: int | None

    @property
    def shards(self) -> list[str]:
        """The shards' names, sorted."""
        return sorted(set(self.weight_map.values()))


class BrokenIndexError(ValueError):
    """The index breaks a rule; the message is the predicate of a sentence about the file."""


def shard_files(index: Path) -> list[Path]:
    """The shards of an index, each of them there and holding what the index says; else CheckpointError."""
    try:
        promised = parse_index(read_json(index))
        shards = [index.parent / name for name in promised.shards]
        for shard in shards:
            _check_place(index, shard)
        _check_promise(promised, {shard.name: read_header(shard) for shard in shards})
    except BrokenIndexError as error:
        raise bad_file(index, str(error)) from error
    return shards


def parse_index(content: dict[str, Any]) -> Index:
    """The index that a JSON object is; ValueError with the rule that it breaks."""
    unknown = sorted(content.keys() - {"metadata", "weight_map"})
    if unknown:
        raise BrokenIndexError(f"has the unknown keys {some_of(unknown)}")
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not 0 < len(weight_map) <= MOST_TENSORS:
        raise BrokenIndexError(f"has no weight_map of 1 to {MOST_TENSORS} tensors")
    for name, shard in weight_map.items():
        if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            raise BrokenIndexError(f"names the tensor {printable(name)}, which no checkpoint holds")
        _check_shard_name(shard)
    index = Index(weight_map, _total_size(content.get("metadata", {})))
    if len(index.shards) > MOST_SHARDS:
        raise BrokenIndexError(
            f"names {len(index.shards)} shards, and {MOST_SHARDS} are the most that we read"
        )
    return index


def _check_shard_name(shard: object) -> None:
    is_plain = (
        isinstance(shard, str)
        and shard.isprintable()
        and shard.isascii()
        and len(shard) <= 255
        and not set(shard) & set("/\\:")
        and not shard.startswith(".")
        and shard.endswith(".safetensors")
    )
    if not is_plain:
        raise BrokenIndexError(f"names the shard {printable(shard)}, which is no safetensors file beside it")


def _total_size(metadata: object) -> int | None:
    if not isinstance(metadata, dict):
        raise BrokenIndexError("has metadata that is no JSON object")
    total = metadata.get("total_size")
    if isinstance(total, float) and total.is_integer():
        total = int(total)
    if total is not None and (type(total) is not int or total < 0):
        raise BrokenIndexError(f"gives the total size {printable(total)}, which is none")
    return total


def _check_place(index: Path, shard: Path) -> None:
    try:
        refuse_special(shard)
        refuse_outside(shard, index.parent)
    except FileNotFoundError as error:
        raise bad_file(index, f"names the shard {printable(shard.name)}, which is not there") from error


def _check_promise(index: Index, headers: dict[str, Header]) -> None:
    held = [(name, shard) for shard, header in headers.items() for name in header.entries]
    twice = sorted(name for name, times in Counter(name for name, _ in held).items() if times > 1)
    if twice:
        raise BrokenIndexError(f"leads to shards of which two hold {some_of(twice)}")
    wrong = sorted(name for name, _ in set(held) ^ set(index.weight_map.items()))
    if wrong:
        raise BrokenIndexError(
            f"and its shards disagree on where these are: {some_of(list(dict.fromkeys(wrong)))}"
        )
    total = sum(entry.end - entry.begin for header in headers.values() for entry in header.entries.values())
    if index.total_size not in (None, total):
        raise BrokenIndexError(f"promises {index.total_size} bytes of tensors, and its shards hold {total}")
