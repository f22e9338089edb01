"""Tokenizers: do their files belong to the encoder that reads their ids?

CLIP's tokenizer has an id for each row of the encoder's embedding table (49,408); T5's has 32,100 for a
table of 32,128 rows. An id beyond the table is an error in the middle of a request, and a wrong padding
token (CLIP-L pads with <|endoftext|>, CLIP-G with "!") is a wrong picture, without any error.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sd35.checkpoints.files import open_regular
from sd35.checkpoints.findings import Finding, finding_of, printable
from sd35.checkpoints.gates import check_no_code
from sd35.checkpoints.layout import T5_XXL, ClipSize, T5Size
from sd35.checkpoints.sizes import Size
from sd35.checkpoints.strict_json import read_json
from sd35.errors import CheckpointError

_LARGEST = 32 << 20  # bytes of a tokenizer.json; T5's has 2.4 MB
_ORIGINAL = "get this folder from the original checkpoint"
_PADDING = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}
_LEAST_T5_IDS = 32_000  # of the real one: its pieces without the extra ids


def audit_tokenizer(root: Path, part: str, encoder: Size | None) -> Iterator[Finding]:
    """What is wrong with a tokenizer's folder; `encoder` is the size of the text encoder that it feeds."""
    folder = root / part
    contents: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            contents[path.name] = read_json(path, _LARGEST)
            check_no_code(path, contents[path.name])
        except CheckpointError as error:
            yield finding_of(error, f"{part}/{path.name}", root)
    if not _has_vocabulary(folder):
        yield Finding(
            part, "has no vocabulary (tokenizer.json, vocab.json with merges.txt, or spiece.model)", _ORIGINAL
        )
    ids = _count_ids(contents)
    if ids is not None and encoder is not None and not _fits(ids, encoder):
        reason = f"has {ids} ids, and its text encoder has {_rows(encoder)}"
        yield Finding(part, reason, "get both from one checkpoint")
    padding = _padding(contents)
    if part in _PADDING and padding not in (None, _PADDING[part]):
        reason = f"pads with {printable(repr(padding))}, and SD3.5 pads with {_PADDING[part]!r} there"
        yield Finding(f"{part}/tokenizer_config.json", reason, _ORIGINAL)
    yield from _audit_pieces(folder, part)


def _has_vocabulary(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return "tokenizer.json" in names or {"vocab.json", "merges.txt"} <= names or "spiece.model" in names


def _count_ids(contents: dict[str, dict[str, Any]]) -> int | None:
    """One more than the largest id; None where only a SentencePiece file knows."""
    whole = contents.get("tokenizer.json", {})
    model = whole.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else contents.get("vocab.json")
    added = whole.get("added_tokens")
    ids = (
        [one["id"] for one in added if isinstance(one, dict) and "id" in one]
        if isinstance(added, list)
        else []
    )
    if isinstance(vocabulary, dict):
        ids += vocabulary.values()
    elif isinstance(vocabulary, list):
        ids.append(len(vocabulary) - 1)
    numbers = [number for number in ids if type(number) is int]
    return max(numbers) + 1 if numbers else None


def _fits(ids: int, encoder: Size) -> bool:
    rows = _rows(encoder)
    if isinstance(encoder, T5Size):
        least = _LEAST_T5_IDS if rows == T5_XXL.vocabulary else 1
        return least <= ids <= rows
    return ids == rows


def _rows(encoder: Size) -> int:
    assert isinstance(encoder, ClipSize | T5Size)
    return encoder.vocabulary


def _padding(contents: dict[str, dict[str, Any]]) -> str | None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = contents.get(name, {}).get("pad_token")
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            return text
    return None


def _audit_pieces(folder: Path, part: str) -> Iterator[Finding]:
    """A SentencePiece file is a protocol buffer whose first field is a piece."""
    path = folder / "spiece.model"
    if path.is_file():
        with open_regular(path) as file:
            if file.read(1) != b"\x0a":
                yield Finding(f"{part}/spiece.model", "is no SentencePiece model", _ORIGINAL)
