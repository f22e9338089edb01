"""Write a safetensors file tensor by tensor, so that no more than one of them is ever in memory.

The format wants its header first, with the byte range of every tensor. Names, dtypes and shapes are known
before any value is computed (a recipe decides them), so the header can be written at once and the values
follow as they come. Equal tensors in equal order give equal bytes: the header's JSON is compact, keeps the
order it is given, and is padded with spaces to a multiple of 8 as the safetensors library does. A run that
was killed is gone on with behind its last whole tensor that the disk has (`unfinished.py`).
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from sd35.checkpoints.lazy import Lazy
from sd35.checkpoints.reader import DTYPES, TensorSpec
from sd35.checkpoints.unfinished import Unfinished

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_safetensors(path: Path, tensors: Mapping[str, Lazy], metadata: Mapping[str, str]) -> None:
    """Stream `tensors`, in their order, into `path`, which appears when it is whole; one there is replaced.

    OSError if the disk says no, which `placing.py` puts into words. A value of another dtype or shape than
    its `Lazy` promised is a bug and raises ValueError.
    """
    head = _header({name: lazy.spec for name, lazy in tensors.items()}, metadata)
    unfinished = Unfinished(path, head)
    with unfinished.opened() as file:
        for name, lazy in _from(tensors, file.tell() - len(head)):
            value = lazy.read()
            _check(name, value, lazy.spec)
            file.write(_bytes(value))
            unfinished.keep(file)


def _from(tensors: Mapping[str, Lazy], start: int) -> Iterator[tuple[str, Lazy]]:
    """The tensors from this byte of the data on."""
    offset = 0
    for name, lazy in tensors.items():
        if offset >= start:
            yield name, lazy
        offset += lazy.spec.num_bytes


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


def _check(name: str, tensor: Tensor, promised: TensorSpec) -> None:
    if promised != TensorSpec(tensor.dtype, tensor.shape):
        raise ValueError(f"the header promised {promised}, but {name} {tensor.dtype} {tensor.shape} came")


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    return flat.numpy().data
