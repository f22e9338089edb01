"""The MMDiT, SD3.5's denoising network: (noisy latents, text, timestep) -> velocity.

What happens in a step is small: patches in, joint blocks, patches out. All that does not depend on the
latents is computed once a request by `condition`, for every step at once: the text tokens' embedding and
the AdaLN modulations, which need only the timesteps and the pooled text. A third of the parameters work
there and nowhere else, so they can leave the card before the loop begins.

Shapes: B batch, S steps, T tokens, C channels. Source: arXiv 2403.03206.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sd35.kernels.operands import PLAIN, Residual
from sd35.runtime.joint_block import PLAIN_PYTORCH, Engine, JointBlock
from sd35.runtime.stretches import Stretch, hop
from sd35.variants import HEAD_DIM, LATENT_CHANNELS, PATCH_SIZE

FREQUENCIES = 128  # the timestep embedding has this many cosines, then as many sines
FINAL_ROWS = 2  # scale, shift of the last layer's modulation


@dataclass(frozen=True)
class MMDiTConfig:
    """The numbers in which SD3.5 checkpoints differ; everything else is the same in all of them."""

    num_layers: int
    channels: int
    text_channels: int  # of the text tokens (T5's width)
    pooled_channels: int  # of the pooled text (both CLIP projections)
    pos_embed_max_size: int  # tokens along one side of the position table
    dual_attention_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert self.channels % HEAD_DIM == 0, "checked where the config is read"


@dataclass(frozen=True)
class Conditioning:
    """What the network knows of a request: text tokens and, for every step, all modulations in one table.

    `context` [B, T, C]; `table` [S, B, rows, C] holds each block's rows, block after block, and then the
    last layer's (scale, shift).
    """

    context: Tensor
    table: Tensor


class EmbeddingMLP(nn.Module):
    """Two linear layers around a SiLU."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_channels, channels)
        self.fc2 = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., C]."""
        return self.fc2(F.silu(self.fc1(x)))


class MMDiT(nn.Module):
    """SD3.5's transformer, for inference. Layer names are ours; `weights.py` maps the checkpoint's.

    `stretches` are the blocks in their order, by where they lie: one stretch, or more on several cards.
    """

    pos_embed: Tensor

    def __init__(self, config: MMDiTConfig, engine: Engine = PLAIN_PYTORCH) -> None:
        super().__init__()
        self.config, self.engine = config, engine
        channels, last = config.channels, config.num_layers - 1
        self.patch_embed = nn.Conv2d(LATENT_CHANNELS, channels, PATCH_SIZE, stride=PATCH_SIZE)
        self.register_buffer("pos_embed", torch.empty(1, config.pos_embed_max_size**2, channels))
        self.timestep_embed = EmbeddingMLP(2 * FREQUENCIES, channels)
        self.pooled_embed = EmbeddingMLP(config.pooled_channels, channels)
        self.context_embed = nn.Linear(config.text_channels, channels)
        self.blocks = nn.ModuleList(
            JointBlock(channels, is_last=i == last, is_dual=i in config.dual_attention_layers, engine=engine)
            for i in range(config.num_layers)
        )
        self.stretches: tuple[Stretch, ...] = (Stretch(range(config.num_layers)),)
        self.final_modulation = nn.Linear(channels, 2 * channels)
        self.proj_out = nn.Linear(channels, PATCH_SIZE**2 * LATENT_CHANNELS)

    def condition(self, sequence: Tensor, pooled: Tensor, timesteps: Tensor) -> Conditioning:
        """Text tokens [B, T, text], pooled text [B, pooled], timesteps [S] in 0..1000 -> Conditioning."""
        waves = timestep_waves(timesteps).to(pooled.dtype)
        embedded = self.timestep_embed(waves)[:, None] + self.pooled_embed(pooled)  # [S, B, C]
        condition = F.silu(embedded)
        rows = self._table_rows()
        table = condition.new_empty(*condition.shape[:2], sum(rows), condition.shape[-1])
        *places, last = table.split(rows, dim=2)
        blocks = list(self._blocks())
        for stretch in self.stretches:
            with stretch.current():
                there = stretch.bring(condition)
                for i in stretch.blocks:
                    places[i].copy_(blocks[i].modulations(there))
        last.copy_(self.final_modulation(condition).unflatten(-1, (FINAL_ROWS, -1)))
        return Conditioning(self.context_embed(sequence), table)

    def modulation_layers(self) -> list[nn.Module]:
        """The AdaLN layers in the order in which `condition` calls them; nothing else ever does."""
        pairs = [(block.sample_modulation, block.context_modulation) for block in self._blocks()]
        return [*(layer for pair in pairs for layer in pair), self.final_modulation]

    def norms_attending_together(self) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Of each attention: the norms [D] of its streams' queries, and those of their keys."""
        for block in self._blocks():
            joint = [block.sample_attention, block.context_attention]
            for streams in (joint, [block.dual_attention] if block.dual_attention else []):
                if streams:
                    yield [stream.norm_q for stream in streams], [stream.norm_k for stream in streams]

    def forward(
        self, latents: Tensor, context: Tensor, table: Tensor, skip_layers: tuple[int, ...] = ()
    ) -> Tensor:
        """Velocity at `latents` [B, 16, H, W], same shape, without the `skip_layers`.

        `context` [B, T, C] and `table` [B, rows, C] are the conditioning's, the table that of one step.
        """
        height, width = latents.shape[-2] // PATCH_SIZE, latents.shape[-1] // PATCH_SIZE
        sample, text = Residual(self._embed(latents, height, width)), Residual(context)
        for stretch in self.stretches:
            sample, text = self._walk(stretch, sample, text, table, skip_layers)
        sample = hop(sample, latents.device, self.engine.operations)
        scale, shift = table[:, -FINAL_ROWS:].unbind(dim=1)
        _, out = self.engine.operations.modulate(sample, shift, scale, PLAIN)
        return unpatchify(self.proj_out(out), height, width)

    def _walk(
        self, stretch: Stretch, sample: Residual, text: Residual, table: Tensor, skip_layers: tuple[int, ...]
    ) -> tuple[Residual, Residual]:
        """Both streams after a stretch of blocks, where those are."""
        blocks, rows, operations = list(self._blocks()), self._table_rows(), self.engine.operations
        sample, text = stretch.receive(sample, operations), stretch.receive(text, operations)
        first, end = stretch.blocks.start, stretch.blocks.stop
        own_rows = table[:, sum(rows[:first]) : sum(rows[:end])]
        tables = stretch.bring(own_rows).split(rows[first:end], dim=1)
        with stretch.current():
            for i, own in zip(stretch.blocks, tables, strict=True):
                if i not in skip_layers:
                    sample, text = blocks[i](sample, text, own)
        return sample, text

    def _embed(self, latents: Tensor, height: int, width: int) -> Tensor:
        """Latents -> one token a patch [B, height * width, C]: `patch_embed` as one product."""
        patches = latents.unflatten(3, (width, PATCH_SIZE)).unflatten(2, (height, PATCH_SIZE))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        assert self.patch_embed.bias is not None
        start = self._positions(height, width) + self.patch_embed.bias
        weight = self.patch_embed.weight.flatten(1).T
        return torch.baddbmm(start.expand(len(patches), -1, -1), patches, weight.expand(len(patches), -1, -1))

    def _table_rows(self) -> list[int]:
        return [*(block.sample_rows + block.context_rows for block in self._blocks()), FINAL_ROWS]

    def _blocks(self) -> Iterable[JointBlock]:
        return self.blocks  # type: ignore[return-value]

    def _positions(self, height: int, width: int) -> Tensor:
        """The middle of the square position table, [1, height * width, C]."""
        side = self.config.pos_embed_max_size
        top, left = (side - height) // 2, (side - width) // 2
        grid = self.pos_embed.unflatten(1, (side, side))
        return grid[:, top : top + height, left : left + width].flatten(1, 2)


def timestep_waves(timesteps: Tensor) -> Tensor:
    """Sinusoidal embedding of timesteps [S] -> [S, 256], cosines first, in float32."""
    exponents = torch.arange(FREQUENCIES, dtype=torch.float32, device=timesteps.device) / FREQUENCIES
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10_000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def unpatchify(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens [B, height * width, 2 * 2 * 16] -> latents [B, 16, 2 * height, 2 * width]."""
    patches = tokens.unflatten(1, (height, width)).unflatten(-1, (PATCH_SIZE, PATCH_SIZE, LATENT_CHANNELS))
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
