"""Compose training pictures on the device: renderings laid on a coloured canvas.

Nothing is stored but 1,200 renderings. A picture is sampled backwards: for every pixel of the canvas,
compute where it falls in the rendering, read colour and alpha there, and blend over the background.
Jitter of place and size is then a shift and a scale of coordinates, and a crop of the canvas is the
same computation on fewer pixels. Colours are kept multiplied by alpha, or transparent black would
bleed into the edges. Scenes of two subjects read a half-size copy, so that shrinking does not alias.

Shapes: B pictures, S canvas pixels a side, R rendering pixels a side. Values are in 0..1.
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

    def alone(self, pair: Tensor, colour: Tensor, generator: torch.Generator, size: int = CANVAS) -> Tensor:
        """One subject on each background, [B, 3, size, size]; a size under 256 is a random crop."""
        origin = self._origin(len(pair), size, generator)
        ground = self._ground(colour, size)
        return self._lay(ground, self.large[pair], ALONE, origin, generator)

    def side_by_side(
        self, left: Tensor, right: Tensor, colour: Tensor, generator: torch.Generator, size: int = CANVAS
    ) -> Tensor:
        """Two subjects on each background, [B, 3, size, size]."""
        origin = self._origin(len(left), size, generator)
        picture = self._lay(self._ground(colour, size), self.small[left], LEFT, origin, generator)
        return self._lay(picture, self.small[right], RIGHT, origin, generator)

    def _ground(self, colour: Tensor, size: int) -> Tensor:
        return self.colours[colour][:, :, None, None].expand(-1, -1, size, size)

    def _origin(self, count: int, size: int, generator: torch.Generator) -> Tensor:
        """Random upper left corners of crops, [B, 2] as (across, down)."""
        return torch.rand(count, 2, generator=generator, device=self.device) * (CANVAS - size)

    def _lay(
        self, ground: Tensor, rendering: Tensor, place: Placement, origin: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Blend renderings [B, 4, R, R] over `ground` at jittered places."""
        draw = torch.rand(len(ground), 3, generator=generator, device=self.device)
        jitter = torch.tensor([place.jitter_across, place.jitter_down], device=self.device)
        middle = torch.tensor([place.across, CANVAS / 2], device=self.device)
        centre = middle + (2 * draw[:, :2] - 1) * jitter
        extent = place.smallest + draw[:, 2:] * (place.largest - place.smallest)
        steps = torch.arange(ground.shape[-1], device=self.device) + 0.5
        # Canvas pixels as -1..1 across the rendering, [B, S] for each axis.
        across = (steps + origin[:, :1] - centre[:, :1]) * (2 / extent)
        down = (steps + origin[:, 1:] - centre[:, 1:]) * (2 / extent)
        size = len(steps)
        grid = torch.stack(
            [across[:, None, :].expand(-1, size, -1), down[:, :, None].expand(-1, -1, size)], dim=-1
        )
        sampled = F.grid_sample(rendering.float(), grid, align_corners=False)
        return ground * (1 - sampled[:, 3:]) + sampled[:, :3]


def _premultiplied(pixels: Tensor) -> Tensor:
    """[N, RGBA, R, R] bytes to 0..1 in half precision, colours times alpha."""
    values = pixels.half() / 255
    values[:, :3] *= values[:, 3:]
    return values
