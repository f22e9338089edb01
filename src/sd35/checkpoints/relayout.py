"""Original layout to diffusers' and back: the moves of `keys.py` carried out on lazy tensors.

A layer is its tensors `weight`, `bias` and, in FP8, `weight_scale`; all three are cut, stacked and swapped
alike, for a scale a row belongs to its row. One scale for a whole fused `qkv` belongs to each of q, k and
v; the way back needs the three to be equal.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sd35.checkpoints.keys import (
    PREFIXES,
    SHARED_T5,
    VAE_ATTENTION,
    Move,
    transformer_moves,
    vae_to_diffusers,
    vae_to_original,
)
from sd35.checkpoints.lazy import Lazy, Tensors, halves_swapped, reshaped, rows, stacked
from sd35.errors import CheckpointError
from sd35.fp8 import BLOCK, Scheme

_KINDS = ("", ".weight", ".bias", ".weight_scale")
NOT_WEIGHTS = re.compile(r"(logit_scale|.*position_ids)$")  # ComfyUI saves these with the encoders


@dataclass
class Layout:
    """Tensors of one part under one set of names, with the schemes of its FP8 layers."""

    tensors: Tensors
    schemes: dict[str, Scheme] = field(default_factory=dict)
    input_scales: Tensors = field(default_factory=dict)


def to_diffusers(part: str, original: Layout) -> Layout:
    """One part of a single file under diffusers' names; a tensor that has none is CheckpointError."""
    if part == "transformer":
        return _transformer_to_diffusers(original)
    if part == "vae":
        return Layout(_vae(original.tensors, vae_to_diffusers, "decoder.up."))
    tensors = {name: lazy for name, lazy in original.tensors.items() if not NOT_WEIGHTS.match(name)}
    if part == "text_encoder_3" and all(name in tensors for name in SHARED_T5):
        del tensors[SHARED_T5[1]]  # the same table twice
    return Layout(tensors, original.schemes, original.input_scales)


def to_original(part: str, diffusers: Layout) -> Layout:
    """One part of a folder under the original's names, without the prefix; its scales have to allow it."""
    if part == "transformer":
        return _transformer_to_original(diffusers)
    if part == "vae":
        return Layout(_vae(diffusers.tensors, vae_to_original, "decoder.up_blocks."))
    tensors = dict(diffusers.tensors)
    if part == "text_encoder_3" and SHARED_T5[1] in tensors:
        tensors.setdefault(SHARED_T5[0], tensors.pop(SHARED_T5[1]))
        tensors.pop(SHARED_T5[1], None)
    return Layout(tensors, diffusers.schemes, diffusers.input_scales)


def depth(names: Mapping[str, object], block: str, dual: str) -> tuple[int, tuple[int, ...]]:
    """Number of blocks, and those with dual attention, by the names of tensors (`block` + number + ...)."""
    numbers = {int(found[1]) for name in names if (found := re.match(rf"{block}\.(\d{{1,6}})\.", name))}
    is_dual = {
        int(found[1]) for name in names if (found := re.match(rf"{block}\.(\d{{1,6}})\.{dual}\.", name))
    }
    if numbers != set(range(len(numbers))):
        raise CheckpointError(
            f"The transformer's {len(numbers)} blocks are not numbered from 0 without a gap, up to "
            f"{max(numbers)}: blocks are missing, so fetch the checkpoint again."
        )
    return len(numbers), tuple(sorted(is_dual))


def _transformer_to_diffusers(original: Layout) -> Layout:
    left, result = dict(original.tensors), Layout({})
    for move in transformer_moves(*depth(left, "joint_blocks", r"x_block\.attn2")):
        scheme = original.schemes.get(move.original)
        for kind in _KINDS:
            if (lazy := left.pop(move.original + kind, None)) is not None:
                for layer, part in zip(move.diffusers, _cut(move, kind, lazy, scheme), strict=True):
                    result.tensors[layer + kind] = part
        for layer in move.diffusers if scheme else ():
            result.schemes[layer] = scheme  # type: ignore[assignment]
            if move.original in original.input_scales:
                result.input_scales[layer] = original.input_scales[move.original]
    _refuse_left_over(left)
    return result


def _transformer_to_original(diffusers: Layout) -> Layout:
    left, result = dict(diffusers.tensors), Layout({})
    for move in transformer_moves(*depth(left, "transformer_blocks", "attn2")):
        scheme = diffusers.schemes.get(move.diffusers[0])
        for kind in _KINDS:
            parts = [left.pop(layer + kind) for layer in move.diffusers if layer + kind in left]
            if parts:
                _check_whole(move, kind, parts)
                result.tensors[move.original + kind] = _join(move, kind, parts, scheme)
        if scheme:
            result.schemes[move.original] = scheme
            if move.diffusers[0] in diffusers.input_scales:
                result.input_scales[move.original] = diffusers.input_scales[move.diffusers[0]]
    _refuse_left_over(left)
    return result


