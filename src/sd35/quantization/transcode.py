"""One checkpoint format into another, without loss where the new one can hold what the old one has.

    from \\ to        folder      rowwise     comfy, comfy-legacy           16bit, 16bit-file
    16-bit           yes         quantizes   quantizes                     yes
    one scale        yes         yes (1)     yes, if q, k, v share theirs  restores
    one a row        yes         yes         quantizes again               restores
    blocks           yes         quantizes again                           restores

(1) the one scale is written once a row. In the original layout q, k and v are one tensor, so what was three
layers has to fit one. What would be rounded anew is counted before anything is written, and said in one
sentence; `requantize` accepts it. Values are then restored in float32 and quantized from there.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch

from sd35.checkpoints.formats import Checkpoint, open_checkpoint
from sd35.checkpoints.keys import PREFIXES, transformer_moves
from sd35.checkpoints.manifest import hash_file, write_manifest
from sd35.checkpoints.original_parts import parts_held, read_part
from sd35.checkpoints.placing import Job, fresh_file, fresh_folder
from sd35.checkpoints.relayout import Layout, depth, to_original
from sd35.checkpoints.single_writer import Spelling, write_single_file
from sd35.checkpoints.source import TensorSource
from sd35.checkpoints.store import locate
from sd35.errors import RequestError
from sd35.fp8 import Granularity, Scheme
from sd35.quantization.convert import job_facts, weight_bytes
from sd35.quantization.folders import made_of, room_needed, write_folder
from sd35.quantization.lazily import one_value_a_row, quantized, restored
from sd35.quantization.recipe import Recipe

Target = Literal["folder", "16bit", "16bit-file", "comfy", "comfy-legacy", "rowwise"]
Opener = Callable[[], TensorSource]
_IN_FOLDERS = ("folder", "16bit")
_ALWAYS = ("transformer", "vae")
_SIXTEEN_BIT = "16-bit weights, where the format is FP8"


@dataclass(frozen=True)
class ConversionReport:
    """What was written: layers in FP8, how many of them were rounded anew, and what else there is to know."""

    path: Path
    layers: int
    requantized: int
    bytes_before: int
    bytes_after: int
    notes: list[str] = field(default_factory=list)


@dataclass
class PartPlan:
    """One part as it will be written: tensors by the original's names, and what it costs."""

    layout: Layout
    losses: Counter[str] = field(default_factory=Counter)  # why layers are rounded anew -> how many
    notes: list[str] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors; the hints' are not counted."""
        return sum(lazy.spec.num_bytes for lazy in self.layout.tensors.values())


def convert(
    source: str | Path,
    destination: str | Path,
    target: Target,
    *,
    requantize: bool = False,
    with_encoders: bool = False,
    components: Path | None = None,
    encoder_files: Sequence[Path] = (),
    resume: bool = False,
) -> ConversionReport:
    """Write `source` (a folder, a single file or a name) at `destination` in the format `target`.

    RequestError if that would lose precision and `requantize` does not accept it, CheckpointError if the
    source is damaged, OutputError if the destination exists or can't be written. `resume` goes on from what
    an interrupted run of the same conversion left.
    """
    if target not in get_args(Target):
        raise RequestError(f"There is no format {target!r}: choose one of {', '.join(get_args(Target))}.")
    path, place = locate(source), Path(destination)
    beside = [*([components] if components else []), *encoder_files]
    facts = job_facts("convert", path, beside, target=target, with_encoders=with_encoders)
    job = Job({**facts, "recipe": Recipe().as_dict()}, resume)
    open_whole = partial(open_checkpoint, path, components, encoder_files)
    if target in _IN_FOLDERS:
        if place.suffix == ".safetensors":
            raise RequestError(f"{target} is a folder: {place} must not end in .safetensors.")
        return _to_folder(open_whole(), place, target, job)
    if encoder_files and not with_encoders:
        raise RequestError("Text encoders are named, and none goes into the file: add --with-encoders.")
    openers = _openers(path, with_encoders, open_whole)
    return _to_file(path, place, target, requantize, openers, job)  # type: ignore[arg-type]


