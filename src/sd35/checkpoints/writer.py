"""Write a safetensors file tensor by tensor, so that no more than one of them is ever in memory.

The format wants its header first, with the byte range of every tensor. Names, dtypes and shapes are known
before any value is computed (a recipe decides them), so the header can be written at once and the values
follow as they come. Equal tensors in equal order give equal bytes: the header's JSON is compact, keeps the
order it is given, and is padded with spaces to a multiple of 8 as the safetensors library does.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from sd35.checkpoints.reader import DTYPES, TensorSpec
from sd35.errors import OutputError

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_safetensors(
    path: Path,
    specs: Mapping[str, TensorSpec],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Stream `tensors` (name, value), in the order of `specs`, into `path`; OutputError if the disk says no.

    The values must be what `specs` promised: another name, dtype or shape is a bug and raises ValueError.
    """
    try:
        with path.open("wb") as file:
            file.write(_header(specs, metadata))
            expected = iter(specs.items())
            for name, tensor in tensors:
                _check(name, tensor, next(expected, None))
                file.write(_bytes(tensor))
    except OSError as error:
        raise OutputError(
            f"{path} can't be written ({error.strerror}): free the disk or choose another."
        ) from error
    missing = [name for name, _ in expected]
    if missing:
        raise ValueError(f"the header promised {missing[0]} and {len(missing) - 1} more, but no values came")


def _header(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, spec in specs.items():
        span = [offset, offset + spec.num_bytes]
        header[name] = {"dtype": _NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": span}
        offset = span[1]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _check(name: str, tensor: Tensor, expected: tuple[str, TensorSpec] | None) -> None:
    if expected != (name, TensorSpec(tensor.dtype, tensor.shape)):
        raise ValueError(f"the header promised {expected}, but {name} {tensor.dtype} {tensor.shape} came")


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    return flat.numpy().data
