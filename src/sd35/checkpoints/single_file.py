"""A checkpoint as one safetensors file in the original layout, Stability's or ComfyUI's.

Such a file holds the MMDiT, mostly the VAE, sometimes the text encoders, and never a config or a tokenizer.
The transformer's numbers follow from its shapes. What else is lacking comes from a folder in diffusers'
layout, the *components*: the one that is named, else the folder that the file lies in, else the variant's
own under SD35_HOME. They are looked for on this machine only; nothing is ever fetched from here.

One trap lies in CLIP-L: no reader of this layout uses its `text_projection`, so the pooled text is taken
as it is, whatever the file holds. Files that sd35 writes from a folder with a real projection say so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sd35.checkpoints.folder import CheckpointFolder, open_folder
from sd35.checkpoints.fp8_files import read_fp8
from sd35.checkpoints.keys import PREFIXES
from sd35.checkpoints.lazy import Tensors, given
from sd35.checkpoints.reader import TensorReader
from sd35.checkpoints.relayout import Layout, infer_transformer_config, prefix_of, to_diffusers
from sd35.checkpoints.source import TensorSource
from sd35.checkpoints.store import home, locate
from sd35.errors import CheckpointError, MissingError
from sd35.variants import Variant, variant_of

PROJECTION_KEY = "sd35_text_projection"  # in the header: CLIP-L's projection is meant
_PROJECTION = "text_projection.weight"
_WHAT_FOLLOWS_FROM_TEXT = ("joint_attention_dim", "pooled_projection_dim")
# What other programs save beside the weights, and nobody reads.
_IGNORED = tuple(f"text_encoders.{encoder}.logit_scale" for encoder in ("clip_l", "clip_g", "t5xxl"))


@dataclass(frozen=True)
class SingleFile:
    """An opened file: `held` are its parts, each with the beginning of its names; the rest is elsewhere."""

    path: Path
    held: Mapping[str, str]
    components: CheckpointFolder

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
        if part not in self.held:
            return self.components.tensors(part)
        return read_part(self.path, part, self.held[part])

    def files(self, part: str) -> list[Path]:
        """The part's weight files."""
        return [self.path] if part in self.held else self.components.files(part)

    def folder(self, part: str) -> Path:
        """Where the part's own files lie: its config and its tokenizer."""
        return self.components.folder(part)


def open_single_file(path: Path, components: Path | None = None) -> SingleFile:
    """Open a single file with its components; MissingError says which of them are not on this machine."""
    held = parts_held(path)
    with read_part(path, "transformer", held["transformer"]) as source:
        config = infer_transformer_config(source.tensors)
    place = components or _find_components(path, held, _variant(config))
    folder = open_folder(place, without_weights=held)
    _check_same_family(path, held, config, folder)
    return SingleFile(path, held, folder)


def parts_held(path: Path) -> dict[str, str]:
    """The parts in a file, and what their names begin with; CheckpointError where it is no SD3.5 file."""
    with TensorReader([path]) as reader:
        prefixes = {part: prefix_of(part, reader.specs) for part in PREFIXES}
        held = {part: prefix for part, prefix in prefixes.items() if prefix is not None}
        if "transformer" not in held:
            raise CheckpointError(
                f"{path} holds no SD3.5 transformer in the original layout (no model.diffusion_model.*): "
                "give a single file of Stability's or ComfyUI's, or the whole folder in diffusers' layout."
            )
        known = (*held.values(), *_IGNORED)
        strangers = sorted(name for name in reader if not name.startswith(known))
    if strangers:
        raise CheckpointError(
            f"{path} holds {len(strangers)} tensors of no part of SD3.5, {strangers[0]} for one: it is a "
            "checkpoint of something else, or damaged."
        )
    return held


def read_part(path: Path, part: str, prefix: str) -> TensorSource:
    """One part of a single file as a source that owns the open file."""
    reader = TensorReader([path])
    try:
        fp8 = read_fp8(reader, prefix)
        layout = to_diffusers(part, Layout(fp8.tensors, fp8.schemes, fp8.input_scales))
        if part == "text_encoder" and PROJECTION_KEY not in reader.metadata:
            _take_pooled_text_as_it_is(layout.tensors)
    except BaseException:
        reader.close()
        raise
    return TensorSource(reader, layout.tensors, layout.schemes, layout.input_scales, fp8.format)


def _take_pooled_text_as_it_is(tensors: Tensors) -> None:
    norm = tensors.get("text_model.final_layer_norm.weight")
    if norm is not None:
        tensors[_PROJECTION] = given(torch.eye(norm.shape[0], dtype=norm.dtype))


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