def _to_folder(checkpoint: Checkpoint, place: Path, target: Target, job: Job) -> ConversionReport:
    notes: list[str] = []
    before = room_needed(checkpoint)
    rewrite = partial(_in_a_folder, target, notes)
    with fresh_folder(place, before * (2 if target == "16bit" else 1), job) as fresh:
        layers = write_folder(checkpoint, fresh, rewrite, lambda: None)
    return ConversionReport(place, layers, 0, before, weight_bytes(place), notes)


def _in_a_folder(target: Target, notes: list[str], _: str, source: TensorSource) -> Layout | None:
    """One part: restored where 16 bit is asked for, else as it is."""
    if source.schemes and target == "16bit":
        return _restored(source, source.schemes, torch.bfloat16)
    notes.extend(_dropped_input_scales(source))
    return None


def _to_file(
    path: Path,
    place: Path,
    target: Spelling,
    requantize: bool,
    openers: dict[str, Opener],
    job: Job,
) -> ConversionReport:
    if place.suffix != ".safetensors":
        raise RequestError(f"{target} is a single file: {place} has to end in .safetensors.")
    sources = {part: opener() for part, opener in openers.items()}
    try:
        for source in sources.values():
            source.stream()
        plans = {part: plan_part(part, source, target) for part, source in sources.items()}
        losses = sum((plan.losses for plan in plans.values()), Counter[str]())
        if losses and not requantize:
            raise RequestError(_in_one_sentence(path, target, losses))
        with fresh_file(place, sum(plan.num_bytes for plan in plans.values()), job) as fresh:
            if not fresh.exists():
                write_single_file(fresh, {part: plan.layout for part, plan in plans.items()}, target)
            _write_manifest(path, fresh, job)
    finally:
        for source in sources.values():
            source.close()
    return ConversionReport(
        place,
        layers=sum(len(plan.layout.schemes) for plan in plans.values()),
        requantized=losses.total(),
        bytes_before=sum(file.stat().st_size for file in {f for s in sources.values() for f in s.paths}),
        bytes_after=weight_bytes(place),
        notes=[note for plan in plans.values() for note in plan.notes],
    )


def _write_manifest(path: Path, file: Path, job: Job) -> None:
    """Beside the file: its hash, and those of what it was made from."""
    choices = {key: job.facts[key] for key in ("target", "with_encoders", "recipe")}
    write_manifest(file, made_of(path, {file.name: hash_file(file)}, choices))


def _openers(path: Path, with_encoders: bool, open_whole: Callable[[], Checkpoint]) -> dict[str, Opener]:
    """How to open each part that goes into the file: a file keeps its parts and needs no components."""
    if path.is_file() and not with_encoders:
        held = parts_held(path)
        return {part: partial(read_part, path, part, prefix) for part, prefix in held.items()}
    checkpoint = open_whole()
    wanted = [part for part in PREFIXES if part in checkpoint.parts and (with_encoders or part in _ALWAYS)]
    return {part: partial(checkpoint.tensors, part) for part in wanted}


def plan_part(part: str, source: TensorSource, target: Spelling) -> PartPlan:
    """What a part becomes in a single file of this format; reads headers and single scales alone."""
    if target == "16bit-file":
        return PartPlan(to_original(part, _restored(source, source.schemes, torch.bfloat16)))
    plan = PartPlan(Layout({}), notes=_dropped_input_scales(source) if target == "rowwise" else [])
    again, spread = _sort_layers(part, source, target, plan.losses)
    layout = _restored(source, [layer for group in again.values() for layer in group], torch.float32)
    for layer in spread:
        height = source.specs[f"{layer}.weight"].shape[0]
        scale = f"{layer}.weight_scale"
        layout.tensors[scale] = one_value_a_row(layout.tensors[scale], height)
        layout.schemes[layer] = replace(layout.schemes[layer], granularity="rowwise")
    plan.layout = to_original(part, layout)
    _quantize_anew(plan.layout, {name: source.schemes[group[0]] for name, group in again.items()}, target)
    if part == "transformer" and not source.schemes:
        _quantize_16_bit(plan, source, target)
    if target == "comfy-legacy" and len({s.activation for s in plan.layout.schemes.values()}) > 1:
        plan.notes.append("the format has one switch for all layers, so all products are taken in 16 bit")
    return plan


