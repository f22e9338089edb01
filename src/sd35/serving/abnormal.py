"""What is wrong with a finished picture, as far as its pixels tell; numpy only, and no model.

A faulty weight, an overflow or a device that errs shows in one of six ways: the latents were not finite; the
picture is black; it has one colour; nearly every value sits on a rail; neighbouring pixels have nothing to do
with one another, as in noise; or another seed gave the same picture. Each of them may be what a prompt asks
for ("a black square"), so one alone accuses nobody: `breaker.py` waits for several in a row and then draws
the last one again in 16 bits.

The bounds are wide of what pictures have: see tests/serving/test_abnormal.py, which holds them against drawn
ones. The order is that of the table: the first reason that holds is told.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sd35.serving.messages import RawImage

Plane = NDArray[np.float32]

DARK = 16.0  # luma, of 255
BRIGHT_SHARE = 0.001  # of the pixels may be brighter in a picture that is called black
FLAT = 2.0  # standard deviation of a channel, of 255
RAILS_SHARE = 0.98  # of all values are 0 or 255
NOISE_CORRELATION = 0.2  # of neighbours; photographs and drawings have 0.8 and more
THUMBNAIL = 16  # cells a side
SAME = 0.5  # of 255: largest difference of two thumbnails that are called equal
REMEMBERED = 16  # pictures
_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)  # ITU-R BT.709


@dataclass(frozen=True)
class _Seen:
    seed: int
    thumbnail: Plane


class Eye:
    """Looks at one worker's pictures, one after the other, and remembers the last few."""

    def __init__(self) -> None:
        self._seen: deque[_Seen] = deque(maxlen=REMEMBERED)

    def look(
        self, images: Sequence[RawImage], seeds: Sequence[int], finite: Sequence[bool]
    ) -> tuple[str | None, ...]:
        """What is wrong with each picture, None where nothing is; an empty `finite` means that all are."""
        flags = finite or [True] * len(images)
        rows = zip(images, seeds, flags, strict=True)
        return tuple(self._judge(image, seed, is_finite=flag) for image, seed, flag in rows)

    def _judge(self, image: RawImage, seed: int, *, is_finite: bool) -> str | None:
        pixels = np.frombuffer(image.rgb, np.uint8).reshape(image.height, image.width, 3)
        if not is_finite:
            return "not_finite"
        return wrong_in_itself(pixels) or self._repeated(pixels, seed)

    def _repeated(self, pixels: NDArray[np.uint8], seed: int) -> str | None:
        mine = _Seen(seed, thumbnail(pixels))
        others = [
            one for one in self._seen if one.seed != seed and one.thumbnail.shape == mine.thumbnail.shape
        ]
        self._seen.append(mine)
        is_same = any(np.abs(one.thumbnail - mine.thumbnail).max() < SAME for one in others)
        return "identical" if is_same else None


def wrong_in_itself(pixels: NDArray[np.uint8]) -> str | None:
    """What one picture [H, W, 3] shows without any other."""
    luma = pixels @ _LUMA
    if (luma > DARK).mean() < BRIGHT_SHARE:
        return "black"
    if pixels.std(axis=(0, 1)).max() < FLAT:
        return "flat"
    if ((pixels == 0) | (pixels == 255)).mean() > RAILS_SHARE:
        return "saturated"
    return "noise" if correlation(luma) < NOISE_CORRELATION else None


def correlation(luma: Plane) -> float:
    """Of each pixel with its right and its lower neighbour, the larger of the two; 1 where nothing varies."""
    return max(_correlated(luma[:, 1:], luma[:, :-1]), _correlated(luma[1:], luma[:-1]))


def thumbnail(pixels: NDArray[np.uint8]) -> Plane:
    """Means [cells, cells, 3] over a grid; a side that cells don't divide loses its last pixels."""
    height, width, _ = pixels.shape
    rows, columns = min(THUMBNAIL, height), min(THUMBNAIL, width)
    even = pixels[: height // rows * rows, : width // columns * columns].astype(np.float32)
    return even.reshape(rows, height // rows, columns, width // columns, 3).mean(axis=(1, 3))


def _correlated(a: Plane, b: Plane) -> float:
    if not a.size or not a.std() or not b.std():
        return 1.0
    return float(((a - a.mean()) * (b - b.mean())).mean() / (a.std() * b.std()))
