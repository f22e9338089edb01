"""A checkpoint as one safetensors file in the original layout, Stability's or ComfyUI's.

Such a file holds the MMDiT, mostly the VAE, sometimes the text encoders, and never a config or a tokenizer.
The transformer's numbers follow from its shapes. What else is lacking comes from a folder in diffusers'
layout, the *components*: the one that is named, else the folder that the file lies in, else the variant's
own under SD35_HOME. They are looked for on this machine only; nothing is ever fetched from here. Text
encoders may also be files of their own, as ComfyUI's users have them; those count before all else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sd35.checkpoints.encoder_files import EncoderFile, find_encoders
from sd35.checkpoints.folder import CheckpointFolder, open_folder
from sd35.checkpoints.keys import PREFIXES
from sd35.checkpoints.original_parts import parts_held, read_part
from sd35.checkpoints.relayout import infer_transformer_config
from sd35.checkpoints.source import TensorSource
from sd35.checkpoints.store import home, locate
from sd35.errors import CheckpointError, MissingError
from sd35.variants import Variant, variant_of

_WHAT_FOLLOWS_FROM_TEXT = ("joint_attention_dim", "pooled_projection_dim")


@dataclass(frozen=True)
class SingleFile:
    """An opened file: `held` are its parts, each with the beginning of its names; the rest is elsewhere.

    `encoders` are text encoders in files of their own; they count before the same in the file.
    """

    path: Path
    held: Mapping[str, str]
    components: CheckpointFolder
    encoders: Mapping[str, EncoderFile] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[str, ...]:
        """Every part of the pipeline, wherever it lies."""
        return self.components.parts

    def config(self, part: str) -> dict[str, Any]:
        """The part's configuration; the transformer's follows from its shapes, but for its native size."""
        theirs = self.components.config(part)
        if part != "transformer":
            return theirs
        with self.tensors(part) as source:
            return {"sample_size": theirs.get("sample_size", 128), **infer_transformer_config(source.tensors)}

    def tensors(self, part: str) -> TensorSource:
        """The part's tensors under diffusers' names, from the file if they are in it."""
        if part in self.encoders:
            return read_part(self.encoders[part].path, part, self.encoders[part].prefix)
        if part in self.held:
            return read_part(self.path, part, self.held[part])
        return self.components.tensors(part)

    def files(self, part: str) -> list[Path]:
        """The part's weight files."""
        if part in self.encoders:
            return [self.encoders[part].path]
        return [self.path] if part in self.held else self.components.files(part)

    def folder(self, part: str) -> Path:
        """Where the part's own files lie: its config and its tokenizer."""
        return self.components.folder(part)


def open_single_file(
    path: Path, components: Path | None = None, encoder_files: Sequence[Path] = ()
) -> SingleFile:
    """Open a single file with its components; MissingError says which of them are not on this machine."""
    held = parts_held(path)
    with read_part(path, "transformer", held["transformer"]) as source:
        config = infer_transformer_config(source.tensors)
    place = components or _find_components(path, held, _variant(config))
    folder = open_folder(place, without_weights=PREFIXES)
    encoders = find_encoders(encoder_files, folder.parts, folder.config)
    for part in folder.parts:
        if part not in held and part not in encoders:
            _check_weights(folder, part)
    _check_same_family(path, held, config, folder)
    return SingleFile(path, held, folder, encoders)


def _check_weights(folder: CheckpointFolder, part: str) -> None:
    try:
        folder.files(part)
    except CheckpointError as error:
        if not part.startswith("text_encoder"):
            raise
        raise CheckpointError(f"{error} Or name the encoder's own file with --text-encoders.") from error


def _variant(config: dict[str, Any]) -> Variant | None:
    return variant_of(config["num_layers"], tuple(config["dual_attention_layers"]))


def _find_components(path: Path, held: Mapping[str, str], variant: Variant | None) -> Path:
    if (path.parent / "model_index.json").is_file():
        return path.parent
    try:
        if variant is not None:
            return locate(variant.name)
    except MissingError:
        pass
    own = home() / "checkpoints" / (variant.name if variant else "NAME")
    lacking = [part for part in PREFIXES if part not in held]
    raise MissingError(
        f"{path.name} holds {' and '.join(held)}, and a picture needs {', '.join([*lacking, ''])}"
        "configs and tokenizers too: name a folder in diffusers' layout that has them with --components, or "
        f"put one at {own}; nothing is fetched on its own."
    )


def _check_same_family(
    path: Path, held: Mapping[str, str], config: dict[str, Any], folder: CheckpointFolder
) -> None:
    """The components must be those of this transformer, and have a place for all that the file holds."""
    for part in held:
        if part not in folder.parts:
            raise MissingError(
                f"{path} holds {part}, and {folder.path} has no config and tokenizer for it: name components "
                "that have them."
            )
    theirs = folder.config("transformer")
    for key in _WHAT_FOLLOWS_FROM_TEXT:
        if theirs.get(key) != config[key]:
            raise CheckpointError(
                f"{folder.path} belongs to another model than {path}: its {key} is {theirs.get(key)}, and "
                f"the file's is {config[key]}; name other components."
            )