def _sort_layers(
    part: str, source: TensorSource, target: Spelling, losses: Counter[str]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Which FP8 layers are rounded anew (original name -> diffusers' names), which get a scale a row."""
    again: dict[str, tuple[str, ...]] = {}
    spread: list[str] = []
    for name, group in _groups(part, source):
        fp8 = [layer for layer in group if layer in source.schemes]
        reason = _reason_to_requantize(source, group, target) if fp8 else None
        if reason:
            again[name] = tuple(fp8)
            losses[reason] += 1
        elif fp8 and target == "rowwise" and source.schemes[group[0]].granularity == "tensorwise":
            spread.extend(group)
    return again, spread


def _groups(part: str, source: TensorSource) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The original's layers, and the layers of diffusers that each of them is."""
    if part == "transformer":
        for move in transformer_moves(*depth(source.tensors, "transformer_blocks", "attn2")):
            yield move.original, move.diffusers
    else:
        yield from ((layer, (layer,)) for layer in source.schemes)


def _reason_to_requantize(source: TensorSource, group: tuple[str, ...], target: Spelling) -> str | None:
    """Why these layers can't go over as they are; None where they can."""
    schemes = {source.schemes.get(layer) for layer in group}
    scheme = next(iter(schemes))
    if len(schemes) > 1 or scheme is None:
        return "q, k and v are stored in different ways, and are one tensor there"
    if scheme.granularity == "blockwise":
        return "one scale a block, which the format does not have"
    if target == "rowwise":
        return "E5M2 weights, where the format has E4M3" if scheme.dtype != "e4m3fn" else None
    if scheme.granularity == "rowwise":
        return "one scale a row, where the format has one a tensor"
    if target == "comfy-legacy" and scheme.dtype != _legacy_dtype(source):
        return "weights in both FP8 formats, where the file has one"
    scales = {source.read(f"{layer}.weight_scale").item() for layer in group}
    return "q, k and v with scales of their own, and they are one tensor there" if len(scales) > 1 else None


def _legacy_dtype(source: TensorSource) -> str:
    dtypes = {scheme.dtype for scheme in source.schemes.values()}
    return dtypes.pop() if len(dtypes) == 1 else "e4m3fn"


def _restored(source: TensorSource, layers: Collection[str], dtype: torch.dtype) -> Layout:
    """The source with these layers' values restored; the others stay FP8."""
    layout = Layout(dict(source.tensors), dict(source.schemes), dict(source.input_scales))
    for layer in layers:
        weight = f"{layer}.weight"
        scale = layout.tensors.pop(f"{weight}_scale")
        layout.tensors[weight] = restored(layout.tensors[weight], scale, dtype)
        del layout.schemes[layer]
        layout.input_scales.pop(layer, None)
    return layout


def _quantize_anew(layout: Layout, schemes: dict[str, Scheme], target: Spelling) -> None:
    """Quantize these layers of the original, as the format has it."""
    granularity: Granularity = "rowwise" if target == "rowwise" else "tensorwise"
    for layer, scheme in schemes.items():
        new = replace(scheme, dtype="e4m3fn", granularity=granularity)
        name = f"{layer}.weight"
        layout.tensors[name], layout.tensors[f"{name}_scale"] = quantized(name, layout.tensors[name], new)
        layout.schemes[layer] = new


def _quantize_16_bit(plan: PartPlan, source: TensorSource, target: Spelling) -> None:
    """A 16-bit transformer becomes FP8 by the default recipe, fused layers as one."""
    schemes = Recipe().plan("transformer", {name: spec.shape for name, spec in source.specs.items()})
    by_original = {
        name: schemes[group[0]] for name, group in _groups("transformer", source) if group[0] in schemes
    }
    plan.losses[_SIXTEEN_BIT] += len(by_original)
    _quantize_anew(plan.layout, by_original, target)


def _dropped_input_scales(source: TensorSource) -> list[str]:
    if not source.input_scales:
        return []
    count = len(source.input_scales)
    return [f"{count} static activation scales were left out: activations are scaled as they come"]


def _in_one_sentence(path: Path, target: str, losses: Counter[str]) -> str:
    reasons = "; ".join(f"{count} layers have {reason}" for reason, count in losses.items())
    holds = "16bit-file" if set(losses) == {_SIXTEEN_BIT} else "rowwise or folder"
    return (
        f"{path} can't become {target} without rounding weights anew: {reasons}. Accept that with "
        f"--requantize, or choose a format that can hold what is there: {holds}."
    )
