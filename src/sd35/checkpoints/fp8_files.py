"""FP8 as ComfyUI and others spell it, normalised to what `TensorSource` promises.

    plain      A  `L.weight` in FP8, no scale anywhere: the value is the number itself
    legacy     B  marker tensor `scaled_fp8`, `L.scale_weight` (one value), `L.scale_input` by choice
    comfy      C  `L.weight_scale` (one value), and the format of each layer either in U8 tensors
                  `L.comfy_quant` (JSON) or in the header's `_quantization_metadata`, or in both
    rowwise    G  `L.weight_scale` [N] without any hint: one value a row

The one rule above all: an FP8 weight is never used without its scale, and no scale is left lying about. A
weight without the scale that its file promises, a scale without its weight, a hint that contradicts the
tensors, all end in CheckpointError with the layer's name. Sources: ComfyUI's `comfy/utils.py`
(`convert_old_quants`) and `comfy/ops.py`; diffusers' `BFLQuantizationConfig` for G.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

import torch

from sd35.checkpoints.lazy import Lazy, Tensors, cast, given, stored
from sd35.checkpoints.reader import TensorReader
from sd35.checkpoints.scales import checked_scale
from sd35.checkpoints.schemes import METADATA_KEY, load_schemes, scheme_of
from sd35.errors import CheckpointError, RequestError
from sd35.fp8 import LARGEST, TORCH_DTYPES, Granularity, Scheme

MARKER = "scaled_fp8"
HINT = "comfy_quant"
_LARGEST_HINT = 64 * 1024  # bytes; stable-diffusion.cpp has the same cap
_DTYPE_WORDS = {torch_dtype: word for word, torch_dtype in TORCH_DTYPES.items()}
# A tensor so named gives its file away as one of these.
_FOREIGN_TENSORS = {
    "weight_scale_inv": "transformers' finegrained FP8 (blocks of 128 x 128)",
    "weight_scale_2": "NVFP4 (4-bit weights with two levels of scales)",
    "weight_packed": "compressed-tensors with packed weights",
    "pre_quant_scale": "an NVIDIA ModelOpt or NVFP4 export",
}


@dataclass
class Fp8Tensors:
    """One part of a file: tensors with normalised scales, schemes by layer, static activation scales."""

    tensors: Tensors
    format: str = "16-bit file"
    schemes: dict[str, Scheme] = field(default_factory=dict)
    input_scales: Tensors = field(default_factory=dict)


def read_fp8(reader: TensorReader, prefix: str) -> Fp8Tensors:
    """The tensors whose names begin with `prefix`, without it, in whichever of the formats they are."""
    raw = {name.removeprefix(prefix): stored(reader, name) for name in reader if name.startswith(prefix)}
    part = _Part(str(reader.paths[0]), raw)
    part.refuse_foreign()
    hints = part.take_hints(_header_hints(reader.metadata, prefix))
    if MARKER in raw:
        part.read_legacy()
    elif hints:
        part.read_hinted(hints)
    elif any(name.endswith(".weight_scale") for name in raw):
        part.read_scaled()
    elif any(_is_fp8(lazy) for lazy in raw.values()):
        part.read_plain()
    part.refuse_orphans()
    return part.result


class _Part:
    """The part while it is being understood: each step takes tensors out of `raw` or changes them."""

    def __init__(self, place: str, raw: Tensors) -> None:
        self.place, self.raw = place, raw
        self.result = Fp8Tensors(raw)

    def refuse_foreign(self) -> None:
        """CheckpointError for formats that are known by their tensors and not read."""
        for name in self.raw:
            kind = name.rpartition(".")[2]
            if kind in _FOREIGN_TENSORS:
                raise CheckpointError(
                    f"{self.place} holds {name}: that is {_FOREIGN_TENSORS[kind]}, which sd35 does not read; "
                    "quantize the 16-bit checkpoint instead."
                )

    def take_hints(self, hints: dict[str, Scheme]) -> dict[str, Scheme]:
        """What header and `comfy_quant` tensors say, which must be the same where both speak."""
        for name in [name for name in self.raw if name.endswith(f".{HINT}")]:
            layer = name.removesuffix(f".{HINT}")
            scheme = self._hint(name, self.raw.pop(name))
            if hints.setdefault(layer, scheme) != scheme:
                raise self._error(f"{name} says {scheme} and the header says {hints[layer]}")
        return hints

    def read_legacy(self) -> None:
        """B: the marker has the weights' dtype (float32 means e4m3fn); two elements: no FP8 product."""
        marker = self.raw.pop(MARKER)
        dtype = torch.float8_e4m3fn if marker.dtype == torch.float32 else marker.dtype
        if dtype not in _DTYPE_WORDS:
            raise self._error(f"its marker {MARKER} is {marker.dtype}, which names no FP8 format")
        activation = "none" if marker.shape.numel() == 2 else "dynamic"
        for layer in self._layers_with("scale_weight"):
            self.raw[f"{layer}.weight_scale"] = self.raw.pop(f"{layer}.scale_weight")
            if f"{layer}.scale_input" in self.raw:
                self.raw[f"{layer}.input_scale"] = self.raw.pop(f"{layer}.scale_input")
            self._add(layer, Scheme(_DTYPE_WORDS[dtype], "tensorwise", activation))  # type: ignore[arg-type]
        self.result.format = "comfy-legacy"

    def read_hinted(self, hints: Mapping[str, Scheme]) -> None:
        """C: each layer is what its hint says."""
        for layer, scheme in hints.items():
            self._add(layer, scheme)
        by_row = any(scheme.granularity == "rowwise" for scheme in hints.values())
        self.result.format = "rowwise" if by_row else "comfy"

    def read_scaled(self) -> None:
        """G, or C without hints: the shape of a scale says what it is."""
        for layer in self._layers_with("weight_scale"):
            weight = self._weight(layer)
            if weight.dtype not in _DTYPE_WORDS:
                raise self._error(f"{layer}.weight_scale belongs to a weight that is {weight.dtype}")
            one = self.raw[f"{layer}.weight_scale"].shape.numel() == 1
            granularity: Granularity = "tensorwise" if one and weight.shape[0] > 1 else "rowwise"
            self._add(layer, Scheme(_DTYPE_WORDS[weight.dtype], granularity))
        self.result.format = "rowwise"

    def read_plain(self) -> None:
        """A: matrices stay FP8 in storage with the scale 1; everything else goes to bf16, which holds it."""
        layers = [
            name.removesuffix(".weight") for name, lazy in self.raw.items() if _is_fp8_matrix(name, lazy)
        ]
        self._refuse_lost_scales(layers)
        for layer in layers:
            self.raw[f"{layer}.weight_scale"] = given(torch.ones(()))
            self._add(layer, Scheme(_DTYPE_WORDS[self._weight(layer).dtype], "tensorwise", "none"))
        for name, lazy in self.raw.items():
            if _is_fp8(lazy) and name.removesuffix(".weight") not in self.result.schemes:
                self.raw[name] = cast(lazy, torch.bfloat16)
        self.result.format = "plain"

    def refuse_orphans(self) -> None:
        """CheckpointError for a scale without its layer and for FP8 without its scale."""
        for name, lazy in self.raw.items():
            layer, _, kind = name.rpartition(".")
            is_known = layer in self.result.schemes
            if kind in ("weight_scale", "scale_weight", "input_scale", "scale_input") and not is_known:
                raise self._error(f"{name} is a scale of no FP8 layer that the file declares")
            if _is_fp8(lazy) and not (is_known and kind == "weight"):
                raise self._error(f"{name} is {lazy.dtype}, and the file holds no scale for it")

    def _add(self, layer: str, scheme: Scheme) -> None:
        weight, name = self._weight(layer), f"{layer}.weight_scale"
        if weight.dtype != TORCH_DTYPES[scheme.dtype]:
            raise self._error(f"{layer}.weight is {weight.dtype}, and the file declares it {scheme.dtype}")
        if name not in self.raw:
            raise self._error(f"{layer}.weight is FP8 and lacks its scale")
        self.raw[name] = checked_scale(f"{self.place}: {name}", self.raw[name], weight.shape, scheme)
        self.result.schemes[layer] = scheme
        if (static := self.raw.pop(f"{layer}.input_scale", None)) is not None:
            one = Scheme(granularity="tensorwise")
            place = f"{self.place}: {layer}.input_scale"
            self.result.input_scales[layer] = checked_scale(place, static, weight.shape, one)

    def _layers_with(self, kind: str) -> list[str]:
        return [name.removesuffix(f".{kind}") for name in self.raw if name.endswith(f".{kind}")]

    def _weight(self, layer: str) -> Lazy:
        if f"{layer}.weight" not in self.raw:
            raise self._error(f"it declares {layer} as FP8 and holds no {layer}.weight")
        return self.raw[f"{layer}.weight"]

    def _hint(self, name: str, lazy: Lazy) -> Scheme:
        if lazy.dtype != torch.uint8 or lazy.shape.numel() > _LARGEST_HINT:
            raise self._error(f"{name} is {lazy.dtype} {tuple(lazy.shape)} and no JSON in bytes")
        try:
            return scheme_of(json.loads(bytes(lazy.read().tolist())))
        except (ValueError, KeyError, TypeError, AttributeError, RequestError) as error:
            raise self._error(f"{name} can't be understood ({error})") from error

    def _refuse_lost_scales(self, layers: list[str]) -> None:
        """A weight that was scaled reaches the format's largest value; a plain cast never does all over."""
        sample = [self._weight(layer) for layer in islice(layers, 0, None, max(1, len(layers) // 4))]
        if sample and all(_amax(lazy) == LARGEST[lazy.dtype] for lazy in sample):
            raise self._error(
                "its FP8 weights reach the format's largest value as only scaled ones do, but there are no "
                "scales: some tool has dropped them"
            )

    def _error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.place} can't be used: {what}; fetch it again, or quantize anew.")


def _header_hints(metadata: Mapping[str, str], prefix: str) -> dict[str, Scheme]:
    if METADATA_KEY not in metadata:
        return {}
    layers = load_schemes(metadata)
    return {name.removeprefix(prefix): scheme for name, scheme in layers.items() if name.startswith(prefix)}


def _is_fp8(lazy: Lazy) -> bool:
    return lazy.dtype in _DTYPE_WORDS


def _is_fp8_matrix(name: str, lazy: Lazy) -> bool:
    """A linear layer's weight, as far as names tell: tables that are looked up in are none."""
    is_table = name.endswith(
        ("shared.weight", "embed_tokens.weight", "embedding.weight", "attention_bias.weight")
    )
    return _is_fp8(lazy) and name.endswith(".weight") and len(lazy.shape) == 2 and not is_table


def _amax(lazy: Lazy) -> float:
    return lazy.read().float().abs().max().item()
