"""Text encoders in files of their own, as ComfyUI keeps them beside a transformer: which one is which?

    clip_l, clip_g      text_model.*                16-bit; CLIP-L's mostly without its projection
    t5xxl               encoder.block.*, shared     16-bit, plain FP8, scaled FP8

Names of files say nothing. A file is CLIP or T5 by its tensors' names, and CLIP-L or CLIP-G by its shapes,
which have to be those that the components' configs give: an encoder of another model fits neither.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sd35.checkpoints.findings import some_of
from sd35.checkpoints.layout import CLIP_G
from sd35.checkpoints.original_parts import parts_in, read_part
from sd35.checkpoints.reader import TensorReader, TensorSpec
from sd35.checkpoints.relayout import NOT_WEIGHTS
from sd35.checkpoints.sizes import Size, config_size, inferred_size
from sd35.checkpoints.torchao_files import is_torchao
from sd35.errors import CheckpointError, MissingError

_CLIPS = ("text_encoder", "text_encoder_2")
_T5 = "text_encoder_3"
_PROJECTION = "text_projection.weight"
_BARE_CLIP, _BARE_T5 = "text_model.", ("encoder.block.", "shared.")


@dataclass(frozen=True)
class EncoderFile:
    """A text encoder's file, and what its names begin with there."""

    path: Path
    prefix: str


def find_encoders(
    files: Sequence[Path], parts: Sequence[str], config: Callable[[str], Mapping[str, Any]]
) -> dict[str, EncoderFile]:
    """The encoder in each file, among `parts`, whose configs `config` gives.

    MissingError for a file that is not there, CheckpointError for one that holds no encoder of this
    checkpoint and for two that hold the same.
    """
    sizes = {part: config_size(part, config(part)) for part in (*_CLIPS, _T5) if part in parts}
    found: dict[str, EncoderFile] = {}
    for file in files:
        for part, prefix in _encoders_in(file, sizes):
            if part in found:
                raise CheckpointError(f"{found[part].path} and {file} are both the {part}: name one of them.")
            found[part] = EncoderFile(file, prefix)
    return found


def as_in_the_table(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """A lone encoder's tensors as `layout.py` lists them: extras left out, CLIP-L's absent projection added.

    Nobody reads CLIP-L's; CLIP-G's is used, so that its absence stays visible. Others pass.
    """
    listed = {name: spec for name, spec in specs.items() if not NOT_WEIGHTS.match(name)}
    norm = specs.get("text_model.final_layer_norm.weight")
    if norm is not None and norm.shape != (CLIP_G.channels,):
        listed.setdefault(_PROJECTION, TensorSpec(norm.dtype, torch.Size((*norm.shape, *norm.shape))))
    return listed


def check_scales(reader: TensorReader) -> None:
    """CheckpointError if a lone encoder in a single file's spelling has an FP8 weight without its scale."""
    part = next(iter(_kinds(reader)), None)
    if part is not None and not is_torchao(reader.metadata):
        read_part(reader.paths[0], part, "").close()


def _encoders_in(path: Path, sizes: Mapping[str, Size]) -> Iterator[tuple[str, str]]:
    if path.is_dir():
        there = some_of(sorted(one.name for one in path.glob("*.safetensors")), most=8) or "none"
        raise MissingError(f"{path} is a folder: name the text encoders' own files in it, which has {there}.")
    if not path.is_file():
        raise MissingError(f"There is no file {path}: give the .safetensors file of a text encoder.")
    held = parts_in(path)
    if held and not held.keys() <= sizes.keys():
        others = ", ".join(sorted(held.keys() - sizes.keys()))
        raise CheckpointError(f"{path} holds {others}: give files of text encoders that the components have.")
    with TensorReader([path]) as reader:
        kinds = () if held else _kinds(reader)
    bare = [part for part in kinds if _size(path, part) == sizes.get(part)]
    if len(held) + len(bare) == 0 or len(bare) > 1:
        what = "of which its shapes fit two" if bare else "that this checkpoint has"
        expected = "; ".join(f"{part}: {size}" for part, size in sizes.items())
        raise CheckpointError(
            f"{path} holds no text encoder {what} ({expected}): give clip_l, clip_g or t5xxl of SD3.5 as "
            "safetensors."
        )
    yield from held.items()
    yield from ((part, "") for part in bare)


def _kinds(reader: TensorReader) -> tuple[str, ...]:
    """The encoders that a file with bare names may be."""
    if any(name.startswith(_BARE_CLIP) for name in reader):
        return _CLIPS
    return (_T5,) if any(name.startswith(_BARE_T5) for name in reader) else ()


def _size(path: Path, part: str) -> Size | None:
    return inferred_size(_specs(path, part))


def _specs(path: Path, part: str) -> dict[str, TensorSpec]:
    with read_part(path, part, "") as source:
        return {name: spec for name, spec in source.specs.items() if not name.endswith("_scale")}
