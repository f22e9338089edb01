"""The VAE's encoder: pixels -> latents, an eighth as wide and as high, where a picture begins with another.

It mirrors the decoder (`vae.py`, whose layers it is made of): residual blocks, three halvings, one attention
in the middle. What comes out is a distribution, a mean and a log-variance for each of 16 x H/8 x W/8 numbers,
and the mean is taken. diffusers draws a sample from it, with the seed's first random numbers; without that
draw a seed means the same noise as it does from text alone, and an image always the same latents.

Shapes: B batch, C channels, H x W. Source: `AutoencoderKL` of diffusers, which the tests hold this to.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sd35.kernels import reference
from sd35.kernels.api import Operations
from sd35.runtime.vae import PIXEL_CHANNELS, Attention, Conv, Ending, Resnet, VaeConfig
from sd35.variants import LATENT_CHANNELS

TO_LATENTS = ""  # the last stage: a checkpoint has no common name for its two layers


class Downsample(nn.Module):
    """Half as wide and as high: every second place of a convolution that looks right and down."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels, 3)

    def forward(self, x: Tensor, operations: Operations) -> Tensor:
        """[B, C, H, W] -> [B, C, H/2, W/2]."""
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.conv.weight, self.conv.bias, stride=2)


class VaeEncoder(nn.Module):
    """The stages in their order; `names` are what a checkpoint calls them, under `encoder.`."""

    prefix = "encoder."

    def __init__(self, config: VaeConfig, operations: Operations = reference) -> None:
        super().__init__()
        self.config, self.operations = config, operations
        stages = dict(_stages(config))
        self.names = tuple(stages)
        self.stages = nn.ModuleList(stages.values())

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, 8H, 8W] in -1..1 -> the model's latents [B, 16, H, W] in float32."""
        dtype = next(self.parameters()).dtype
        x = pixels.to(dtype, memory_format=torch.channels_last)
        for stage in self.stages:
            x = stage(x, self.operations)
        mean = x[:, :LATENT_CHANNELS].float()
        return (mean - self.config.shift_factor) * self.config.scaling_factor


def _stages(config: VaeConfig) -> Iterator[tuple[str, nn.Module]]:
    groups, width = config.groups, config.channels[0]
    yield "conv_in", Conv(PIXEL_CHANNELS, width, 3)
    for level, channels in enumerate(config.channels):
        for i in range(config.layers_per_level):
            yield f"down_blocks.{level}.resnets.{i}", Resnet(width, channels, groups)
            width = channels
        if level < len(config.channels) - 1:
            yield f"down_blocks.{level}.downsamplers.0", Downsample(width)
    yield "mid_block.resnets.0", Resnet(width, width, groups)
    yield "mid_block.attentions.0", Attention(width, groups)
    yield "mid_block.resnets.1", Resnet(width, width, groups)
    yield TO_LATENTS, Ending(width, 2 * LATENT_CHANNELS, groups)  # means and log-variances
