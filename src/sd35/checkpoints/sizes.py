"""Which SD3.5 a set of tensors is, and the sizes that its parts must then have.

The transformer tells the variant: its depth and its dual attention, read off the shapes. What the encoders
and the VAE of a real variant look like is then known to the last number; the demo model, and an MMDiT of
other sizes, have what their own configs say.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sd35.checkpoints.layout import (
    CLIP_G,
    CLIP_L,
    LARGE,
    MEDIUM,
    T5_XXL,
    VAE,
    ClipSize,
    Layout,
    T5Size,
    TransformerSize,
    VaeSize,
    clip_layout,
    t5_layout,
    transformer_layout,
    vae_layout,
)
from sd35.checkpoints.reader import TensorSpec
from sd35.variants import HEAD_DIM, Variant, variant_of

Size = TransformerSize | ClipSize | T5Size | VaeSize
REAL: dict[str, Size] = {"large": LARGE, "large-turbo": LARGE, "medium": MEDIUM}
_COMMON: dict[str, Size] = {
    "text_encoder": CLIP_L,
    "text_encoder_2": CLIP_G,
    "text_encoder_3": T5_XXL,
    "vae": VAE,
}


@dataclass(frozen=True)
class Recognised:
    """The transformer that the shapes show, and the variant that it is; None for a stranger."""

    size: TransformerSize
    variant: Variant | None

    @property
    def is_real(self) -> bool:
        """Whether it is one of Stability's variants."""
        return self.variant is not None and self.variant.name in REAL


def recognise(specs: Mapping[str, TensorSpec]) -> Recognised | None:
    """The transformer in these tensors (diffusers' names); None where they are none."""
    try:
        size = TransformerSize(
            num_layers=1 + max(_block(name) for name in specs),
            channels=specs["pos_embed.proj.weight"].shape[0],
            text_channels=specs["context_embedder.weight"].shape[1],
            pooled_channels=specs["time_text_embed.text_embedder.linear_1.weight"].shape[1],
            pos_embed_max_size=round(specs["pos_embed.pos_embed"].shape[1] ** 0.5),
            dual_attention_layers=tuple(sorted({_block(name) for name in specs if ".attn2." in name})),
        )
    except (KeyError, IndexError, ValueError):
        return None
    if not 0 < size.num_layers <= len(specs):
        return None
    return Recognised(size, variant_of(size.num_layers, size.dual_attention_layers))


def inferred_size(specs: Mapping[str, TensorSpec]) -> Size | None:
    """The size of the one part that these tensors are, read off their shapes; None for a stranger."""
    if (found := recognise(specs)) is not None:
        return found.size
    for infer in (_inferred_clip, _inferred_t5, _inferred_vae):
        try:
            return infer(specs)
        except (KeyError, IndexError, ValueError):
            continue
    return None


def expected_size(part: str, known: Recognised | None, config: Mapping[str, Any]) -> Size:
    """The size that a part must have: the variant's, or its config's (KeyError where a number is missing)."""
    if known is not None and known.is_real:
        assert known.variant is not None
        return REAL[known.variant.name] if part == "transformer" else _COMMON[part]
    return config_size(part, config)


def config_size(part: str, config: Mapping[str, Any]) -> Size:
    """The size that a config describes; KeyError where a number is missing."""
    if part == "transformer":
        return TransformerSize(
            num_layers=config["num_layers"],
            channels=config["num_attention_heads"] * HEAD_DIM,
            text_channels=config["joint_attention_dim"],
            pooled_channels=config["pooled_projection_dim"],
            pos_embed_max_size=config["pos_embed_max_size"],
            dual_attention_layers=tuple(sorted(config.get("dual_attention_layers") or ())),
        )
    if part == "vae":
        return VaeSize(
            tuple(config["block_out_channels"]), config["layers_per_block"], config["latent_channels"]
        )
    if part == "text_encoder_3":
        return T5Size(
            num_layers=config["num_layers"],
            channels=config["d_model"],
            mlp_channels=config["d_ff"],
            num_heads=config["num_heads"],
            attention_channels=config["num_heads"] * config["d_kv"],
            vocabulary=config["vocab_size"],
            position_buckets=config.get("relative_attention_num_buckets", 32),
        )
    return ClipSize(
        num_layers=config["num_hidden_layers"],
        channels=config["hidden_size"],
        mlp_channels=config["intermediate_size"],
        projection=config["projection_dim"],
        vocabulary=config["vocab_size"],
        positions=config.get("max_position_embeddings", 77),
    )


def layout_of(size: Size) -> Layout:
    """The table of every tensor of a part of this size."""
    if isinstance(size, TransformerSize):
        return transformer_layout(size)
    if isinstance(size, VaeSize):
        return vae_layout(size)
    return t5_layout(size) if isinstance(size, T5Size) else clip_layout(size)


def _inferred_clip(specs: Mapping[str, TensorSpec]) -> ClipSize:
    tokens = specs["text_model.embeddings.token_embedding.weight"].shape
    return ClipSize(
        num_layers=_count(specs, "text_model.encoder.layers."),
        channels=tokens[1],
        mlp_channels=specs["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        projection=specs["text_projection.weight"].shape[0],
        vocabulary=tokens[0],
        positions=specs["text_model.embeddings.position_embedding.weight"].shape[0],
    )


def _inferred_t5(specs: Mapping[str, TensorSpec]) -> T5Size:
    shared = specs["shared.weight" if "shared.weight" in specs else "encoder.embed_tokens.weight"].shape
    first = "encoder.block.0.layer"
    buckets, heads = specs[f"{first}.0.SelfAttention.relative_attention_bias.weight"].shape
    return T5Size(
        num_layers=_count(specs, "encoder.block."),
        channels=shared[1],
        mlp_channels=specs[f"{first}.1.DenseReluDense.wi_0.weight"].shape[0],
        num_heads=heads,
        attention_channels=specs[f"{first}.0.SelfAttention.q.weight"].shape[0],
        vocabulary=shared[0],
        position_buckets=buckets,
    )


def _inferred_vae(specs: Mapping[str, TensorSpec]) -> VaeSize:
    levels = _count(specs, "encoder.down_blocks.")
    return VaeSize(
        channels=tuple(
            specs[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in range(levels)
        ),
        layers_per_level=_count(specs, "encoder.down_blocks.0.resnets."),
        latent_channels=specs["decoder.conv_in.weight"].shape[1],
    )


def _count(specs: Mapping[str, TensorSpec], prefix: str) -> int:
    """How many numbered modules there are below a name; ValueError for none or too many to be true."""
    count = 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in specs if name.startswith(prefix))
    if count > len(specs):
        raise ValueError(f"{prefix} counts to {count}")
    return count


def _block(name: str) -> int:
    pieces = name.split(".")
    is_block = pieces[0] == "transformer_blocks" and len(pieces) > 1 and pieces[1].isdecimal()
    return int(pieces[1]) if is_block else -1
