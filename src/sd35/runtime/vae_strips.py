"""The VAE's decoder in strips: the picture of the whole, at a third of its memory, without seams.

Tiles decoded by themselves don't fit one another: every GroupNorm would take a tile's statistics for the
picture's, and the attention in the middle would see a tile alone. So nothing here is decoded by itself. The
stages up to the first doubling run whole, as they are small (the attention asks for some places at a time).
From there on activations are strips of rows, and three things keep them equal to the whole's:

- A convolution reads one row more above and below than it writes, and zeros at the picture's own edges alone.
- A norm's statistics are gathered from all strips before any strip is normed, and mean and variance of the
  strips combine to the picture's exactly (Chan, Golub and LeVeque 1979).
- What a second norm needs of a first convolution is computed twice, for its statistics and for its result,
  and a doubled picture is never there as a whole: both would be the largest activations of all.

A strip of the input is forgotten when the last strip of the output that reads it is done, so a block needs
one activation and a few strips. Arithmetic: twice the whole's, and a few dozen launches for each strip of
each block, which a card does faster than a CPU launches them: strips are as high as memory allows, and
nothing here waits for the card. Shapes: B = 1, C channels, H x W.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sd35.kernels.api import Operations
from sd35.runtime.vae import Attention, Ending, Norm, Resnet, Upsample, VaeDecoder

WIDE, NARROW = 128, 32  # rows of a strip, at every level: where channels double, the width is half
MOST_QUERIES = 1024  # of the attention: 16,384 places at 1024 x 1024 pixels
BLOCK_HALO = 2  # rows beyond a strip that a residual block reads: one for each convolution

Read = Callable[[int, int], Tensor]  # (top, bottom) -> those rows [B, C, bottom - top, W]


class Rows(Protocol):
    """An activation that is read by rows, and forgotten from the top."""

    @property
    def height(self) -> int:
        """How many there are."""
        ...

    def read(self, top: int, bottom: int) -> Tensor:
        """The rows from `top` to before `bottom`."""
        ...

    def forget_above(self, row: int) -> None:
        """Nobody will read what is above that row again."""
        ...


class Kept:
    """An activation that is there, strip after strip."""

    def __init__(self) -> None:
        self.height = 0
        self._pieces: list[tuple[int, Tensor]] = []  # (first row, rows), from the top

    def append(self, piece: Tensor) -> None:
        """Further rows, below those that are there."""
        self._pieces.append((self.height, piece))
        self.height += piece.shape[2]

    def read(self, top: int, bottom: int) -> Tensor:
        """A view where one piece has all of the rows, else a copy."""
        found = [
            piece[:, :, max(top - first, 0) : bottom - first]
            for first, piece in self._pieces
            if first < bottom and top < first + piece.shape[2]
        ]
        return found[0] if len(found) == 1 else torch.cat(found, dim=2)

    def forget_above(self, row: int) -> None:
        """Let go of pieces that end there or before."""
        self._pieces = [(first, piece) for first, piece in self._pieces if first + piece.shape[2] > row]


class Doubled:
    """An activation twice as wide and as high, which is made when it is read."""

    def __init__(self, stage: Upsample, source: Rows) -> None:
        self._stage, self._source = stage, source
        self.height = 2 * source.height

    def read(self, top: int, bottom: int) -> Tensor:
        """Values doubled, and the convolution over them."""
        return _convolved(self._stage.conv, self._values, top, bottom, self.height)

    def forget_above(self, row: int) -> None:
        """The convolution reads one row above, and a row of the source serves two."""
        self._source.forget_above((row - 1) // 2)

    def _values(self, top: int, bottom: int) -> Tensor:
        first = top // 2
        doubled = F.interpolate(self._source.read(first, -(-bottom // 2)), scale_factor=2.0, mode="nearest")
        return doubled[:, :, top - 2 * first : bottom - 2 * first]


@dataclass(frozen=True)
class Cut:
    """How a decode is cut: who computes, and rows of a strip."""

    operations: Operations
    rows: int

    def strips(self, height: int) -> list[tuple[int, int]]:
        """Each strip's first row and the one behind its last."""
        return [(top, min(top + self.rows, height)) for top in range(0, height, self.rows)]


