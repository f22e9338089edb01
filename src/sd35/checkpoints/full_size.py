"""The configs of SD3.5's parts, in the words of the libraries that read them, without a checkpoint at hand.

Sources: the config.json files of stabilityai/stable-diffusion-3.5-large and -medium. The numbers that tell
variants apart come from `checkpoints/layout.py`; here is what else a library wants to know. The demo's
configs are those of the bundled folder.
"""

from typing import Any

from sd35.checkpoints.folder import open_folder
from sd35.checkpoints.layout import (
    CLIP_G,
    CLIP_L,
    T5_XXL,
    VAE,
    ClipSize,
    T5Size,
    TransformerSize,
    VaeSize,
)
from sd35.checkpoints.sizes import REAL
from sd35.checkpoints.store import locate
from sd35.variants import HEAD_DIM, LATENT_CHANNELS, PATCH_SIZE

PARTS = ("scheduler", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae")
_CLIP_HEAD_DIM = 64


def config_of(variant: str, part: str) -> dict[str, Any]:
    """The config of one part of a variant, as its checkpoint has it."""
    if variant not in REAL:
        return open_folder(locate(variant)).config(part)
    size = REAL[variant]
    assert isinstance(size, TransformerSize)
    return {
        "scheduler": {"num_train_timesteps": 1000, "shift": 3.0},
        "text_encoder": _clip(CLIP_L, "quick_gelu"),
        "text_encoder_2": _clip(CLIP_G, "gelu"),
        "text_encoder_3": _t5(T5_XXL),
        "transformer": _transformer(size),
        "vae": _vae(VAE),
    }[part]


def _transformer(size: TransformerSize) -> dict[str, Any]:
    return {
        "sample_size": 128,
        "patch_size": PATCH_SIZE,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "num_layers": size.num_layers,
        "attention_head_dim": HEAD_DIM,
        "num_attention_heads": size.channels // HEAD_DIM,
        "joint_attention_dim": size.text_channels,
        "caption_projection_dim": size.channels,
        "pooled_projection_dim": size.pooled_channels,
        "pos_embed_max_size": size.pos_embed_max_size,
        "dual_attention_layers": list(size.dual_attention_layers),
        "qk_norm": "rms_norm",
    }


def _vae(size: VaeSize) -> dict[str, Any]:
    levels = len(size.channels)
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": size.latent_channels,
        "block_out_channels": list(size.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": size.layers_per_level,
        "norm_num_groups": 32,
        "act_fn": "silu",
        "sample_size": 1024,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }


def _clip(size: ClipSize, activation: str) -> dict[str, Any]:
    return {
        "hidden_size": size.channels,
        "intermediate_size": size.mlp_channels,
        "projection_dim": size.projection,
        "num_hidden_layers": size.num_layers,
        "num_attention_heads": size.channels // _CLIP_HEAD_DIM,
        "max_position_embeddings": size.positions,
        "vocab_size": size.vocabulary,
        "hidden_act": activation,
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


def _t5(size: T5Size) -> dict[str, Any]:
    return {
        "d_model": size.channels,
        "d_ff": size.mlp_channels,
        "d_kv": size.attention_channels // size.num_heads,
        "num_layers": size.num_layers,
        "num_heads": size.num_heads,
        "vocab_size": size.vocabulary,
        "relative_attention_num_buckets": size.position_buckets,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "is_encoder_decoder": False,
        "use_cache": False,
    }
