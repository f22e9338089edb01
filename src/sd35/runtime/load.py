"""Checkpoint + RuntimeConfig -> Pipeline. Every `auto` is resolved here, once.

Modules are built without memory (on the meta device) from the parts' configs and filled straight from the
files, so nothing is ever initialised at random and no tensor exists twice. FP8 layers are whatever the
files declare: loading quantizes nothing.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from sd35.checkpoints.formats import Checkpoint, open_checkpoint
from sd35.checkpoints.single_file import SingleFile
from sd35.checkpoints.store import identity, locate
from sd35.config import ComputeDtype, RuntimeConfig
from sd35.errors import CheckpointError, DeviceError
from sd35.kernels.api import choose_operations
from sd35.kernels.attention import choose_attention
from sd35.runtime.encoders import TextEncoder, TextEncoders
from sd35.runtime.graphs import Recorder
from sd35.runtime.joint_block import Engine
from sd35.runtime.mmdit import MMDiT, MMDiTConfig
from sd35.runtime.pipeline import Pipeline
from sd35.runtime.weights import Placement, fill_mmdit, fill_module
from sd35.variants import HEAD_DIM, LATENT_CHANNELS, PATCH_SIZE, PIXELS_PER_LATENT, Variant, variant_of

log = logging.getLogger(__name__)

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

# What every SD3.5 transformer/config.json says; another value is another architecture.
_FIXED = {
    "attention_head_dim": HEAD_DIM,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "patch_size": PATCH_SIZE,
    "qk_norm": "rms_norm",
}


def load_pipeline(
    checkpoint: str | Path,
    config: RuntimeConfig | None = None,
    variant: Variant | None = None,
    components: Path | None = None,
    encoder_files: Sequence[Path] = (),
) -> Pipeline:
    """Load a checkpoint folder or single file as it is, 16-bit or FP8.

    `variant` overrules what the weights suggest; `components` is the folder with what a single file lacks,
    and `encoder_files` are text encoders in files of their own.
    """
    opened = open_checkpoint(locate(checkpoint), components, encoder_files)
    return assemble(opened, config or RuntimeConfig(), variant, identity_of(opened))


def assemble(
    checkpoint: Checkpoint, config: RuntimeConfig, variant: Variant | None, identity: str
) -> Pipeline:
    """A pipeline of an open checkpoint, wherever its tensors come from."""
    placement = resolve(config)
    log.debug("loading %s on %s, compute in %s", checkpoint.path, placement.device, placement.dtype)
    mmdit_config = read_mmdit_config(checkpoint)
    return Pipeline(
        variant=variant or _recognise(checkpoint, mmdit_config),
        text_encoders=_load_text_encoders(checkpoint, mmdit_config, placement),
        mmdit=_load_mmdit(checkpoint, mmdit_config, placement),
        vae=_load_vae(checkpoint, placement),
        shift=_read_shift(checkpoint),
        device=placement.device,
        identity=identity,
        recorder=Recorder() if placement.cuda_graphs else None,
    )


def load_mmdit(checkpoint: str | Path, config: RuntimeConfig) -> MMDiT:
    """The transformer alone, for those who draw nothing with it."""
    opened = open_checkpoint(locate(checkpoint))
    return _load_mmdit(opened, read_mmdit_config(opened), resolve(config))


def identity_of(checkpoint: Checkpoint) -> str:
    """The identity of all that a picture comes from: a single file's components and encoders count too."""
    if isinstance(checkpoint, SingleFile):
        encoders = sorted({encoder.path for encoder in checkpoint.encoders.values()})
        return identity(checkpoint.path, checkpoint.components.path, *encoders)
    return identity(checkpoint.path)


def resolve(config: RuntimeConfig) -> Placement:
    """The device and dtype that `auto` comes to on this machine; DeviceError if the device isn't there."""
    device = _device(config.device)
    dtype = _dtype(config.compute_dtype, device)
    return Placement(
        device, dtype, config.kernels, config.attention, config.cuda_graphs and device.type == "cuda"
    )


def read_mmdit_config(checkpoint: Checkpoint) -> MMDiTConfig:
    """transformer/config.json as our numbers; CheckpointError where it isn't SD3.5's architecture."""
    values = checkpoint.config("transformer")
    place = checkpoint.path if checkpoint.path.is_file() else checkpoint.path / "transformer/config.json"
    for key, expected in _FIXED.items():
        if values.get(key) != expected:
            raise CheckpointError(
                f"{place} gives {key} as {values.get(key)!r} and SD3.5 has {expected!r}: "
                "this is a transformer of another architecture."
            )
    try:
        return MMDiTConfig(
            num_layers=_whole(values, "num_layers"),
            channels=_whole(values, "num_attention_heads") * HEAD_DIM,
            text_channels=_whole(values, "joint_attention_dim"),
            pooled_channels=_whole(values, "pooled_projection_dim"),
            pos_embed_max_size=_whole(values, "pos_embed_max_size"),
            dual_attention_layers=tuple(values.get("dual_attention_layers") or ()),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{place} is incomplete ({error}): fetch the checkpoint again.") from error


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise DeviceError(f"There is no kind of device {wanted!r}: try cpu, cuda or cuda:1.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"The device {wanted} is not there: this PyTorch sees {torch.cuda.device_count()} CUDA devices; "
            "check the driver with nvidia-smi, or run on cpu."
        )
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"sd35 runs on cpu and cuda, not on {wanted}.")
    return device