def in_strips(decoder: VaeDecoder, x: Tensor, rows: int = NARROW) -> Tensor:
    """What the decoder reads, of one picture [1, 16, H, W] -> pixels [1, 3, 8H, 8W]; so many rows a strip."""
    assert len(x) == 1, "rows of one picture lie in one stretch of memory, those of two don't"
    stages = iter(decoder.stages)
    for stage in stages:
        if isinstance(stage, Upsample):
            return _in_rows(stage, stages, _kept([x]), Cut(decoder.operations, rows))
        x = _small(stage, x, decoder.operations)
    return x


def _in_rows(doubling: Upsample, following: Iterator[nn.Module], source: Rows, cut: Cut) -> Tensor:
    """From the first doubling to the pixels."""
    rows: Rows = Doubled(doubling, source)
    for stage in following:
        if isinstance(stage, Upsample):
            rows = Doubled(stage, rows)
        elif isinstance(stage, Resnet):
            rows = _resnet(stage, rows, cut)
        else:
            assert isinstance(stage, Ending), f"{type(stage).__name__} is no stage of strips"
            rows = _to_pixels(stage, rows, cut)
    return rows.read(0, rows.height)


def _small(stage: nn.Module, x: Tensor, operations: Operations) -> Tensor:
    if isinstance(stage, Attention):
        return stage(x, operations, MOST_QUERIES)
    out: Tensor = stage(x, operations)
    return out


def _resnet(stage: Resnet, source: Rows, cut: Cut) -> Rows:
    normed = _normed(stage.norm1, source.read, source.height, cut)

    def inner(top: int, bottom: int) -> Tensor:
        """The first convolution's result without its bias."""
        return _convolved(stage.conv1.product, normed, top, bottom, source.height)

    normed_again = _normed(stage.norm2, inner, source.height, cut, stage.conv1.bias)
    out = Kept()
    for top, bottom in cut.strips(source.height):
        branch = _convolved(stage.conv2.product, normed_again, top, bottom, source.height)
        out.append(stage.joined(source.read(top, bottom), branch, cut.operations))
        source.forget_above(bottom - BLOCK_HALO)
    return out


def _to_pixels(stage: Ending, source: Rows, cut: Cut) -> Rows:
    normed = _normed(stage.conv_norm_out, source.read, source.height, cut)
    return _kept(
        _convolved(stage.conv_out, normed, top, bottom, source.height)
        for top, bottom in cut.strips(source.height)
    )


def _normed(norm: Norm, read: Read, height: int, cut: Cut, added: Tensor | None = None) -> Read:
    """What reads rows normed by the whole picture's statistics, which are gathered now."""
    parts = [
        (cut.operations.group_statistics(read(top, bottom), norm.groups, added), bottom - top)
        for top, bottom in cut.strips(height)
    ]
    statistics = combined(parts)
    return lambda top, bottom: cut.operations.group_norm(
        read(top, bottom), statistics, norm.weight, norm.bias, added, silu=True
    )


def combined(parts: list[tuple[Tensor, int]]) -> Tensor:
    """Statistics [B, groups, 2] of strips, each with its rows -> the statistics of all rows together."""
    weights = _shares([rows for _, rows in parts], parts[0][0])
    means, variances = torch.stack([statistics for statistics, _ in parts]).unbind(dim=-1)
    mean = (weights * means).sum(dim=0)
    variance = (weights * (variances + (means - mean).square())).sum(dim=0)
    return torch.stack([mean, variance], dim=-1)


def _shares(rows: list[int], like: Tensor) -> Tensor:
    """Of each strip in all rows [N, 1, 1]; filled on the device: for a list from the host we would wait."""
    runs = [(count, len(list(run))) for count, run in groupby(rows)]
    return torch.cat([like.new_full((length, 1, 1), count / sum(rows)) for count, length in runs])


def _convolved(
    convolve: Callable[[Tensor], Tensor], read: Read, top: int, bottom: int, height: int
) -> Tensor:
    """Rows of a 3 x 3 convolution's result; the rows beyond, which see zeros for neighbours, are cut off."""
    first = max(top - 1, 0)
    rows = convolve(read(first, min(bottom + 1, height)))
    return rows[:, :, top - first : bottom - first]


def _kept(pieces: Iterator[Tensor] | list[Tensor]) -> Kept:
    kept = Kept()
    for piece in pieces:
        kept.append(piece)
    return kept
