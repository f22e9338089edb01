"""FP8 in a file: every FP8 weight has the scale that its format promises, and every scale has a weight.

A weight whose scale is lost still looks like a weight, and draws noise; this is how files of this kind fail
silently elsewhere. Three spellings are known, and all of them are looked through here:

    <layer>.weight + .weight_scale (+ .input_scale)        ours, ComfyUI, and one scale a row
    <layer>.weight + .scale_weight (+ .scale_input)        ComfyUI's older files, with a `scaled_fp8` marker
    <layer>._weight_qdata + ._weight_scale                 torchao

The layers are declared in the header (`_quantization_metadata`), by a `comfy_quant` tensor each, by the
marker, or by torchao's entries. A single file may also be a plain cast: FP8 throughout, without any scale.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sd35.checkpoints.findings import printable, some_of
from sd35.checkpoints.reader import TensorReader, TensorSpec
from sd35.checkpoints.schemes import load_schemes
from sd35.errors import CheckpointError
from sd35.fp8 import BLOCK, LARGEST, Scheme

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_QDATA, _MARKER, _HINT = "._weight_qdata", "scaled_fp8", ".comfy_quant"
_SCALES = (".weight_scale", ".scale_weight", "._weight_scale")
_INPUT_SCALES = (".input_scale", ".scale_input")
_LARGEST_HINT = 64 << 10  # bytes


@dataclass(frozen=True)
class Fp8View:
    """A file's tensors sorted by their role: FP8 weights and scales by layer, and what is neither."""

    weights: dict[str, TensorSpec]  # by name, torchao's under `<layer>.weight`
    scales: dict[str, str]  # layer -> name of its weight's scale
    input_scales: dict[str, str]
    declared: dict[str, Scheme | None]  # by layer; None where the file leaves the granularity open

    @property
    def fp8_layers(self) -> set[str]:
        """The layers whose weight is FP8."""
        names = (name for name, spec in self.weights.items() if spec.dtype in FP8)
        return {name.removesuffix(".weight") for name in names}


def view(reader: TensorReader) -> Fp8View:
    """Sort a file's tensors by their names; CheckpointError if its declaration can't be understood."""
    weights: dict[str, TensorSpec] = {}
    scales: dict[str, str] = {}
    input_scales: dict[str, str] = {}
    declared: dict[str, Scheme | None] = dict(load_schemes(reader.metadata))
    markers = [name.removesuffix(_MARKER) for name in reader if name.endswith(_MARKER)]
    for name, spec in reader.specs.items():
        if layer := _layer(name, _SCALES):
            scales[layer] = name
        elif layer := _layer(name, _INPUT_SCALES):
            input_scales[layer] = name
        elif layer := _layer(name, (_HINT,)):
            declared.setdefault(layer, None)
        elif layer := _layer(name, (_QDATA,)):
            weights[f"{layer}.weight"] = spec
            declared.setdefault(layer, None)
        elif not name.endswith(_MARKER):
            weights[name] = spec
            if spec.dtype in FP8 and any(name.startswith(prefix) for prefix in markers):
                declared.setdefault(name.removesuffix(".weight"), None)
    return Fp8View(weights, scales, input_scales, declared)


def audit_fp8(reader: TensorReader, *, is_folder: bool) -> Iterator[str]:
    """What is wrong with the file's FP8 layers, a predicate each; a plain cast is allowed to single files."""
    try:
        seen = view(reader)
    except CheckpointError as error:
        yield f"declares its FP8 layers so that they can't be understood ({error})"
        return
    yield from _audit_declarations(reader, seen, is_folder=is_folder)
    for layer, name in sorted(seen.scales.items()):
        weight = seen.weights.get(f"{layer}.weight")
        if weight is None or weight.dtype not in FP8:
            yield f"holds the scale {printable(name)}, and no FP8 weight for it"
            continue
        if len(weight.shape) != 2:
            yield f"holds {printable(layer)} in FP8, and its weight is no matrix"
            continue
        yield from _audit_scale(reader, name, _shapes(weight.shape, seen.declared.get(layer)), weight.dtype)
    for layer, name in sorted(seen.input_scales.items()):
        if layer not in seen.fp8_layers:
            yield f"holds the input scale {printable(name)}, and no FP8 weight for it"
        else:
            yield from _audit_scale(reader, name, {(), (1,)}, torch.float8_e4m3fn)


def _audit_declarations(reader: TensorReader, seen: Fp8View, *, is_folder: bool) -> Iterator[str]:
    fp8 = seen.fp8_layers
    if large := [name for name in reader if _is_large_hint(reader, name)]:
        yield f"has hints of more than {_LARGEST_HINT} bytes: {some_of(large)}"
    if absent := sorted(layer for layer in seen.declared if f"{layer}.weight" not in seen.weights):
        yield f"declares FP8 layers that it does not hold: {some_of(absent)}"
    if plain := sorted(seen.declared.keys() - fp8 - set(absent)):
        yield f"declares layers as FP8 whose weights are not: {some_of(plain)}"
    is_plain_cast = not is_folder and not seen.declared and not seen.scales
    if (unscaled := sorted(fp8 - seen.scales.keys())) and not is_plain_cast:
        yield f"holds FP8 weights without their scales: {some_of(unscaled)}"
    if is_folder and (unknown := sorted(fp8 - seen.declared.keys())):
        yield f"holds FP8 weights whose format no header entry declares: {some_of(unknown)}"
    for layer, scheme in sorted(seen.declared.items()):
        weight = seen.weights.get(f"{layer}.weight")
        if scheme and weight and weight.dtype in FP8 and str(weight.dtype) != f"torch.float8_{scheme.dtype}":
            yield f"declares {printable(layer)} as {scheme.dtype}, and its weight is {weight.dtype}"


def _audit_scale(
    reader: TensorReader, name: str, shapes: set[tuple[int, ...]], dtype: torch.dtype
) -> Iterator[str]:
    spec = reader.specs[name]
    shown = printable(name)
    if spec.dtype != torch.float32:
        yield f"holds {shown} as {spec.dtype}, and scales are float32"
    elif tuple(spec.shape) not in shapes:
        yield f"holds {shown} of shape {tuple(spec.shape)}, which restores no weight of its layer"
    elif reason := _broken_value(reader.read(name), dtype):
        yield f"holds {shown} with {reason}"


def _broken_value(scale: Tensor, dtype: torch.dtype) -> str | None:
    if not bool(scale.isfinite().all()):
        return "a value that is not finite"
    if not bool((scale > 0).all()):
        return "a value that is not above zero"
    if not bool((scale * LARGEST[dtype]).bfloat16().isfinite().all()):
        return "a value that no 16-bit number could be restored with"
    return None


def _shapes(weight: torch.Size, scheme: Scheme | None) -> set[tuple[int, ...]]:
    """The shapes that the scale of a weight may have in a file, given what the file declares."""
    rows, columns = weight[0], weight[-1]
    spellings: dict[str, set[tuple[int, ...]]] = {
        "tensorwise": {(), (1,), (1, 1)},
        "rowwise": {(rows,), (rows, 1)},
        "blockwise": {(-(-rows // BLOCK), -(-columns // BLOCK))},
    }
    return spellings[scheme.granularity] if scheme else spellings["tensorwise"] | spellings["rowwise"]


def _layer(name: str, suffixes: tuple[str, ...]) -> str | None:
    return next((name.removesuffix(suffix) for suffix in suffixes if name.endswith(suffix)), None)


def _is_large_hint(reader: TensorReader, name: str) -> bool:
    return name.endswith(_HINT) and reader.specs[name].num_bytes > _LARGEST_HINT
