"""One pass over a file: its SHA-256, and which of its tensors hold NaN or infinity.

Verifying is bound by reading and hashing, so the file is read once. The hash runs in a thread of its own
while the same bytes, still in the cache, are searched for values that are not finite; both release the
interpreter lock. Memory stays at a few pieces, whatever the file's size.

A value is not finite when all bits of its exponent are set. Seen as an unsigned integer without its sign it
is then at least as large as infinity's pattern, in every format of IEEE 754 and in E5M2. E4M3 has no
infinity: its one NaN pattern is 0x7f.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sd35.checkpoints.files import open_regular
from sd35.checkpoints.header import Header

_PIECE = 4 << 20  # bytes; a multiple of every item's size
_BLOCK = 128 << 10  # bytes searched at once: these and their scratch stay in the second-level cache
_BUFFERS = 3

# dtype -> unsigned view, all bits but the sign, smallest pattern that is not finite
_PATTERNS: dict[str, tuple[type[np.unsignedinteger[Any]], int, int]] = {
    "F64": (np.uint64, 2**63 - 1, 0x7FF0 << 48),
    "F32": (np.uint32, 2**31 - 1, 0x7F80 << 16),
    "F16": (np.uint16, 0x7FFF, 0x7C00),
    "BF16": (np.uint16, 0x7FFF, 0x7F80),
    "F8_E4M3": (np.uint8, 0x7F, 0x7F),
    "F8_E5M2": (np.uint8, 0x7F, 0x7C),
}


@dataclass(frozen=True)
class Scan:
    """What a file's bytes are: size, SHA-256, git's blob hash, the tensors with NaN or infinity in them."""

    size: int
    sha256: str
    git_blob: str | None
    not_finite: tuple[str, ...]


@dataclass(frozen=True)
class _Stretch:
    """Consecutive bytes of one kind: a tensor's, or others (no dtype), which are hashed and not searched."""

    length: int
    tensor: str = ""
    dtype: str | None = None


def scan(
    path: Path, header: Header | None, progress: Callable[[int], None] | None = None, *, as_git: bool = False
) -> Scan:
    """Read a file once; `progress` is told the bytes of each piece. `as_git` adds git's blob hash."""
    with open_regular(path) as file, ThreadPoolExecutor(max_workers=1) as hasher:
        size = file.seek(0, 2)
        file.seek(0)
        sha256, git_blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        sums = (sha256, git_blob) if as_git else (sha256,)
        bad: dict[str, None] = {}
        pending: deque[Future[None]] = deque()
        for stretch, piece in _pieces(file, _stretches(header, size), pending):
            pending.append(hasher.submit(_update, sums, piece))
            if stretch.tensor not in bad and _has_non_finite(piece, stretch.dtype):
                bad[stretch.tensor] = None
            if progress is not None:
                progress(len(piece))
        for future in pending:
            future.result()
    return Scan(size, sha256.hexdigest(), git_blob.hexdigest() if as_git else None, tuple(bad))


def _stretches(header: Header | None, size: int) -> Iterator[_Stretch]:
    """The file from its first byte to its last."""
    if header is None:
        yield _Stretch(size)
        return
    yield _Stretch(header.data_start)
    for name, entry in sorted(header.entries.items(), key=lambda item: item[1].begin):
        yield _Stretch(entry.end - entry.begin, name, entry.dtype)


def _pieces(
    file: BinaryIO, stretches: Iterator[_Stretch], pending: deque[Future[None]]
) -> Iterator[tuple[_Stretch, memoryview]]:
    """The stretches, read piece by piece into a ring of buffers; one is reused when its hash is done."""
    ring = [bytearray(_PIECE) for _ in range(_BUFFERS)]
    turn = 0
    for stretch in stretches:
        left = stretch.length
        while left > 0:
            while len(pending) >= _BUFFERS - 1:
                pending.popleft().result()
            piece = memoryview(ring[turn])[: min(left, _PIECE)]
            read = file.readinto(piece)  # type: ignore[attr-defined]
            if read != len(piece):
                raise OSError("the file became shorter while it was read")
            yield stretch, piece
            left -= read
            turn = (turn + 1) % _BUFFERS


def _update(sums: tuple[Any, ...], piece: memoryview) -> None:
    for one in sums:
        one.update(piece)


def _has_non_finite(piece: memoryview, dtype: str | None) -> bool:
    if dtype not in _PATTERNS:
        return False
    kind, magnitude, infinity = _PATTERNS[dtype]
    bits = np.frombuffer(piece, dtype=kind)
    step = _BLOCK // bits.itemsize
    scratch = np.empty(min(step, bits.size), dtype=kind)
    for begin in range(0, bits.size, step):
        block = bits[begin : begin + step]
        if np.bitwise_and(block, kind(magnitude), out=scratch[: block.size]).max() >= infinity:
            return True
    return False
