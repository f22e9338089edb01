"""What the parts of a checkpoint will take on a card, read from its headers before anything is loaded.

Bytes are those of the modules as `weights.py` fills them: FP8 stays FP8 with a float32 scale for each row (or
row and K group), everything else takes the compute dtype, the VAE's encoder stays in the file.
"""

from dataclasses import dataclass, field

import torch

from sd35.checkpoints.formats import Checkpoint
from sd35.checkpoints.reader import TensorSpec
from sd35.checkpoints.source import TensorSource
from sd35.fp8 import BLOCK
from sd35.runtime.mmdit import MMDiTConfig
from sd35.runtime.vae import VaeConfig

_SCALE_BYTES = 4


@dataclass(frozen=True)
class Sizes:
    """Bytes of weights by what moves together; shapes for the formulas of activations.

    `modulations` are the AdaLN layers, `largest_modulation` one of them, `block_modulations` those of each
    joint block; `block_bytes` is all else in each of the blocks; `rest` is what the transformer has beside
    both. `t5_tables` is T5 but for its layers. `largest_encoder_layer` is one of T5's where there is T5;
    `encoder_ends` is what all encoders have beside layers and tables.
    """

    clips: tuple[int, int]
    t5_tables: int
    t5_layers: int
    largest_encoder_layer: int
    encoder_ends: int
    modulations: int
    largest_modulation: int
    block_modulations: tuple[int, ...]
    block_bytes: tuple[int, ...]
    rest: int
    vae: int
    mmdit: MMDiTConfig
    vae_config: VaeConfig
    itemsize: int = field(default=2)  # of the compute dtype

    @property
    def encoders(self) -> int:
        """All of the three."""
        return sum(self.clips) + self.t5_tables + self.t5_layers

    @property
    def blocks(self) -> int:
        """All blocks without their AdaLN layers."""
        return sum(self.block_bytes)

    @property
    def total(self) -> int:
        """All weights."""
        return self.encoders + self.modulations + self.blocks + self.rest + self.vae


def sizes_of(checkpoint: Checkpoint, mmdit: MMDiTConfig, vae_config: VaeConfig, dtype: torch.dtype) -> Sizes:
    """The sizes of an open checkpoint whose 16-bit weights are loaded as `dtype`."""
    itemsize = dtype.itemsize
    parts = {
        part: _tensor_bytes(checkpoint, part, itemsize)
        for part in ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae")
        if part in checkpoint.parts
    }
    t5 = parts.get("text_encoder_3", {})
    t5_layers = _grouped(t5, "encoder.block.", 3)
    clips = parts["text_encoder"], parts["text_encoder_2"]
    clip_layers = [size for clip in clips for size in _grouped(clip, "text_model.encoder.layers.", 4)]
    ends = [
        size for encoder in (*clips, t5) for name, size in encoder.items()
        if name.startswith(("text_model.final_layer_norm.", "text_projection.", "encoder.final_layer_norm."))
    ]  # fmt: skip
    transformer = parts["transformer"]
    modulations = _modulations(transformer)
    others = {name: size for name, size in transformer.items() if _layer(name) not in modulations}
    blocks = _grouped(others, "transformer_blocks.", 2)
    return Sizes(
        clips=(sum(clips[0].values()), sum(clips[1].values())),
        t5_tables=sum(t5.values()) - sum(t5_layers),
        t5_layers=sum(t5_layers),
        largest_encoder_layer=max(*clip_layers, *t5_layers),
        encoder_ends=sum(ends),
        modulations=sum(modulations.values()),
        largest_modulation=max(modulations.values()),
        block_modulations=tuple(_grouped(modulations, "transformer_blocks.", 2)),
        block_bytes=tuple(blocks),
        rest=sum(others.values()) - sum(blocks),
        vae=sum(size for name, size in parts["vae"].items() if not name.startswith("encoder.")),
        mmdit=mmdit,
        vae_config=vae_config,
        itemsize=itemsize,
    )


def _tensor_bytes(checkpoint: Checkpoint, part: str, itemsize: int) -> dict[str, int]:
    """Each tensor's bytes once it is loaded; one tensor under two names counts once."""
    with checkpoint.tensors(part) as tensors:
        found = {name: _loaded_bytes(name, spec, tensors, itemsize) for name, spec in tensors.specs.items()}
    if "shared.weight" in found:
        found.pop("encoder.embed_tokens.weight", None)
    return found


def _loaded_bytes(name: str, spec: TensorSpec, tensors: TensorSource, itemsize: int) -> int:
    layer, _, kind = name.rpartition(".")
    if layer in tensors.schemes and kind == "weight":
        return spec.num_bytes
    if layer in tensors.schemes and kind == "weight_scale":
        rows, width = tensors.specs[f"{layer}.weight"].shape
        groups = -(-width // BLOCK) if tensors.schemes[layer].granularity == "blockwise" else 1
        return rows * groups * _SCALE_BYTES
    return spec.shape.numel() * itemsize


def _modulations(transformer: dict[str, int]) -> dict[str, int]:
    """The AdaLN layers by name, and their bytes."""
    found: dict[str, int] = {}
    for name, size in transformer.items():
        layer = _layer(name)
        if layer.endswith(("norm1.linear", "norm1_context.linear")) or layer == "norm_out.linear":
            found[layer] = found.get(layer, 0) + size
    return found


def _grouped(tensors: dict[str, int], prefix: str, depth: int) -> list[int]:
    """Bytes of each numbered layer under a prefix, in their order; a name's word `depth` is the number."""
    found: dict[int, int] = {}
    for name, size in tensors.items():
        if name.startswith(prefix):
            layer = int(name.split(".")[depth - 1])
            found[layer] = found.get(layer, 0) + size
    return [found[layer] for layer in sorted(found)]


def _layer(name: str) -> str:
    return name.rpartition(".")[0]