def _dtype(wanted: ComputeDtype, device: torch.device) -> torch.dtype:
    if wanted != "auto":
        return _DTYPES[wanted]
    # Without bf16 instructions a CPU takes longer for bf16 than for float32.
    native = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def _whole(values: dict[str, Any], key: str) -> int:
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 100_000:
        raise ValueError(f"{key} is {value!r}")
    return value


def _recognise(checkpoint: Checkpoint, config: MMDiTConfig) -> Variant:
    variant = variant_of(config.num_layers, config.dual_attention_layers)
    if variant is None:
        raise CheckpointError(
            f"{checkpoint.path} has {config.num_layers} layers with dual attention in "
            f"{config.dual_attention_layers}: that is no SD3.5 variant; name the one whose settings to use."
        )
    return variant


def _read_shift(checkpoint: Checkpoint) -> float:
    values = checkpoint.config("scheduler")
    shift = values.get("shift")
    if values.get("use_dynamic_shifting") or not isinstance(shift, int | float) or not 0 < shift < 100:
        raise CheckpointError(
            f"{checkpoint.path}/scheduler does not give a fixed shift (SD3.5 has 3.0): the file was changed."
        )
    return float(shift)


def _load_mmdit(checkpoint: Checkpoint, config: MMDiTConfig, placement: Placement) -> MMDiT:
    device, dtype = placement.device, placement.dtype
    engine = Engine(
        choose_operations(placement.kernels, device, dtype),
        choose_attention(placement.attention, device, dtype),
    )
    log.debug("attention by %s", engine.attention)
    with torch.device("meta"):
        mmdit = MMDiT(config, engine)
    with checkpoint.tensors("transformer") as tensors:
        fill_mmdit(mmdit, tensors, placement)
    return mmdit.eval()


def _load_vae(checkpoint: Checkpoint, placement: Placement) -> nn.Module:
    config = checkpoint.config("vae")
    factor = 2 ** (len(config.get("block_out_channels", ())) - 1)
    if config.get("latent_channels") != LATENT_CHANNELS or factor != PIXELS_PER_LATENT:
        raise CheckpointError(
            f"{checkpoint.path}/vae is not SD3.5's VAE (16 channels, factor 8): wrong checkpoint."
        )
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(config)
    return _filled(vae, checkpoint, "vae", placement)


def _load_text_encoders(checkpoint: Checkpoint, config: MMDiTConfig, placement: Placement) -> TextEncoders:
    t5 = None
    if "text_encoder_3" in checkpoint.parts:
        t5 = TextEncoder(_tokenizer(checkpoint, "tokenizer_3", T5Tokenizer), _load_t5(checkpoint, placement))
    return TextEncoders(
        clip_l=_load_clip(checkpoint, "", placement),
        clip_g=_load_clip(checkpoint, "_2", placement),
        t5=t5,
        width=config.text_channels,
    )


def _load_clip(checkpoint: Checkpoint, suffix: str, placement: Placement) -> TextEncoder:
    part = f"text_encoder{suffix}"
    config = CLIPTextConfig(**checkpoint.config(part))
    with torch.device("meta"):
        model = CLIPTextModelWithProjection(config)
    for module in model.modules():
        if "position_ids" in module._buffers:  # not in the file: it only counts
            module.position_ids = torch.arange(config.max_position_embeddings, device=placement.device)[None]
    model = _filled(model, checkpoint, part, placement)
    return TextEncoder(_tokenizer(checkpoint, f"tokenizer{suffix}", CLIPTokenizer), model)


def _load_t5(checkpoint: Checkpoint, placement: Placement) -> nn.Module:
    with torch.device("meta"):
        model = T5EncoderModel(T5Config(**checkpoint.config("text_encoder_3")))
    shared = ("shared.weight", "encoder.embed_tokens.weight")
    return _filled(model, checkpoint, "text_encoder_3", placement, shared)


def _filled(
    module: nn.Module,
    checkpoint: Checkpoint,
    part: str,
    placement: Placement,
    shared: tuple[str, ...] = (),
) -> nn.Module:
    with checkpoint.tensors(part) as tensors:
        fill_module(module, tensors, placement, shared)
    return module.eval()


def _tokenizer(checkpoint: Checkpoint, part: str, kind: Any) -> Any:
    return kind.from_pretrained(checkpoint.folder(part), local_files_only=True)
