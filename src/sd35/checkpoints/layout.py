"""Every tensor of SD3.5: name -> dtype and shape, generated from a few numbers.

The names are diffusers' and transformers' own, as in the folders that Stability publishes. A handful of
sizes decides them all, so the table of a model with 2,000 tensors is the pages below and no file, and it
holds for any width: the demo model's table comes out of the same functions.

    sample stream      attn.to_q/k/v, attn.to_out.0, ff             norm1: 6 x width (dual attention: 9)
    context stream     attn.add_q/k/v_proj, attn.to_add_out, ff_context        norm1_context: 6 x width
    the last block     its context stream ends in the attention: no to_add_out, no ff_context, and
                       norm1_context has only scale and shift, 2 x width

Sources: the classes of diffusers 0.42.1 and transformers 5.23, to which the tests hold these tables at full
size; the numbers are those of the repositories' config.json.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from sd35.checkpoints.reader import TensorSpec
from sd35.variants import HEAD_DIM, LATENT_CHANNELS, PATCH_SIZE

Layout = dict[str, TensorSpec]
_TIMESTEP_CHANNELS = 256  # of the sinusoidal embedding
_MLP_RATIO = 4


@dataclass(frozen=True)
class TransformerSize:
    """The numbers of an MMDiT; `channels` is the width of both streams."""

    num_layers: int
    channels: int
    text_channels: int
    pooled_channels: int
    pos_embed_max_size: int
    dual_attention_layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class ClipSize:
    """The numbers of a CLIP text encoder with its projection."""

    num_layers: int
    channels: int
    mlp_channels: int
    projection: int
    vocabulary: int = 49_408
    positions: int = 77


@dataclass(frozen=True)
class T5Size:
    """The numbers of a T5 v1.1 encoder; `attention_channels` is heads x channels a head."""

    num_layers: int
    channels: int
    mlp_channels: int
    num_heads: int
    attention_channels: int
    vocabulary: int = 32_128
    position_buckets: int = 32


@dataclass(frozen=True)
class VaeSize:
    """The numbers of the VAE; `channels` from the finest level to the coarsest."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_level: int = 2
    latent_channels: int = LATENT_CHANNELS


LARGE = TransformerSize(38, 38 * HEAD_DIM, 4096, 2048, 192)
MEDIUM = TransformerSize(24, 24 * HEAD_DIM, 4096, 2048, 384, tuple(range(13)))
CLIP_L = ClipSize(12, 768, 3072, 768)
CLIP_G = ClipSize(32, 1280, 5120, 1280)
T5_XXL = T5Size(24, 4096, 10_240, 64, 4096)
VAE = VaeSize()


def transformer_layout(size: TransformerSize, dtype: torch.dtype = torch.bfloat16) -> Layout:
    """The MMDiT's tensors, under `SD3Transformer2DModel`'s names."""
    shapes: dict[str, tuple[int, ...]] = {}
    width, patch = size.channels, PATCH_SIZE
    shapes["pos_embed.pos_embed"] = (1, size.pos_embed_max_size**2, width)
    _add(shapes, "pos_embed.proj", (width, LATENT_CHANNELS, patch, patch))
    for embedder, inputs in (("timestep", _TIMESTEP_CHANNELS), ("text", size.pooled_channels)):
        _add(shapes, f"time_text_embed.{embedder}_embedder.linear_1", (width, inputs))
        _add(shapes, f"time_text_embed.{embedder}_embedder.linear_2", (width, width))
    _add(shapes, "context_embedder", (width, size.text_channels))
    for i in range(size.num_layers):
        is_dual, is_last = i in size.dual_attention_layers, i == size.num_layers - 1
        shapes |= _joint_block(f"transformer_blocks.{i}", width, is_dual=is_dual, is_last=is_last)
    _add(shapes, "norm_out.linear", (2 * width, width))
    _add(shapes, "proj_out", (patch * patch * LATENT_CHANNELS, width))
    return _specs(shapes, dtype)


def clip_layout(size: ClipSize, dtype: torch.dtype = torch.bfloat16) -> Layout:
    """A CLIP text encoder's tensors, under `CLIPTextModelWithProjection`'s names."""
    width = size.channels
    shapes: dict[str, tuple[int, ...]] = {
        "text_model.embeddings.token_embedding.weight": (size.vocabulary, width),
        "text_model.embeddings.position_embedding.weight": (size.positions, width),
    }
    for i in range(size.num_layers):
        layer = f"text_model.encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            _add(shapes, f"{layer}.self_attn.{name}", (width, width))
        _add(shapes, f"{layer}.mlp.fc1", (size.mlp_channels, width))
        _add(shapes, f"{layer}.mlp.fc2", (width, size.mlp_channels))
        _add_norms(shapes, width, f"{layer}.layer_norm1", f"{layer}.layer_norm2")
    _add_norms(shapes, width, "text_model.final_layer_norm")
    shapes["text_projection.weight"] = (size.projection, width)
    return _specs(shapes, dtype)


def t5_layout(size: T5Size, dtype: torch.dtype = torch.bfloat16) -> Layout:
    """A T5 encoder's tensors, under `T5EncoderModel`'s names; the shared embedding is there once."""
    width, inner = size.channels, size.attention_channels
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (size.vocabulary, width)}
    for i in range(size.num_layers):
        attention, mlp = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        for name in "qkv":
            shapes[f"{attention}.SelfAttention.{name}.weight"] = (inner, width)
        shapes[f"{attention}.SelfAttention.o.weight"] = (width, inner)
        for name in ("wi_0", "wi_1"):
            shapes[f"{mlp}.DenseReluDense.{name}.weight"] = (size.mlp_channels, width)
        shapes[f"{mlp}.DenseReluDense.wo.weight"] = (width, size.mlp_channels)
        shapes[f"{attention}.layer_norm.weight"] = shapes[f"{mlp}.layer_norm.weight"] = (width,)
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    shapes[bias] = (size.position_buckets, size.num_heads)
    shapes["encoder.final_layer_norm.weight"] = (width,)
    return _specs(shapes, dtype)


