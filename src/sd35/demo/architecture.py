"""The demo's components: real SD3.5 classes, small numbers.

Every part is the class that Stable Diffusion 3.5 itself uses, so whatever runs the real model runs
this one. The widths hang together, and that is the only hard thing here:

    CLIP-L 96 | CLIP-G 160   side by side = 256 = pooled_projection_dim
    T5 256                   >= 96 + 160, because the CLIP rows are zero-padded to its width
    MMDiT 256 = 4 heads of 64; joint_attention_dim = T5's width

All widths are multiples of 16, so that FP8 matrix products need no padding, and all parts together
stay under 40 MB in 16 bit. Width 256 on six joint blocks buys more than ten thin ones: attention
heads keep the 64 channels of the real model, which the kernels are written for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers import pre_tokenizers
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

IMAGE_SIZE = 256
VAE_FACTOR = 8
LATENT_CHANNELS = 16
LATENT_SIZE = IMAGE_SIZE // VAE_FACTOR
CLIP_LENGTH = 77
CLIP_VOCABULARY = 1280
T5_VOCABULARY = 1024
T5_MAX_LENGTH = 512
CLIP_L_WIDTH = 96
CLIP_G_WIDTH = 160
T5_WIDTH = 256
MMDIT_LAYERS = 6
MMDIT_HEADS = 4
HEAD_DIM = 64
DUAL_ATTENTION_LAYERS = (0, 1)
SHIFT = 3.0


@dataclass(frozen=True)
class Tokenizers:
    """CLIP-L's, CLIP-G's and T5's tokenizer, in the order of the pipeline."""

    clip_l: CLIPTokenizer
    clip_g: CLIPTokenizer
    t5: T5Tokenizer


@dataclass(frozen=True)
class TextEncoders:
    """CLIP-L, CLIP-G and T5, in the order of the pipeline."""

    clip_l: CLIPTextModelWithProjection
    clip_g: CLIPTextModelWithProjection
    t5: T5EncoderModel

    def modules(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """The three as a tuple."""
        return self.clip_l, self.clip_g, self.t5


def train_tokenizers(captions: Iterable[str]) -> Tokenizers:
    """Learn the three vocabularies from `captions`; CLIP-G's differs from CLIP-L's in its padding alone."""
    captions = list(captions)
    vocabulary, merges = _clip_vocabulary(captions)
    clip_l = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_LENGTH)
    clip_l.pad_token = clip_l.eos_token
    clip_g = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_LENGTH)
    clip_g.pad_token = "!"
    t5 = T5Tokenizer(extra_ids=0).train_new_from_iterator(captions, T5_VOCABULARY)
    t5.model_max_length = T5_MAX_LENGTH
    return Tokenizers(clip_l, clip_g, t5)


def save_tokenizers(tokenizers: Tokenizers, folder: Path) -> None:
    """Write them as a pipeline folder has them."""
    tokenizers.clip_l.save_pretrained(folder / "tokenizer")
    tokenizers.clip_g.save_pretrained(folder / "tokenizer_2")
    tokenizers.t5.save_pretrained(folder / "tokenizer_3")


def load_tokenizers(folder: Path) -> Tokenizers:
    """Read the tokenizers of a pipeline folder."""
    return Tokenizers(
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        T5Tokenizer.from_pretrained(folder / "tokenizer_3"),
    )


