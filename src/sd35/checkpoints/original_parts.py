"""The parts of SD3.5 in one file of the original layout: which there are, and each as a source of tensors.

A part is known by what its names begin with. Text encoders may also lie bare in a file of their own, as
ComfyUI keeps them; which one that is, their names and shapes tell (`encoder_files.py`).

One trap lies in CLIP-L: no reader of this layout uses its `text_projection`, so the pooled text is taken
as it is, whatever the file holds. Files that sd35 writes from a folder with a real projection say so.
"""

from pathlib import Path

import torch

from sd35.checkpoints.fp8_files import read_fp8
from sd35.checkpoints.keys import PREFIXES
from sd35.checkpoints.lazy import Tensors, given
from sd35.checkpoints.reader import TensorReader
from sd35.checkpoints.relayout import Layout, prefix_of, to_diffusers
from sd35.checkpoints.source import TensorSource
from sd35.errors import CheckpointError

PROJECTION_KEY = "sd35_text_projection"  # in the header: CLIP-L's projection is meant
_PROJECTION = "text_projection.weight"
# What other programs save beside the weights, and nobody reads.
_IGNORED = tuple(f"text_encoders.{encoder}.logit_scale" for encoder in ("clip_l", "clip_g", "t5xxl"))


def parts_held(path: Path) -> dict[str, str]:
    """The parts in a file, and what their names begin with; CheckpointError where it is no SD3.5 file."""
    held = parts_in(path)
    if "transformer" not in held:
        raise CheckpointError(
            f"{path} holds no SD3.5 transformer in the original layout (no model.diffusion_model.*): "
            "give a single file of Stability's or ComfyUI's, or the whole folder in diffusers' layout."
        )
    return held


def parts_in(path: Path) -> dict[str, str]:
    """The same for a file that may hold any parts, or none; a stranger beside them is CheckpointError."""
    with TensorReader([path]) as reader:
        prefixes = {part: prefix_of(part, reader.specs) for part in PREFIXES}
        held = {part: prefix for part, prefix in prefixes.items() if prefix is not None}
        known = (*held.values(), *_IGNORED)
        strangers = sorted(name for name in reader if not name.startswith(known))
    if held and strangers:
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
