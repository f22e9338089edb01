"""Tokenizers: do their files belong to the encoder that reads their ids?

CLIP's tokenizer has an id for each row of the encoder's embedding table (49,408); T5's has 32,100 for a
table of 32,128 rows. An id beyond the table is an error in the middle of a request, and a wrong padding
token (CLIP-L pads with <|endoftext|>, CLIP-G with "!") is a wrong picture, without any error. So is a special
token under another id: CLIP's text ends where the last row's token stands, and T5's with id 1.
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
# Special tokens and their ids; those of CLIP are the last rows of the table, counted from its end.
_CLIP_SPECIAL = {"<|startoftext|>": -2, "<|endoftext|>": -1}
_SPECIAL = {
    "tokenizer": _CLIP_SPECIAL,
    "tokenizer_2": _CLIP_SPECIAL,
    "tokenizer_3": {"<pad>": 0, "</s>": 1, "<unk>": 2},
}
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
    if encoder is not None:
        yield from _audit_special(contents, part, _rows(encoder))
    yield from _audit_pieces(folder, part)


def _has_vocabulary(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return "tokenizer.json" in names or {"vocab.json", "merges.txt"} <= names or "spiece.model" in names


def _audit_special(contents: dict[str, dict[str, Any]], part: str, rows: int) -> Iterator[Finding]:
    """The ids of special tokens; nothing is known where only a SentencePiece file has them."""
    ids = _ids(contents)
    for token, place in _SPECIAL[part].items() if ids else ():
        wanted = place % rows
        if ids.get(token) != wanted:
            found = f"gives {token} the id {ids[token]}" if token in ids else f"has no {token}"
            reason = f"{found}, and its text encoder knows it as {wanted}"
            yield Finding(part, reason, "get both from one checkpoint")


def _count_ids(contents: dict[str, dict[str, Any]]) -> int | None:
    """One more than the largest id; None where only a SentencePiece file knows."""
    ids = _ids(contents)
    return max(ids.values()) + 1 if ids else None


def _ids(contents: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Every token's id, of whichever file has them; empty where only a SentencePiece file knows."""
    whole = contents.get("tokenizer.json", {})
    model = whole.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else contents.get("vocab.json")
    added = whole.get("added_tokens")
    pairs: list[tuple[object, object]] = []
    if isinstance(vocabulary, dict):
        pairs += vocabulary.items()
    elif isinstance(vocabulary, list):
        pieces = (piece[0] if isinstance(piece, list) and piece else piece for piece in vocabulary)
        pairs += ((piece, i) for i, piece in enumerate(pieces))
    if isinstance(added, list):
        pairs += ((one.get("content"), one.get("id")) for one in added if isinstance(one, dict))
    return {str(token): id_ for token, id_ in pairs if type(id_) is int}


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
