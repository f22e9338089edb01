"""The generated tables are the real models', at full size and to the byte."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from sd35.checkpoints.layout import (
    CLIP_G,
    CLIP_L,
    LARGE,
    MEDIUM,
    T5_XXL,
    VAE,
    ClipSize,
    Layout,
    TransformerSize,
    clip_layout,
    linear_layers,
    num_bytes,
    t5_layout,
    transformer_layout,
    vae_layout,
)


def on_meta(build: Callable[..., nn.Module], *arguments: Any, **numbers: Any) -> Layout:
    """Names and shapes of a library's module, built without memory; buffers that are saved included."""
    with torch.device("meta"):
        module = build(*arguments, **numbers)
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """A layout's shapes as plain tuples."""
    return {name: tuple(spec.shape) for name, spec in layout.items()}


def diffusers_transformer(size: TransformerSize) -> Layout:
    """diffusers' own MMDiT of this size."""
    return on_meta(
        SD3Transformer2DModel,
        sample_size=128,
        num_layers=size.num_layers,
        num_attention_heads=size.channels // 64,
        attention_head_dim=64,
        caption_projection_dim=size.channels,
        joint_attention_dim=size.text_channels,
        pooled_projection_dim=size.pooled_channels,
        pos_embed_max_size=size.pos_embed_max_size,
        dual_attention_layers=size.dual_attention_layers,
        qk_norm="rms_norm",
    )


@pytest.mark.parametrize("size", [LARGE, MEDIUM], ids=["large", "medium"])
def test_transformer_is_that_of_diffusers(size: TransformerSize) -> None:
    """Every name and shape of Large and Medium."""
    assert shapes(transformer_layout(size)) == diffusers_transformer(size)


@pytest.mark.parametrize("size", [CLIP_L, CLIP_G], ids=["clip-l", "clip-g"])
def test_clip_is_that_of_transformers(size: ClipSize) -> None:
    """Every name and shape of both CLIP text encoders."""
    config = CLIPTextConfig(
        hidden_size=size.channels,
        intermediate_size=size.mlp_channels,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.channels // 64,
        projection_dim=size.projection,
        vocab_size=size.vocabulary,
    )
    assert shapes(clip_layout(size)) == on_meta(CLIPTextModelWithProjection, config)


def test_t5_is_that_of_transformers() -> None:
    """Every name and shape of T5-XXL's encoder, the shared embedding counted once."""
    config = T5Config(
        d_model=4096,
        d_ff=10240,
        d_kv=64,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
        vocab_size=32128,
    )
    expected = on_meta(T5EncoderModel, config)
    assert expected.pop("encoder.embed_tokens.weight") == expected["shared.weight"]
    assert shapes(t5_layout(T5_XXL)) == expected


def test_vae_is_that_of_diffusers() -> None:
    """Every name and shape of the 16-channel VAE."""
    expected = on_meta(
        AutoencoderKL,
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    assert shapes(vae_layout(VAE)) == expected


@pytest.mark.parametrize(
    ("layout", "elements", "in_16_bit"),
    [
        (transformer_layout(LARGE), 8_056_627_520 + 89_653_248, 16_292_561_536),
        (transformer_layout(MEDIUM), 2_243_171_520 + 226_492_416, 4_939_327_872),
        (clip_layout(CLIP_L), 123_650_304, 247_300_608),
        (clip_layout(CLIP_G), 694_659_840, 1_389_319_680),
        (t5_layout(T5_XXL), 4_762_310_656, 9_524_621_312),
        (vae_layout(VAE), 83_819_683, 167_639_366),
    ],
    ids=["large", "medium", "clip-l", "clip-g", "t5", "vae"],
)
def test_sizes_to_the_byte(layout: Layout, elements: int, in_16_bit: int) -> None:
    """The published parameter counts; Large's bytes are `total_size` of the repository's index."""
    assert sum(spec.shape.numel() for spec in layout.values()) == elements
    assert num_bytes(layout) == in_16_bit


def in_blocks(layer: str) -> bool:
    """Whether a layer is one of the joint blocks'."""
    return layer.startswith("transformer_blocks.")


def in_blocks_but_adaln(layer: str) -> bool:
    """Whether a layer is one of the joint blocks', and no AdaLN."""
    return in_blocks(layer) and not re.search(r"\.norm1(_context)?\.", layer)


@pytest.mark.parametrize(
    ("layout", "chosen", "layers", "bytes_then"),
    [
        (transformer_layout(LARGE), bool, 536, 8_238_867_072),
        (transformer_layout(LARGE), in_blocks, 529, 8_278_246_016),
        (transformer_layout(LARGE), in_blocks_but_adaln, 453, 10_951_656_064),
        (transformer_layout(MEDIUM), bool, 392, 2_697_505_152),
        (transformer_layout(MEDIUM), in_blocks, 385, 2_716_871_040),
        (transformer_layout(MEDIUM), in_blocks_but_adaln, 337, 3_478_923_648),
        (t5_layout(T5_XXL), bool, 168, 4_894_109_696),
    ],
)
def test_fp8_sizes_to_the_byte(
    layout: Layout, chosen: Callable[[str], bool], layers: int, bytes_then: int
) -> None:
    """What each choice of FP8 layers comes to: counts of linear layers and bytes."""
    fp8 = [layer for layer in linear_layers(layout) if chosen(layer)]
    assert len(fp8) == layers
    assert num_bytes(layout, fp8) == bytes_then