def vae_layout(size: VaeSize, dtype: torch.dtype = torch.bfloat16) -> Layout:
    """The VAE's tensors, under `AutoencoderKL`'s names."""
    shapes: dict[str, tuple[int, ...]] = {}
    finest, coarsest, levels = size.channels[0], size.channels[-1], len(size.channels)
    _add(shapes, "encoder.conv_in", (finest, 3, 3, 3))
    before = finest
    for level, width in enumerate(size.channels):
        block = f"encoder.down_blocks.{level}"
        _add_resnets(shapes, block, size.layers_per_level, before, width)
        if level < levels - 1:
            _add(shapes, f"{block}.downsamplers.0.conv", (width, width, 3, 3))
        before = width
    _add_middle(shapes, "encoder.mid_block", coarsest)
    _add_norms(shapes, coarsest, "encoder.conv_norm_out")
    _add(shapes, "encoder.conv_out", (2 * size.latent_channels, coarsest, 3, 3))
    _add(shapes, "decoder.conv_in", (coarsest, size.latent_channels, 3, 3))
    _add_middle(shapes, "decoder.mid_block", coarsest)
    before = coarsest
    for level, width in enumerate(reversed(size.channels)):
        block = f"decoder.up_blocks.{level}"
        _add_resnets(shapes, block, size.layers_per_level + 1, before, width)
        if level < levels - 1:
            _add(shapes, f"{block}.upsamplers.0.conv", (width, width, 3, 3))
        before = width
    _add_norms(shapes, finest, "decoder.conv_norm_out")
    _add(shapes, "decoder.conv_out", (3, finest, 3, 3))
    return _specs(shapes, dtype)


def linear_layers(layout: Layout) -> list[str]:
    """The layers that are matrix products: those that can be FP8. Embeddings are tables, and are none."""
    tables = ("embedding", "relative_attention_bias", "shared")
    names = (name.removesuffix(".weight") for name, spec in layout.items() if len(spec.shape) == 2)
    return [name for name in names if not name.endswith(tables)]


def num_bytes(layout: Mapping[str, TensorSpec], fp8_layers: Iterable[str] = ()) -> int:
    """Bytes of all tensors, with the weights of these layers in FP8 (their scales not counted)."""
    saved = sum(_halved(layout[f"{layer}.weight"]) for layer in fp8_layers)
    return sum(spec.num_bytes for spec in layout.values()) - saved


def _halved(spec: TensorSpec) -> int:
    return spec.num_bytes - spec.shape.numel()


def _specs(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> Layout:
    return {name: TensorSpec(dtype, torch.Size(shape)) for name, shape in shapes.items()}


def _add(shapes: dict[str, tuple[int, ...]], layer: str, weight: tuple[int, ...]) -> None:
    """A linear layer or convolution with its bias."""
    shapes[f"{layer}.weight"], shapes[f"{layer}.bias"] = weight, weight[:1]


def _add_norms(shapes: dict[str, tuple[int, ...]], width: int, *layers: str) -> None:
    for layer in layers:
        _add(shapes, layer, (width,))


def _joint_block(block: str, width: int, *, is_dual: bool, is_last: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    square = (width, width)
    projections = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"]
    projections += ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]
    norms = ["attn.norm_q", "attn.norm_k", "attn.norm_added_q", "attn.norm_added_k"]
    if is_dual:
        projections += ["attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"]
        norms += ["attn2.norm_q", "attn2.norm_k"]
    if not is_last:
        projections.append("attn.to_add_out")
    _add(shapes, f"{block}.norm1.linear", ((9 if is_dual else 6) * width, width))
    _add(shapes, f"{block}.norm1_context.linear", ((2 if is_last else 6) * width, width))
    for name in projections:
        _add(shapes, f"{block}.{name}", square)
    shapes |= {f"{block}.{name}.weight": (HEAD_DIM,) for name in norms}
    for mlp in ("ff",) if is_last else ("ff", "ff_context"):
        _add(shapes, f"{block}.{mlp}.net.0.proj", (_MLP_RATIO * width, width))
        _add(shapes, f"{block}.{mlp}.net.2", (width, _MLP_RATIO * width))
    return shapes


def _add_resnets(shapes: dict[str, tuple[int, ...]], block: str, count: int, before: int, width: int) -> None:
    for i in range(count):
        inputs = before if i == 0 else width
        resnet = f"{block}.resnets.{i}"
        _add_norms(shapes, inputs, f"{resnet}.norm1")
        _add(shapes, f"{resnet}.conv1", (width, inputs, 3, 3))
        _add_norms(shapes, width, f"{resnet}.norm2")
        _add(shapes, f"{resnet}.conv2", (width, width, 3, 3))
        if inputs != width:
            _add(shapes, f"{resnet}.conv_shortcut", (width, inputs, 1, 1))


def _add_middle(shapes: dict[str, tuple[int, ...]], block: str, width: int) -> None:
    _add_resnets(shapes, block, 2, width, width)
    _add_norms(shapes, width, f"{block}.attentions.0.group_norm")
    for name in ("to_q", "to_k", "to_v", "to_out.0"):
        _add(shapes, f"{block}.attentions.0.{name}", (width, width))
