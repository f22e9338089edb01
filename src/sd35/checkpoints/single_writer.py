"""Write a single file in the original layout, with FP8 as ComfyUI or diffusers' BFL loader spell it.

What each reader insists on, and what the writer therefore does:

- ComfyUI has one scale a tensor, float32, and only on layers that are FP8 (a scale beside a 16-bit layer
  makes it cast that layer). The hints go into the header and into `comfy_quant` tensors: some readers know
  one, some the other.
- The legacy marker has the dtype of the weights; it is one switch for the whole part: two elements mean
  that products are taken in 16 bit.
- A scale a row has no ComfyUI format: with square weights it would be applied along the wrong side, without
  a word. The header entry `float8_e4m3fn_rowwise` makes ComfyUI refuse such a file; the others ignore it.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from sd35.checkpoints.fp8_files import HINT, MARKER
from sd35.checkpoints.keys import PREFIXES
from sd35.checkpoints.lazy import Tensors, given, reshaped
from sd35.checkpoints.original_parts import PROJECTION_KEY
from sd35.checkpoints.relayout import Layout
from sd35.checkpoints.schemes import METADATA_KEY, entry_of
from sd35.checkpoints.writer import write_safetensors
from sd35.fp8 import TORCH_DTYPES, Scheme

Spelling = Literal["comfy", "comfy-legacy", "rowwise", "16bit-file"]
Hints = dict[str, Any]


def write_single_file(path: Path, parts: Mapping[str, Layout], spelling: Spelling) -> None:
    """Write these parts, given in the original's names (`to_original`), into one file."""
    tensors: Tensors = {}
    hints: Hints = {}
    for part, layout in parts.items():
        spelled, layer_hints = _SPELLINGS[spelling](layout)
        tensors.update({PREFIXES[part] + name: lazy for name, lazy in sorted(spelled.items())})
        hints.update({PREFIXES[part] + layer: hint for layer, hint in layer_hints.items()})
    metadata = {"format": "pt"}
    if hints:
        metadata[METADATA_KEY] = json.dumps({"format_version": "1.0", "layers": hints}, separators=(",", ":"))
    if "text_encoder" in parts:
        metadata[PROJECTION_KEY] = "as in the file"
    write_safetensors(path, tensors, metadata)


def _comfy(layout: Layout) -> tuple[Tensors, Hints]:
    tensors, hints = dict(layout.tensors), {}
    for layer, scheme in sorted(layout.schemes.items()):
        hint: Hints = {"format": f"float8_{scheme.dtype}"}
        if scheme.activation == "none":
            hint["full_precision_matrix_mult"] = True
        hints[layer] = hint
        tensors[f"{layer}.{HINT}"] = given(torch.tensor(list(json.dumps(hint).encode()), dtype=torch.uint8))
    tensors.update({f"{layer}.input_scale": lazy for layer, lazy in layout.input_scales.items()})
    return tensors, hints


def _legacy(layout: Layout) -> tuple[Tensors, Hints]:
    tensors = dict(layout.tensors)
    for layer in layout.schemes:
        tensors[f"{layer}.scale_weight"] = tensors.pop(f"{layer}.weight_scale")
    tensors.update({f"{layer}.scale_input": lazy for layer, lazy in layout.input_scales.items()})
    if layout.schemes:
        tensors[MARKER] = given(_marker(layout.schemes))
    return tensors, {}


def _marker(schemes: Mapping[str, Scheme]) -> torch.Tensor:
    """One layer that asks for 16-bit products asks for all: precision is what a switch may not take."""
    (dtype,) = {TORCH_DTYPES[scheme.dtype] for scheme in schemes.values()}
    in_16_bit = any(scheme.activation == "none" for scheme in schemes.values())
    return torch.zeros(2 if in_16_bit else 0).to(dtype)


def _rowwise(layout: Layout) -> tuple[Tensors, Hints]:
    tensors = dict(layout.tensors)
    for layer in layout.schemes:
        name = f"{layer}.weight_scale"
        tensors[name] = reshaped(tensors[name], tensors[name].shape[:1])
    return tensors, {layer: entry_of(scheme) for layer, scheme in sorted(layout.schemes.items())}


def _plain(layout: Layout) -> tuple[Tensors, Hints]:
    assert not layout.schemes, "a 16-bit file has no FP8 layers"
    return layout.tensors, {}


_SPELLINGS: dict[Spelling, Callable[[Layout], tuple[Tensors, Hints]]] = {
    "comfy": _comfy,
    "comfy-legacy": _legacy,
    "rowwise": _rowwise,
    "16bit-file": _plain,
}
