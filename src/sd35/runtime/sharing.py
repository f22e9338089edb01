"""Parts that several loaded models have in common, such as text encoders of variants of one family.

Two parts are the same when their files are, by SHA-256, and they lie and compute the same way. Then they are
one module with two owners, and it is gone with its last owner. What the encoders made of a prompt serves both
owners as well. Parts that travel (`moving.py`) are nobody else's: two owners would move them against each
other.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from sd35.checkpoints.formats import Checkpoint
from sd35.checkpoints.manifest import hash_file
from sd35.checkpoints.store import file_identity
from sd35.runtime.embeds import PromptCache
from sd35.runtime.sizes import Sizes

Part = TypeVar("Part")

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", "text_encoder_3": "tokenizer_3"}


@dataclass(frozen=True)
class Needs:
    """What a model takes on the device: bytes by each part's identity, and what drawing one picture adds."""

    parts: dict[str, int]
    activations: int


@dataclass
class SharedParts:
    """The parts that are loaded in one process, for whoever loads another model there."""

    prompts: PromptCache = field(default_factory=PromptCache)
    _held: "WeakValueDictionary[object, object]" = field(default_factory=WeakValueDictionary)

    def one(self, key: object, make: Callable[[], Part]) -> Part:
        """The part that is held under this key, or a new one."""
        held = self._held.get(key)
        if held is None:
            held = make()
            self._held[key] = held
        return held  # type: ignore[return-value]

    def forget(self) -> None:
        """Share none of what is loaded now with anyone who comes later."""
        self._held.clear()


def part_identity(checkpoint: Checkpoint, part: str) -> str:
    """SHA-256 over all that a part is made of: weights, config, and an encoder's tokenizer."""
    hashes = [file_identity(checkpoint.path, path) for path in checkpoint.files(part)]
    for folder in filter(None, (part, TOKENIZERS.get(part))):
        hashes += [hash_file(path).sha256 for path in _small_files(checkpoint.folder(folder))]
    return hashlib.sha256("".join([part, *hashes]).encode()).hexdigest()


def encoders_identity(checkpoint: Checkpoint) -> str:
    """Of all text encoders together: equal ones give equal embeds."""
    parts = [part for part in TOKENIZERS if part in checkpoint.parts]
    return hashlib.sha256("".join(part_identity(checkpoint, part) for part in parts).encode()).hexdigest()


def part_bytes(checkpoint: Checkpoint, sizes: Sizes) -> dict[str, int]:
    """Bytes of the parts once they are loaded, by their identities."""
    clip_l, clip_g = sizes.clips
    sized = {
        "text_encoder": clip_l,
        "text_encoder_2": clip_g,
        "text_encoder_3": sizes.t5_tables + sizes.t5_layers,
        "transformer": sizes.modulations + sizes.blocks + sizes.rest,
        "vae": sizes.vae,
    }
    return {part_identity(checkpoint, part): size for part, size in sized.items() if part in checkpoint.parts}


def _small_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".safetensors")
