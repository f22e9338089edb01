"""How a file says which of its layers are FP8: one entry a layer in the safetensors header.

The header's `__metadata__` holds, under `_quantization_metadata`, the JSON

    {"format_version": "1.0",
     "layers": {"<layer>": {"format": "float8_e4m3fn_rowwise", "activation": "dynamic"}}}

and for each such layer the file holds `<layer>.weight` in FP8 and `<layer>.weight_scale` in float32. The
key, the version and the format names follow ComfyUI's QUANTIZATION.md and its community extensions, whose
plain `float8_e4m3fn` is tensorwise. `activation` is ours. A layer without an entry is not quantised.
"""

import json
import re
from collections.abc import Mapping

from sd35.checkpoints.strict_json import parse_json
from sd35.errors import CheckpointError, RequestError
from sd35.fp8 import Scheme

METADATA_KEY = "_quantization_metadata"
_FORMAT = re.compile(r"float8_(e4m3fn|e5m2)(?:_(rowwise|blockwise))?")


def dump_schemes(schemes: Mapping[str, Scheme]) -> str:
    """The header entry for these layers."""
    layers = {name: _entry(scheme) for name, scheme in schemes.items()}
    return json.dumps({"format_version": "1.0", "layers": layers}, separators=(",", ":"))


def load_schemes(metadata: Mapping[str, str]) -> dict[str, Scheme]:
    """The FP8 layers that a file's header declares; empty for a 16-bit file."""
    if METADATA_KEY not in metadata:
        return {}
    try:
        layers = parse_json(metadata[METADATA_KEY])["layers"]
        return {name: _scheme(entry) for name, entry in layers.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RequestError) as error:
        raise CheckpointError(
            f"The file's {METADATA_KEY} can't be understood ({error}): fetch it again, or quantize anew."
        ) from error


def _entry(scheme: Scheme) -> dict[str, str]:
    suffix = "" if scheme.granularity == "tensorwise" else f"_{scheme.granularity}"
    return {"format": f"float8_{scheme.dtype}{suffix}", "activation": scheme.activation}


def _scheme(entry: Mapping[str, str]) -> Scheme:
    found = _FORMAT.fullmatch(entry["format"])
    if found is None:
        raise ValueError(f"unknown format {entry['format']!r}")
    dtype, granularity = found.groups(default="tensorwise")
    return Scheme(dtype, granularity, entry.get("activation", "dynamic"))  # type: ignore[arg-type]
