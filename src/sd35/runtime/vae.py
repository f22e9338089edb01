"""The VAE's decoder: latents of 16 channels -> pixels, eight times as wide and as high.

It is a list of stages, from the first convolution to the last: residual blocks, one attention in the middle,
three doublings. Almost all of its arithmetic is 3 x 3 convolutions, almost all of the rest is memory traffic,
and the traffic is what a plain network wastes. Three habits keep it small:

- Activations are channels-last: a pixel's channels lie side by side, as tensor cores read them. Nothing is
  ever permuted.
- GroupNorm and SiLU are one operation in two parts, statistics and application (`kernels`). Statistics are
  a few numbers a picture, so a picture cut into strips can share them.
- A convolution's bias would be a pass over its whole result. Where something reads that result anyway, the
  reader adds it: the next norm (`added`), or the sum that ends a residual block.

The encoder, of the same layers, is `vae_encoder.py`. Shapes: B batch, C channels, H x W.
Source: arXiv 2112.10752; `AutoencoderKL` of diffusers, which the tests hold this to.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sd35.kernels import reference
from sd35.kernels.api import Operations
from sd35.variants import LATENT_CHANNELS

PIXEL_CHANNELS = 3
TO_PIXELS = ""  # the last stage: a checkpoint has no common name for its two layers


@dataclass(frozen=True)
class VaeConfig:
    """The numbers of a VAE; `channels` from the finest level to the coarsest.

    The model's latents are (z - shift_factor) * scaling_factor of what the decoder reads.
    """

    channels: tuple[int, ...]
    layers_per_level: int  # of the encoder; the decoder has one more
    groups: int  # of every GroupNorm
    scaling_factor: float
    shift_factor: float


class Norm(nn.Module):
    """GroupNorm, with SiLU after it or without."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(
        self, x: Tensor, operations: Operations, *, added: Tensor | None = None, silu: bool = True
    ) -> Tensor:
        """GroupNorm(x + added), then SiLU: x [B, C, H, W], added [C]."""
        statistics = operations.group_statistics(x, self.groups, added)
        return operations.group_norm(x, statistics, self.weight, self.bias, added, silu=silu)


class Conv(nn.Module):
    """A convolution that keeps the size, and whose bias others may add."""

    def __init__(self, channels: int, out_channels: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, channels, size, size))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.margin = size // 2

    def forward(self, x: Tensor, operations: Operations | None = None) -> Tensor:
        """[B, C, H, W] -> [B, C', H, W]; no kernel of ours takes part."""
        return F.conv2d(x, self.weight, self.bias, padding=self.margin)

    def product(self, x: Tensor) -> Tensor:
        """The same with the bias still to be added."""
        return F.conv2d(x, self.weight, padding=self.margin)


class Resnet(nn.Module):
    """Two convolutions, each behind its norm, beside a shortcut."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = Norm(channels, groups)
        self.conv1 = Conv(channels, out_channels, 3)
        self.norm2 = Norm(out_channels, groups)
        self.conv2 = Conv(out_channels, out_channels, 3)
        self.shortcut = Conv(channels, out_channels, 1) if channels != out_channels else None

    def forward(self, x: Tensor, operations: Operations) -> Tensor:
        """[B, C, H, W] -> [B, C', H, W]."""
        inner = self.conv1.product(self.norm1(x, operations))
        branch = self.conv2.product(self.norm2(inner, operations, added=self.conv1.bias))
        return self.joined(x, branch, operations)

    def joined(self, x: Tensor, branch: Tensor, operations: Operations) -> Tensor:
        """The block's end: its input, by the shortcut, and the branch, whose bias is still to be added."""
        if self.shortcut is None:
            return operations.add_branch(x, branch, self.conv2.bias)
        bias = self.conv2.bias.float() + self.shortcut.bias.float()
        return operations.add_branch(self.shortcut.product(x), branch, bias)


class Attention(nn.Module):
    """Every place of the picture attends to every other: one head, as wide as the activations."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = Norm(channels, groups)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, operations: Operations, most_queries: int | None = None) -> Tensor:
        """[B, C, H, W] -> the same shape; channels-last, the tokens [B, H * W, C] are a view of it.

        `most_queries` places ask at a time (all): an attention that writes all scores down has fewer then.
        """
        tokens = self.group_norm(x, operations, silu=False).permute(0, 2, 3, 1).flatten(1, 2)
        q, k, v = self.qkv(tokens)[:, None].chunk(3, dim=-1)
        queries = q.split(most_queries or q.shape[2], dim=2)
        answers = [F.scaled_dot_product_attention(some, k, v)[:, 0] for some in queries]
        attended = self.to_out(torch.cat(answers, dim=1) if len(answers) > 1 else answers[0])
        return x + attended.unflatten(1, x.shape[-2:]).permute(0, 3, 1, 2)


class Upsample(nn.Module):
    """Twice as wide and as high: every value four times, and a convolution over them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels, 3)

    def forward(self, x: Tensor, operations: Operations) -> Tensor:
        """[B, C, H, W] -> [B, C, 2H, 2W]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Ending(nn.Module):
    """The last norm and the convolution to what comes out: pixels, or in the encoder latents."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.conv_norm_out = Norm(channels, groups)
        self.conv_out = Conv(channels, out_channels, 3)

    def forward(self, x: Tensor, operations: Operations) -> Tensor:
        """[B, C, H, W] -> [B, out, H, W]."""
        return self.conv_out(self.conv_norm_out(x, operations))


class VaeDecoder(nn.Module):
    """The stages in their order; `names` are what a checkpoint calls them, under `decoder.`."""

    prefix = "decoder."

    def __init__(self, config: VaeConfig, operations: Operations = reference) -> None:
        super().__init__()
        self.config, self.operations = config, operations
        stages = dict(_stages(config))
        self.names = tuple(stages)
        self.stages = nn.ModuleList(stages.values())
        self.walk: Walk = whole  # or `vae_strips.in_strips`, where memory is short

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return next(self.parameters()).dtype

    def forward(self, latents: Tensor) -> Tensor:
        """The model's latents [B, 16, H, W] -> pixels [B, 3, 8H, 8W] around -1..1, in our dtype."""
        z = latents.float() / self.config.scaling_factor + self.config.shift_factor
        x = z.to(self.dtype, memory_format=torch.channels_last)
        return self.walk(self, x)


def whole(decoder: VaeDecoder, x: Tensor) -> Tensor:
    """Through all stages, the picture in one piece."""
    for stage in decoder.stages:
        x = stage(x, decoder.operations)
    return x


Walk = Callable[[VaeDecoder, Tensor], Tensor]  # what the decoder reads [B, 16, H, W] -> pixels [B, 3, 8H, 8W]


def _stages(config: VaeConfig) -> Iterator[tuple[str, nn.Module]]:
    groups, width = config.groups, config.channels[-1]
    yield "conv_in", Conv(LATENT_CHANNELS, width, 3)
    yield "mid_block.resnets.0", Resnet(width, width, groups)
    yield "mid_block.attentions.0", Attention(width, groups)
    yield "mid_block.resnets.1", Resnet(width, width, groups)
    for level, channels in enumerate(reversed(config.channels)):
        for i in range(config.layers_per_level + 1):
            yield f"up_blocks.{level}.resnets.{i}", Resnet(width, channels, groups)
            width = channels
        if level < len(config.channels) - 1:
            yield f"up_blocks.{level}.upsamplers.0", Upsample(width)
    yield TO_PIXELS, Ending(width, PIXEL_CHANNELS, groups)
