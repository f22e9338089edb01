"""Compose training pictures on the device: renderings laid on a coloured canvas.

Nothing is stored but 1,200 renderings. A picture is sampled backwards: for every pixel of the canvas,
compute where it falls in the rendering, read colour and alpha there, and blend over the background.
Jitter of place and size is then a shift and a scale of coordinates. Colours are kept multiplied by
alpha, or transparent black would bleed into the edges. Scenes of two subjects read a half-size copy, so
that shrinking does not alias.

Shapes: B pictures, R rendering pixels a side. Values are in 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .vocabulary import Vocabulary

CANVAS = 256


@dataclass(frozen=True)
class Placement:
    """Where subjects go: mean centre across, jitter in pixels, smallest and largest size."""

    across: float
    jitter_across: float
    jitter_down: float
    smallest: float
    largest: float


ALONE = Placement(128.0, 8.0, 8.0, 184.0, 216.0)
LEFT = Placement(66.0, 5.0, 10.0, 102.0, 118.0)
RIGHT = Placement(190.0, 5.0, 10.0, 102.0, 118.0)


class Composer:
    """The renderings on one device, and the pictures made of them."""

    def __init__(self, renderings: NDArray[np.uint8], vocabulary: Vocabulary, device: torch.device) -> None:
        pixels = torch.from_numpy(renderings).to(device).permute(0, 3, 1, 2)
        self.large = _premultiplied(pixels)
        self.small = F.avg_pool2d(self.large.float(), 2).to(self.large.dtype)
        self.colours = torch.tensor([colour.rgb for colour in vocabulary.colours], device=device) / 255
        self.styles = len(vocabulary.styles)
        self.device = device

    def pair(self, subject: Tensor, style: Tensor) -> Tensor:
        """The index of a rendering."""
        return subject * self.styles + style

    def alone(self, pair: Tensor, colour: Tensor, generator: torch.Generator) -> Tensor:
        """One subject on each background, [B, 3, 256, 256]."""
        return self._lay(self._ground(colour), self.large[pair], ALONE, generator)

    def side_by_side(self, left: Tensor, right: Tensor, colour: Tensor, generator: torch.Generator) -> Tensor:
        """Two subjects on each background, [B, 3, 256, 256]."""
        picture = self._lay(self._ground(colour), self.small[left], LEFT, generator)
        return self._lay(picture, self.small[right], RIGHT, generator)

    def _ground(self, colour: Tensor) -> Tensor:
        return self.colours[colour][:, :, None, None].expand(-1, -1, CANVAS, CANVAS)

    def _lay(self, ground: Tensor, rendering: Tensor, place: Placement, generator: torch.Generator) -> Tensor:
        """Blend renderings [B, 4, R, R] over `ground` at jittered places."""
        draw = torch.rand(len(ground), 3, generator=generator, device=self.device)
        jitter = torch.tensor([place.jitter_across, place.jitter_down], device=self.device)
        middle = torch.tensor([place.across, CANVAS / 2], device=self.device)
        centre = middle + (2 * draw[:, :2] - 1) * jitter
        extent = place.smallest + draw[:, 2:] * (place.largest - place.smallest)
        steps = torch.arange(CANVAS, device=self.device) + 0.5
        # Canvas pixels as -1..1 across the rendering, [B, 256] for each axis.
        across = (steps - centre[:, :1]) * (2 / extent)
        down = (steps - centre[:, 1:]) * (2 / extent)
        grid = torch.stack(
            [across[:, None, :].expand(-1, CANVAS, -1), down[:, :, None].expand(-1, -1, CANVAS)], dim=-1
        )
        sampled = F.grid_sample(rendering.float(), grid, align_corners=False)
        return ground * (1 - sampled[:, 3:]) + sampled[:, :3]


def _premultiplied(pixels: Tensor) -> Tensor:
    """[N, RGBA, R, R] bytes to 0..1 in half precision, colours times alpha."""
    values = pixels.half() / 255
    values[:, :3] *= values[:, 3:]
    return values