def _cut(move: Move, kind: str, lazy: Lazy, scheme: Scheme | None) -> list[Lazy]:
    """One tensor of the original as those of diffusers."""
    count = len(move.diffusers)
    if kind == ".weight_scale" and scheme and scheme.granularity == "tensorwise":
        return [lazy] * count
    _check_divides(move, kind, lazy, scheme)
    if move.swapped:
        return [halves_swapped(lazy)]
    if count == 1:
        return [lazy]
    height = lazy.shape[0] // count
    return [rows(lazy, i * height, (i + 1) * height) for i in range(count)]


def _join(move: Move, kind: str, parts: list[Lazy], scheme: Scheme | None) -> Lazy:
    """The way back; equal tensorwise scales are one, and whether they are equal is the caller's to know."""
    if kind == ".weight_scale" and scheme and scheme.granularity == "tensorwise":
        return parts[0]
    whole = stacked(parts)
    return halves_swapped(whole) if move.swapped else whole


def _check_whole(move: Move, kind: str, parts: list[Lazy]) -> None:
    if len(parts) != len(move.diffusers) or len({(part.dtype, part.shape[1:]) for part in parts}) > 1:
        raise CheckpointError(
            f"{', '.join(move.diffusers)} are one layer in the original layout, and their {kind[1:]} tensors "
            "are not all there or not alike: the checkpoint is damaged, so fetch it again."
        )


def _check_divides(move: Move, kind: str, lazy: Lazy, scheme: Scheme | None) -> None:
    """Cuts must fall between rows, and between blocks of rows where a scale belongs to a block."""
    pieces = 2 if move.swapped else len(move.diffusers)
    by_block = scheme is not None and scheme.granularity == "blockwise" and kind == ".weight"
    if pieces > 1 and (not lazy.shape or lazy.shape[0] % (pieces * (BLOCK if by_block else 1))):
        raise CheckpointError(
            f"{move.original}{kind} has the shape {tuple(lazy.shape)}, which can't be cut into {pieces} "
            "equal parts: the checkpoint is damaged or of something else, so fetch it again."
        )


def _refuse_left_over(left: Tensors) -> None:
    if left:
        name = min(left)
        raise CheckpointError(
            f"{len(left)} tensors have no place in an SD3.5 transformer, {name} for one: the checkpoint is "
            "damaged or of something else."
        )


def _vae(tensors: Tensors, rename: Callable[[str, int], str], up: str) -> Tensors:
    """Renamed; the attention's matrices are 1 x 1 convolutions in the original."""
    numbers = {int(name[len(up) :].split(".")[0]) for name in tensors if name.startswith(up)}
    renamed = {}
    for name, lazy in tensors.items():
        after = rename(name, len(numbers))
        if VAE_ATTENTION.search(after) and len(lazy.shape) == 4:
            lazy = reshaped(lazy, lazy.shape[:2])
        elif VAE_ATTENTION.search(name):
            lazy = reshaped(lazy, (*lazy.shape, 1, 1))
        renamed[after] = lazy
    return renamed


def infer_transformer_config(tensors: Mapping[str, Lazy]) -> dict[str, object]:
    """What transformer/config.json says, from shapes under diffusers' names, as sd3.5's own code does."""
    num_layers, dual = depth(tensors, "transformer_blocks", "attn2")
    try:
        width, text = tensors["context_embedder.weight"].shape
        in_channels, patch = tensors["pos_embed.proj.weight"].shape[1:3]
        side = round(tensors["pos_embed.pos_embed"].shape[1] ** 0.5)
        pooled = tensors["time_text_embed.text_embedder.linear_1.weight"].shape[1]
        head = tensors["transformer_blocks.0.attn.norm_k.weight"].shape[0]
        out = tensors["proj_out.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"The transformer can't be recognised ({error}): SD3.5's embedders and q/k norms are not all "
            "there, so the file is damaged or of something else (SD3.0 has no q/k norms)."
        ) from error
    return {
        "_class_name": "SD3Transformer2DModel",
        "attention_head_dim": head,
        "caption_projection_dim": width,
        "dual_attention_layers": list(dual),
        "in_channels": in_channels,
        "joint_attention_dim": text,
        "num_attention_heads": width // head,
        "num_layers": num_layers,
        "out_channels": out // patch**2,
        "patch_size": patch,
        "pooled_projection_dim": pooled,
        "pos_embed_max_size": side,
        "qk_norm": "rms_norm",
    }


def prefix_of(part: str, names: Mapping[str, object]) -> str | None:
    """What the part's names begin with here, None where it is absent; a transformer alone may be bare."""
    prefix = PREFIXES[part]
    if any(name.startswith(prefix) for name in names):
        return prefix
    return "" if part == "transformer" and any(name.startswith("joint_blocks.") for name in names) else None
