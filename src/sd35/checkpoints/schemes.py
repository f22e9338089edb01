"""How a file says which of its layers are FP8: one entry a layer, in the safetensors header.

The header's `__metadata__` holds, under `_quantization_metadata`, the JSON

    {"format_version": "1.0",
     "layers": {"<layer>": {"format": "float8_e4m3fn_rowwise", "activation": "dynamic"}}}

and for each such layer the file holds `<layer>.weight` in FP8 and `<layer>.weight_scale` in float32. The
key, the version and the format names follow ComfyUI's QUANTIZATION.md and its community extensions, whose
plain `float8_e4m3fn` is tensorwise. `activation` is ours; ComfyUI's word for "none" is
`full_precision_matrix_mult`. A layer without an entry is not quantised.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from sd35.checkpoints.strict_json import parse_json
from sd35.errors import CheckpointError, RequestError
from sd35.fp8 import Scheme

METADATA_KEY = "_quantization_metadata"
_FORMAT = re.compile(r"float8_(e4m3fn|e5m2)(?:_(rowwise|blockwise))?")
# Formats that sd35 knows by name and does not read.
_FOREIGN = {
    "mxfp8": "MXFP8 (blocks of 32 with power-of-two scales, for Blackwell cards)",
    "nvfp4": "NVFP4 (4-bit weights)",
    "fp8": "NVIDIA ModelOpt's export, whose scales follow its own rules",
    "int8_tensorwise": "INT8",
    "svdquant_w4a4": "SVDQuant (4-bit weights)",
}


def dump_schemes(schemes: Mapping[str, Scheme]) -> str:
    """The header entry for these layers."""
    layers = {name: entry_of(scheme) for name, scheme in schemes.items()}
    return json.dumps({"format_version": "1.0", "layers": layers}, separators=(",", ":"))


def load_schemes(metadata: Mapping[str, str]) -> dict[str, Scheme]:
    """The FP8 layers that a file's header declares; empty for a 16-bit file."""
    if METADATA_KEY not in metadata:
        return {}
    try:
        layers = parse_json(metadata[METADATA_KEY])["layers"]
        return {name: scheme_of(entry) for name, entry in layers.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RequestError) as error:
        raise CheckpointError(
            f"The file's {METADATA_KEY} can't be understood ({error}): fetch it again, or quantize anew."
        ) from error


def entry_of(scheme: Scheme) -> dict[str, Any]:
    """What is said of one layer."""
    suffix = "" if scheme.granularity == "tensorwise" else f"_{scheme.granularity}"
    return {"format": f"float8_{scheme.dtype}{suffix}", "activation": scheme.activation}


def scheme_of(entry: Mapping[str, Any]) -> Scheme:
    """The scheme that an entry describes; ValueError for a format that is not read, with what it is."""
    name = entry["format"]
    found = _FORMAT.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is {_FOREIGN.get(name, 'an unknown format')}, which sd35 does not read")
    dtype, granularity = found.groups(default="tensorwise")
    usual = "none" if entry.get("full_precision_matrix_mult") else "dynamic"
    return Scheme(dtype, granularity, entry.get("activation", usual))  # type: ignore[arg-type]
