"""A checkpoint of random numbers: every part of a variant at full size, made on the device as it is read.

It answers like any other checkpoint, so loading it is loading: the same names, the same strict filling of
the same modules, and FP8 made by the same recipe and the same rounding as `sd35 quantize`. Each tensor is
drawn from a seed that is its name, so all engines of a run get the same weights.

Zeros would be no stand-in: a card draws less power for them and clocks higher. A weight has the standard
deviation 1 / sqrt(fan in), which keeps activations near 1 from layer to layer; norms are near 1, biases
small. Text is cut by the demo model's tokenizers, whose ids every real vocabulary has.
"""

import zlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sd35.bench.work import Shapes
from sd35.checkpoints.full_size import PARTS, config_of
from sd35.checkpoints.reader import TensorSpec
from sd35.checkpoints.sizes import config_size, layout_of
from sd35.checkpoints.source import TensorSource
from sd35.checkpoints.store import locate
from sd35.quantization.planned import planned
from sd35.quantization.recipe import Recipe
from sd35.runtime.embeds import PromptEmbeds

_NORM_SPREAD, _BIAS = 0.1, 0.02


class RandomCheckpoint:
    """A `Checkpoint` whose tensors are drawn when they are read; FP8 where there is a recipe."""

    parts = PARTS

    def __init__(self, variant: str, device: torch.device, recipe: Recipe | None = None) -> None:
        self.path = Path(f"{variant} with random weights")
        self._variant, self._device, self._recipe = variant, device, recipe

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of the variant's own checkpoint."""
        return config_of(self._variant, part)

    def tensors(self, part: str) -> TensorSource:
        """The part's tensors: bf16, or FP8 as the recipe says."""
        layout = layout_of(config_size(part, self.config(part)))
        return planned(part, layout, partial(random_tensor, device=self._device), self._recipe)

    def files(self, part: str) -> list[Path]:
        """None: nothing of it is on a disk."""
        return []

    def folder(self, part: str) -> Path:
        """Where the tokenizers lie: the demo model's."""
        return locate("demo") / part


def random_tensor(name: str, spec: TensorSpec, device: torch.device) -> Tensor:
    """The tensor of that name, on the device: equal for equal names, shapes and kinds of device."""
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    values = torch.randn(spec.shape, generator=generator, device=device, dtype=spec.dtype)
    if len(spec.shape) > 1:
        return values.mul_(spec.shape[1:].numel() ** -0.5)
    return values.mul_(_BIAS) if name.endswith(".bias") else values.mul_(_NORM_SPREAD).add_(1)


def random_embeds(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> PromptEmbeds:
    """Embeds of a batch as text encoders would give them: one row for each row of the step."""
    size, generator = shapes.size, torch.Generator(device).manual_seed(0)
    sequence = (shapes.rows, shapes.text_tokens, size.text_channels)
    pooled = (shapes.rows, size.pooled_channels)
    return PromptEmbeds(
        *(torch.randn(shape, generator=generator, device=device, dtype=dtype) for shape in (sequence, pooled))
    )