def _clip_vocabulary(captions: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte pairs in CLIP's order: bytes ("!" is id 0), bytes that end a word, merges, the two marks.

    Every byte is there, for CLIP's unknown token is its end mark: a letter outside the vocabulary would
    end the prompt in its middle.
    """
    trained = CLIPTokenizer().train_new_from_iterator(captions, CLIP_VOCABULARY)
    found = [tuple(pair) for pair in json.loads(trained.backend_tokenizer.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    marks = [trained.bos_token, trained.eos_token]
    merges = found[: CLIP_VOCABULARY - 2 * len(alphabet) - len(marks)]
    tokens = (
        alphabet + [byte + "</w>" for byte in alphabet] + [left + right for left, right in merges] + marks
    )
    return {token: index for index, token in enumerate(tokens)}, merges


def build_text_encoders(tokenizers: Tokenizers) -> TextEncoders:
    """Fresh text encoders for these tokenizers."""
    clip_l = _clip(tokenizers.clip_l, CLIP_L_WIDTH, "quick_gelu")
    clip_g = _clip(tokenizers.clip_g, CLIP_G_WIDTH, "gelu")
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=T5_VOCABULARY,
            d_model=T5_WIDTH,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=True,
            pad_token_id=tokenizers.t5.pad_token_id,
            eos_token_id=tokenizers.t5.eos_token_id,
        )
    )
    return TextEncoders(clip_l, clip_g, t5)


def _clip(tokenizer: CLIPTokenizer, width: int, activation: str) -> CLIPTextModelWithProjection:
    """A two-layer CLIP text tower; its token table is scaled up, for nothing is pretrained here.

    SD3.5 reads the layer before the last without a norm. With CLIP's own 0.02 the rows would enter
    the MMDiT fifty times weaker than T5's, and take their time to be heard.
    """
    config = CLIPTextConfig(
        vocab_size=CLIP_VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=width // 32,
        hidden_act=activation,
        max_position_embeddings=CLIP_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = CLIPTextModelWithProjection(config)
    embeddings = model.get_input_embeddings()
    nn.init.normal_(embeddings.weight, std=0.5)
    return model


def build_vae() -> AutoencoderKL:
    """A fresh 16-channel VAE of factor 8, without the 1x1 convolutions around the latents.

    The scaling and shift of its latents are measured once it is trained.
    """
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 96, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=16,
        sample_size=IMAGE_SIZE,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    )


def build_mmdit() -> SD3Transformer2DModel:
    """A fresh MMDiT-X: six joint blocks, dual attention in the first two, RMS-normed queries and keys."""
    model = SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=MMDIT_LAYERS,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=MMDIT_HEADS,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=MMDIT_HEADS * HEAD_DIM,
        pooled_projection_dim=CLIP_L_WIDTH + CLIP_G_WIDTH,
        pos_embed_max_size=LATENT_SIZE,
        dual_attention_layers=DUAL_ATTENTION_LAYERS,
        qk_norm="rms_norm",
    )
    _initialise_mmdit(model)
    return model


def _initialise_mmdit(model: SD3Transformer2DModel) -> None:
    """Start as DiT does: Xavier weights, every modulation and the output zero (each block an identity)."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        if name == "proj_out" or ".norm1" in name or name.startswith("norm_out"):
            nn.init.zeros_(module.weight)
        elif name.startswith("time_text_embed"):
            nn.init.normal_(module.weight, std=0.02)
        else:
            nn.init.xavier_uniform_(module.weight.flatten(1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def load_weights(folder: Path, mmdit: SD3Transformer2DModel, encoders: TextEncoders) -> None:
    """Fill MMDiT and text encoders with the weights of a pipeline folder."""
    mmdit.load_state_dict(SD3Transformer2DModel.from_pretrained(folder / "transformer").state_dict())
    for name, encoder in (("text_encoder", encoders.clip_l), ("text_encoder_2", encoders.clip_g)):
        encoder.load_state_dict(CLIPTextModelWithProjection.from_pretrained(folder / name).state_dict())
    encoders.t5.load_state_dict(T5EncoderModel.from_pretrained(folder / "text_encoder_3").state_dict())


def build_pipeline(
    tokenizers: Tokenizers,
    encoders: TextEncoders,
    vae: AutoencoderKL,
    mmdit: SD3Transformer2DModel,
) -> StableDiffusion3Pipeline:
    """Put the parts together as diffusers does."""
    return StableDiffusion3Pipeline(
        transformer=mmdit,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=encoders.clip_l,
        tokenizer=tokenizers.clip_l,
        text_encoder_2=encoders.clip_g,
        tokenizer_2=tokenizers.clip_g,
        text_encoder_3=encoders.t5,
        tokenizer_3=tokenizers.t5,
    )


def save_pipeline(pipeline: StableDiffusion3Pipeline, folder: Path) -> int:
    """Write the folder in bfloat16, readable by all, with no notes of its origin; returns its bytes."""
    pipeline.to(dtype=torch.bfloat16)
    pipeline.save_pretrained(folder)
    total = 0
    for path in folder.rglob("*"):
        if path.name.endswith("config.json"):
            _forget_origin(path)
        path.chmod(0o755 if path.is_dir() else 0o644)
        total += path.stat().st_size if path.is_file() else 0
    return total


def _forget_origin(path: Path) -> None:
    """Drop a config's notes on the folder it was loaded from."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("_name_or_path", "name_or_path", "local_files_only", "is_local"):
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8", newline="\n")
