"""FP8 as torchao writes it into a diffusers folder (format H).

A quantised `L.weight` is two tensors, `L._weight_qdata` in FP8 and `L._weight_scale` in float32 ([N, 1] or
[1, 1]), and the header tells each tensor's class under its name: `Float8Tensor` with its block size and
what happens to activations, or plain `Tensor`. The header is data here: it is parsed as JSON, compared
with what we know, and no class in it is ever made. Source: torchao 0.18 `prototype/safetensors`.
"""

import json
from collections.abc import Mapping
from typing import Any

from sd35.checkpoints.lazy import stored
from sd35.checkpoints.reader import TensorReader
from sd35.checkpoints.scales import checked_scale
from sd35.checkpoints.source import TensorSource
from sd35.errors import CheckpointError
from sd35.fp8 import TORCH_DTYPES, Scheme

_NAMES = "tensor_names"


def is_torchao(metadata: Mapping[str, str]) -> bool:
    """Whether a header is of torchao's kind."""
    return _NAMES in metadata


def read_torchao(reader: TensorReader) -> TensorSource:
    """The folder's tensors under their plain names; CheckpointError for torchao's other tensor classes."""
    tensors, schemes = {}, {}
    quantized = {name: entry for name, entry in _entries(reader).items() if entry["_type"] != "Tensor"}
    for name, entry in quantized.items():
        layer = name.removesuffix(".weight")
        data, scale = f"{layer}._weight_qdata", f"{layer}._weight_scale"
        if data not in reader or scale not in reader:
            raise _damaged(reader, f"{name} lacks {data} or {scale}")
        scheme = _scheme(reader, name, entry, data)
        tensors[name] = stored(reader, data)
        place = f"{reader.paths[0]}: {scale}"
        tensors[f"{name}_scale"] = checked_scale(
            place, stored(reader, scale), reader.specs[data].shape, scheme
        )
        schemes[layer] = scheme
    parts = {f"{layer}._weight_{kind}" for layer in schemes for kind in ("qdata", "scale")}
    tensors.update({name: stored(reader, name) for name in reader if name not in parts})
    return TensorSource(reader, tensors, schemes, format="torchao")


def _entries(reader: TensorReader) -> dict[str, dict[str, Any]]:
    try:
        names = json.loads(reader.metadata[_NAMES])
        entries = {name: json.loads(reader.metadata[name]) for name in names if name in reader.metadata}
        return {name: {"_type": entry["_type"], **entry} for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(reader, f"its torchao header can't be understood ({error!r})") from error


def _scheme(reader: TensorReader, name: str, entry: dict[str, Any], data: str) -> Scheme:
    if entry["_type"] != "Float8Tensor" or not name.endswith(".weight"):
        raise CheckpointError(
            f"{reader.paths[0]}: {name} is torchao's {entry['_type']}, and sd35 reads its Float8Tensor; "
            "quantize the 16-bit checkpoint instead."
        )
    spec = reader.specs[data]
    words = {torch_dtype: word for word, torch_dtype in TORCH_DTYPES.items()}
    attributes = entry.get("_data") or {}
    n, k = spec.shape if len(spec.shape) == 2 else (0, 0)
    block = attributes.get("block_size")
    if spec.dtype not in words or block not in ([1, k], [n, k]):
        raise _damaged(reader, f"{name} is {spec.dtype} {tuple(spec.shape)} with blocks of {block}")
    activation = "none" if attributes.get("act_quant_kwargs") is None else "dynamic"
    return Scheme(words[spec.dtype], "rowwise" if block == [1, k] else "tensorwise", activation)  # type: ignore[arg-type]


def _damaged(reader: TensorReader, what: str) -> CheckpointError:
    return CheckpointError(f"{reader.paths[0]} can't be used: {what}; fetch it again, or quantize anew.")
