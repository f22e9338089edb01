"""The parts' config.json as our numbers: the few in which SD3.5 checkpoints differ.

The gate of the checkpoints room has seen that a config says nothing hostile; here it is asked whether it
says what SD3.5's would, and all of it. A number that is missing is never made up.
"""

from pathlib import Path
from typing import Any

from sd35.checkpoints.formats import Checkpoint
from sd35.errors import CheckpointError
from sd35.runtime.mmdit import MMDiTConfig
from sd35.runtime.text_models import ClipConfig, T5Config
from sd35.runtime.vae import VaeConfig
from sd35.variants import HEAD_DIM, LATENT_CHANNELS, PATCH_SIZE, PIXELS_PER_LATENT

_INCOMPLETE = (KeyError, TypeError, ValueError)

# What every SD3.5 transformer/config.json says; another value is another architecture.
_FIXED = {
    "attention_head_dim": HEAD_DIM,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "patch_size": PATCH_SIZE,
    "qk_norm": "rms_norm",
}


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
    except _INCOMPLETE as error:
        raise _incomplete(place, error) from error


def read_vae_config(checkpoint: Checkpoint) -> VaeConfig:
    """vae/config.json as our numbers; CheckpointError where it isn't SD3.5's architecture."""
    values = checkpoint.config("vae")
    place = _place(checkpoint, "vae")
    channels = tuple(values.get("block_out_channels", ()))
    has_parts = [values.get(key, True) for key in ("mid_block_add_attention", "use_post_quant_conv")]
    factor = 2 ** (len(channels) - 1)
    fits = values.get("latent_channels") == LATENT_CHANNELS and factor == PIXELS_PER_LATENT
    if not fits or has_parts != [True, False]:
        raise CheckpointError(
            f"{place} is not of SD3.5's VAE (16 channels, factor 8, attention in the middle, no "
            "post_quant_conv): wrong checkpoint."
        )
    try:
        return VaeConfig(
            channels=channels,
            layers_per_level=_whole(values, "layers_per_block"),
            groups=_whole(values, "norm_num_groups"),
            scaling_factor=float(values["scaling_factor"]),
            shift_factor=float(values.get("shift_factor") or 0.0),
        )
    except _INCOMPLETE as error:
        raise _incomplete(place, error) from error


def read_clip_config(checkpoint: Checkpoint, part: str) -> ClipConfig:
    """The config.json of one of the two CLIP encoders; CheckpointError where a number is missing."""
    values = checkpoint.config(part)
    try:
        _check_multiple(values, "hidden_size", "num_attention_heads")
        return ClipConfig(
            num_layers=_whole(values, "num_hidden_layers"),
            channels=_whole(values, "hidden_size"),
            mlp_channels=_whole(values, "intermediate_size"),
            num_heads=_whole(values, "num_attention_heads"),
            projection=_whole(values, "projection_dim"),
            vocabulary=_whole(values, "vocab_size"),
            positions=_whole(values, "max_position_embeddings"),
            end_token=int(values["eos_token_id"]),
            activation=str(values["hidden_act"]),
            epsilon=float(values["layer_norm_eps"]),
        )
    except _INCOMPLETE as error:
        raise _incomplete(_place(checkpoint, part), error) from error


def read_t5_config(checkpoint: Checkpoint) -> T5Config:
    """text_encoder_3/config.json; CheckpointError where a number is missing."""
    values = checkpoint.config("text_encoder_3")
    try:
        _check_multiple(values, "relative_attention_num_buckets", 4)
        return T5Config(
            num_layers=_whole(values, "num_layers"),
            channels=_whole(values, "d_model"),
            mlp_channels=_whole(values, "d_ff"),
            num_heads=_whole(values, "num_heads"),
            head_dim=_whole(values, "d_kv"),
            vocabulary=_whole(values, "vocab_size"),
            buckets=_whole(values, "relative_attention_num_buckets"),
            max_distance=_beyond(values, "relative_attention_max_distance", "relative_attention_num_buckets"),
            epsilon=float(values["layer_norm_epsilon"]),
        )
    except _INCOMPLETE as error:
        raise _incomplete(_place(checkpoint, "text_encoder_3"), error) from error


def read_shift(checkpoint: Checkpoint) -> float:
    """The schedule's shift; CheckpointError where the schedule isn't SD3.5's."""
    values = checkpoint.config("scheduler")
    shift = values.get("shift")
    if values.get("use_dynamic_shifting") or not isinstance(shift, int | float) or not 0 < shift < 100:
        raise CheckpointError(
            f"{checkpoint.path}/scheduler does not give a fixed shift (SD3.5 has 3.0): the file was changed."
        )
    return float(shift)


def _beyond(values: dict[str, Any], key: str, other: str) -> int:
    """A number that has to be larger than another."""
    if _whole(values, key) <= _whole(values, other):
        raise ValueError(f"{key} is {values[key]}, which is not above {other}")
    return _whole(values, key)


def _check_multiple(values: dict[str, Any], key: str, of: str | int) -> None:
    divisor = _whole(values, of) if isinstance(of, str) else of
    if _whole(values, key) % divisor:
        raise ValueError(f"{key} is {values[key]}, which is no multiple of {of}")


def _place(checkpoint: Checkpoint, part: str) -> Path:
    return checkpoint.folder(part) / "config.json"


def _incomplete(place: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{place} is incomplete or wrong ({error}): fetch the checkpoint again.")


def _whole(values: dict[str, Any], key: str) -> int:
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 100_000:
        raise ValueError(f"{key} is {value!r}")
    return value
