"""Names to tensors, lazily, over one safetensors file or the shards of an index.

A safetensors file is a JSON header (name -> dtype, shape, byte range) and then the bytes. Opening one reads
the header alone, through our own strict gate (`header.py`); a tensor is mapped from the file when it is
asked for, so a model larger than memory can be walked through.

Pages of a mapping count as the process's memory once they are touched, until the mapping goes. Whoever uses
tensors one by one (`stream`) has the file mapped anew every RENEWAL bytes: the old mapping goes with the last
tensor of it. Loading does not want that, as it keeps all tensors anyway.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sd35.checkpoints.files import refuse_special
from sd35.checkpoints.header import Entry, read_header
from sd35.checkpoints.shards import shard_files
from sd35.errors import CheckpointError

# Names of the safetensors format, and what each means to torch.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

RENEWAL = 256 << 20  # bytes read before a streamed file is mapped anew


@dataclass(frozen=True)
class TensorSpec:
    """What a header says of one tensor."""

    dtype: torch.dtype
    shape: torch.Size

    @property
    def num_bytes(self) -> int:
        """Bytes that the tensor takes in the file."""
        return self.shape.numel() * self.dtype.itemsize


class TensorReader:
    """Open safetensors files seen as one mapping; use it as a context manager."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.metadata: dict[str, str] = {}
        self.specs: dict[str, TensorSpec] = {}
        self._files: dict[str, Path] = {}
        self._open_files: dict[Path, Any] = {}
        self._stack = ExitStack()
        self._is_streamed, self._bytes_read = False, 0
        try:
            for path in paths:
                self._open(path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __contains__(self, name: str) -> bool:
        return name in self.specs

    def read(self, name: str) -> Tensor:
        """The tensor of that name, mapped from its file."""
        if self._bytes_read > RENEWAL:
            self._renew()
        if self._is_streamed:
            self._bytes_read += self.specs[name].num_bytes
        tensor: Tensor = self._open_files[self._files[name]].get_tensor(name)
        return tensor

    def stream(self) -> None:
        """From here on tensors are read to be used and dropped: keep the mapped memory small."""
        self._is_streamed = True

    def close(self) -> None:
        """Let go of the files; tensors already read stay valid."""
        self._open_files.clear()
        self._stack.close()

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(spec.num_bytes for spec in self.specs.values())

    def _open(self, path: Path) -> None:
        header = read_header(path)
        self._map(path)
        self.metadata.update(header.metadata)
        for name, entry in header.entries.items():
            if name in self._files:
                raise CheckpointError(f"{path} holds {name}, which another shard holds too: fetch it again.")
            self._files[name] = path
            self.specs[name] = spec_of(entry)

    def _map(self, path: Path) -> None:
        try:
            self._open_files[path] = self._stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is not a readable safetensors file ({error}): fetch or copy it again."
            ) from error

    def _renew(self) -> None:
        self.close()
        self._bytes_read = 0
        for path in self.paths:
            self._map(path)


def spec_of(entry: Entry) -> TensorSpec:
    """A header's entry in torch's words."""
    return TensorSpec(DTYPES[entry.dtype], torch.Size(entry.shape))


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of one component: `<stem>.safetensors`, or the shards that its index names."""
    whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if os.path.lexists(whole):
        refuse_special(whole)
        return [whole]
    if os.path.lexists(index):
        return shard_files(index)
    raise CheckpointError(
        f"{folder} has no {whole.name} (nor shards with an index): that part of the checkpoint is missing, "
        "so fetch or copy it again; weights in pickle files (.bin, .pt, .ckpt) are never read."
    )
