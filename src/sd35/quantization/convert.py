"""16-bit checkpoint in, FP8 folder out, one tensor in memory at a time.

The new folder is complete in itself: FP8 weights where the recipe wants them, everything else copied, and
`sd35.json` with the recipe, the source's hashes and the tool's version. It is built beside its place and
moved there when it is whole, so an interruption leaves nothing behind that looks like a checkpoint, and
`resume` goes on from what it left. No clock and no random number takes part: equal input gives equal bytes.

Layers that FP8 would spoil are found first (`outliers.py`), since the new file's header comes before its
values. `sd35.json` keeps them beside the recipe, each with its figure and what became of it.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from sd35.quantization.calibrate import LayerInputs
from sd35.quantization.folders import may_link, room_needed, write_folder
from sd35.quantization.grams import Grams
from sd35.quantization.lazily import Rounder, quantized, to_nearest
from sd35.quantization.outliers import Outlier, find_outliers, refuse, spared
from sd35.quantization.recipe import Recipe
from sd35.quantization.rounding import round_by_gram

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuantizationReport:
    """Where the new folder is, its layers in FP8, weight bytes beside the source's, and what was spared."""

    path: Path
    layers: int
    bytes_before: int
    bytes_after: int
    outliers: list[Outlier] = field(default_factory=list)


def quantize(
    source: str | Path,
    destination: str | Path,
    recipe: Recipe | None = None,
    components: Path | None = None,
    inputs: Mapping[str, LayerInputs] | None = None,
    grams: Grams | None = None,
    *,
    resume: bool = False,
    encoder_files: Sequence[Path] = (),
    link_below: Path | None = None,
) -> QuantizationReport:
    """Write the FP8 folder `destination` from the 16-bit checkpoint `source` (a path, or `demo`).

    A recipe with static activations needs `inputs`, which `calibrate` finds, and one with learned rounding
    needs `grams`. `resume` goes on from what an interrupted run of the same source and recipe left; the
    result is the same to the byte. Weights that stay 16-bit are copied, and hard-linked if they lie below
    `link_below`. CheckpointError if the source is incomplete, FP8 already, or has outliers that the recipe
    refuses; OutputError if the destination exists or can't be written.
    """
    path, work = locate(source), _Quantizer(recipe or Recipe(), inputs or {}, grams)
    checkpoint = open_checkpoint(path, components, encoder_files)
    beside = [*([components] if components else []), *encoder_files]
    job = Job(job_facts("quantize", path, beside, **work.facts()), resume)
    room = room_needed(checkpoint, _linked(checkpoint, work.recipe, link_below))
    with fresh_folder(Path(destination), room, job) as place:
        layers = write_folder(checkpoint, place, work.rewrite, work.record, link_below)
    return QuantizationReport(
        Path(destination), layers, room_needed(checkpoint), weight_bytes(Path(destination)), work.outliers
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


class _Quantizer:
    """A recipe, what calibration found, and the outliers met so far."""

    def __init__(self, recipe: Recipe, inputs: Mapping[str, LayerInputs], grams: Grams | None) -> None:
        if recipe.rounding == "learned" and grams is None:
            raise RequestError(
                "Learned rounding needs the Gram matrices of the layers' inputs: pass `Grams`, or round to "
                "nearest."
            )
        self.recipe, self.inputs = recipe, inputs
        self.grams = grams if recipe.rounding == "learned" else None
        self.outliers: list[Outlier] = []

    def facts(self) -> dict[str, Any]:
        """All that the values depend on beside the source."""
        return {
            "recipe": self.recipe.as_dict(),
            "inputs": {layer: inputs.facts() for layer, inputs in self.inputs.items()},
            "grams": self.grams.facts() if self.grams else None,
        }

    def record(self) -> dict[str, Any]:
        """The recipe for the manifest, and the layers in which it was not followed."""
        exceptions = {"exceptions": [outlier.as_dict() for outlier in self.outliers]}
        return {**self.recipe.as_dict(), **(exceptions if self.outliers else {})}

    def rewrite(self, part: str, source: TensorSource) -> Layout | None:
        """One part as the recipe and the outlier guard have it; None leaves it as it is."""
        if source.schemes:
            raise CheckpointError(
                f"{source.paths[0]} is FP8 already: quantizing twice would lose precision for nothing, so "
                "start from the 16-bit checkpoint."
            )
        schemes = self.recipe.plan(part, {name: spec.shape for name, spec in source.specs.items()})
        schemes = self._guarded(source, schemes)
        return self._quantized(source, schemes) if schemes else None

    def _guarded(self, source: TensorSource, schemes: dict[str, Scheme]) -> dict[str, Scheme]:
        if self.recipe.outliers == "ignore":
            return schemes
        found = find_outliers(source, schemes, self.inputs)
        if found and self.recipe.outliers == "refuse":
            raise refuse(str(source.paths[0]), found)
        for outlier in found:
            log.warning("%s", outlier)
        self.outliers += found
        return spared(schemes, found)

    def _quantized(self, source: TensorSource, schemes: dict[str, Scheme]) -> Layout:
        layout = Layout(dict(source.tensors), schemes)
        for layer, scheme in schemes.items():
            name = f"{layer}.weight"
            pair = quantized(name, layout.tensors[name], scheme, self._rounder(layer))
            layout.tensors[name], layout.tensors[f"{name}_scale"] = pair
            if scheme.activation == "static":
                layout.input_scales[layer] = given(_input_scale(layer, self.inputs))
        return layout

    def _rounder(self, layer: str) -> Rounder:
        grams = self.grams
        if grams is None or layer not in grams:
            return to_nearest
        return lambda weight, scheme: round_by_gram(weight, grams.of(layer), scheme)


def _input_scale(layer: str, inputs: Mapping[str, LayerInputs]) -> Tensor:
    if layer not in inputs:
        raise RequestError(
            f"{layer} is to have a static activation scale and no calibration has seen it: pass what "
            "`calibrate` finds, or leave activations dynamic."
        )
    return scale_from_amax(torch.tensor(inputs[layer].amax), torch.float8_e4m3fn)
