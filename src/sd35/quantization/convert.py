"""16-bit checkpoint in, FP8 folder out, one tensor in memory at a time.

The new folder is complete in itself: FP8 weights where the recipe wants them, everything else copied, and
`sd35.json` with the recipe, the source's hashes and the tool's version. It is built beside its place and
moved there when it is whole, so an interruption leaves nothing behind that looks like a checkpoint, and
`resume` goes on from what it left. No clock and no random number takes part: equal input gives equal bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sd35 import __version__
from sd35.checkpoints.formats import Checkpoint, open_checkpoint
from sd35.checkpoints.lazy import given
from sd35.checkpoints.placing import Job, fresh_folder
from sd35.checkpoints.relayout import Layout
from sd35.checkpoints.source import TensorSource
from sd35.checkpoints.store import locate, stamp
from sd35.errors import CheckpointError, RequestError
from sd35.fp8 import Scheme, scale_from_amax
from sd35.quantization.folders import may_link, room_needed, write_folder
from sd35.quantization.lazily import quantized
from sd35.quantization.recipe import Recipe


@dataclass(frozen=True)
class QuantizationReport:
    """Where the new folder is, its layers in FP8, and its weight files' bytes beside the source's."""

    path: Path
    layers: int
    bytes_before: int
    bytes_after: int


def quantize(
    source: str | Path,
    destination: str | Path,
    recipe: Recipe | None = None,
    components: Path | None = None,
    amax: Mapping[str, float] | None = None,
    *,
    resume: bool = False,
    encoder_files: Sequence[Path] = (),
    link_below: Path | None = None,
) -> QuantizationReport:
    """Write the FP8 folder `destination` from the 16-bit checkpoint `source` (a path, or `demo`).

    A recipe with static activations needs `amax`, which `calibrate` finds. `resume` goes on from what an
    interrupted run of the same source and recipe left; the result is the same to the byte. Weights that
    stay 16-bit are copied, and hard-linked if they lie below `link_below`. CheckpointError if the source is
    incomplete or FP8 already, OutputError if the destination exists or can't be written.
    """
    path, recipe = locate(source), recipe or Recipe()
    checkpoint = open_checkpoint(path, components, encoder_files)
    beside = [*([components] if components else []), *encoder_files]
    facts = job_facts("quantize", path, beside, recipe=recipe.as_dict(), amax=dict(amax or {}))
    rewrite = partial(_quantized_by, recipe, amax or {})
    room = room_needed(checkpoint, _linked(checkpoint, recipe, link_below))
    with fresh_folder(Path(destination), room, Job(facts, resume)) as place:
        layers = write_folder(checkpoint, place, rewrite, recipe.as_dict(), link_below)
    return QuantizationReport(
        Path(destination), layers, room_needed(checkpoint), weight_bytes(Path(destination))
    )


def _linked(checkpoint: Checkpoint, recipe: Recipe, link_below: Path | None) -> list[str]:
    """The parts that will take no room."""
    unchanged = [part for part in checkpoint.parts if recipe.leaves(part)]
    return [part for part in unchanged if all(may_link(path, link_below) for path in checkpoint.files(part))]


def job_facts(task: str, source: Path, beside: Sequence[Path], **choices: Any) -> dict[str, Any]:
    """All that an output depends on; sources by path, size and time of change, as hashing takes minutes."""
    return {
        "tool": f"sd35-fp8 {__version__}",
        "task": task,
        "source": stamp(source),
        "beside": [stamp(place) for place in beside],
        **choices,
    }


def weight_bytes(path: Path) -> int:
    """Bytes of the weight files of a folder, or of the file."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*.safetensors")))


def _quantized_by(
    recipe: Recipe, amax: Mapping[str, float], part: str, source: TensorSource
) -> Layout | None:
    if source.schemes:
        raise CheckpointError(
            f"{source.paths[0]} is FP8 already: quantizing twice would lose precision for nothing, so start "
            "from the 16-bit checkpoint."
        )
    schemes = recipe.plan(part, {name: spec.shape for name, spec in source.specs.items()})
    return quantize_layers(source, schemes, amax) if schemes else None


def quantize_layers(source: TensorSource, schemes: dict[str, Scheme], amax: Mapping[str, float]) -> Layout:
    """A 16-bit part with these layers in FP8; those with static activations get their scale from `amax`."""
    layout = Layout(dict(source.tensors), schemes)
    for layer, scheme in schemes.items():
        name = f"{layer}.weight"
        layout.tensors[name], layout.tensors[f"{name}_scale"] = quantized(name, layout.tensors[name], scheme)
        if scheme.activation == "static":
            layout.input_scales[layer] = given(_input_scale(layer, amax))
    return layout


def _input_scale(layer: str, amax: Mapping[str, float]) -> Tensor:
    if layer not in amax:
        raise RequestError(
            f"{layer} is to have a static activation scale and no calibration has seen it: pass what "
            "`calibrate` finds, or leave activations dynamic."
        )
    return scale_from_amax(torch.tensor(amax[layer]), torch.float8_e4m3fn)
