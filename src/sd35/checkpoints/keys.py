"""The original single-file names of SD3.5, and diffusers' names for the same rows.

Stability's files, and ComfyUI's after them, name the MMDiT as its authors' code does; diffusers renamed it,
cut the fused `qkv` into three, and turned two AdaLN layers round: where the original gives (shift, scale),
`norm_out` and the last block's `norm1_context` of diffusers give (scale, shift). Reading those two unswapped
gives a picture that is wrong and looks almost right, so `Move` carries the fact.

Sources: Stability-AI/sd3.5 `mmditx.py` and diffusers' `single_file_utils.py`; the tests hold this table to
the latter, tensor by tensor.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

# Part of a pipeline -> what its names begin with in a single file.
PREFIXES = {
    "transformer": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
    "text_encoder_3": "text_encoders.t5xxl.transformer.",
}
SHARED_T5 = ("shared.weight", "encoder.embed_tokens.weight")

_MODEL = {
    "pos_embed": ("pos_embed.pos_embed",),
    "x_embedder.proj": ("pos_embed.proj",),
    "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
    "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
    "context_embedder": ("context_embedder",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_SAMPLE_STREAM = {
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn.ln_q": ("attn.norm_q",),
    "x_block.attn.ln_k": ("attn.norm_k",),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
}
_CONTEXT_STREAM = {
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block.attn.ln_q": ("attn.norm_added_q",),
    "context_block.attn.ln_k": ("attn.norm_added_k",),
}
# The last block's context ends in its attention: nothing reads what would come after.
_CONTEXT_STREAM_GOES_ON = {
    "context_block.attn.proj": ("attn.to_add_out",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
}
_DUAL_ATTENTION = {
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.ln_q": ("attn2.norm_q",),
    "x_block.attn2.ln_k": ("attn2.norm_k",),
    "x_block.attn2.proj": ("attn2.to_out.0",),
}


@dataclass(frozen=True)
class Move:
    """One layer of the original, and the layers of diffusers that its rows are, from top to bottom."""

    original: str
    diffusers: tuple[str, ...]
    swapped: bool = False  # the halves of the rows change places


def transformer_moves(num_layers: int, dual_attention_layers: Collection[int]) -> Iterator[Move]:
    """Every layer of an MMDiT of this depth."""
    for original, diffusers in _MODEL.items():
        yield Move(original, diffusers, swapped=original == "final_layer.adaLN_modulation.1")
    for i in range(num_layers):
        is_last = i == num_layers - 1
        for original, layers in _block(is_last, i in dual_attention_layers).items():
            yield Move(
                f"joint_blocks.{i}.{original}",
                tuple(f"transformer_blocks.{i}.{layer}" for layer in layers),
                swapped=is_last and original == "context_block.adaLN_modulation.1",
            )


def _block(is_last: bool, is_dual: bool) -> dict[str, tuple[str, ...]]:
    layers = {**_SAMPLE_STREAM, **_CONTEXT_STREAM}
    if not is_last:
        layers.update(_CONTEXT_STREAM_GOES_ON)
    if is_dual:
        layers.update(_DUAL_ATTENTION)
    return layers


# The VAE: (original, diffusers); {up} counts from the other end in diffusers.
_VAE = (
    ("encoder.down.{i}.block.{j}.", "encoder.down_blocks.{i}.resnets.{j}."),
    ("encoder.down.{i}.downsample.", "encoder.down_blocks.{i}.downsamplers.0."),
    ("decoder.up.{up}.block.{j}.", "decoder.up_blocks.{up}.resnets.{j}."),
    ("decoder.up.{up}.upsample.", "decoder.up_blocks.{up}.upsamplers.0."),
    *((f"{side}.mid.block_1.", f"{side}.mid_block.resnets.0.") for side in ("encoder", "decoder")),
    *((f"{side}.mid.block_2.", f"{side}.mid_block.resnets.1.") for side in ("encoder", "decoder")),
    *(
        (f"{side}.mid.attn_1.{original}.", f"{side}.mid_block.attentions.0.{diffusers}.")
        for side in ("encoder", "decoder")
        for original, diffusers in (
            ("norm", "group_norm"),
            ("q", "to_q"),
            ("k", "to_k"),
            ("v", "to_v"),
            ("proj_out", "to_out.0"),
        )
    ),
    ("encoder.norm_out.", "encoder.conv_norm_out."),
    ("decoder.norm_out.", "decoder.conv_norm_out."),
)
_VAE_SHORTCUT = ("nin_shortcut", "conv_shortcut")
VAE_ATTENTION = re.compile(r"mid_block\.attentions\.0\.to_(q|k|v|out\.0)\.weight$")  # diffusers' names


def vae_to_diffusers(name: str, num_blocks: int) -> str:
    """The original's name of a VAE tensor -> diffusers'."""
    renamed = _renamed(name, [(original, diffusers) for original, diffusers in _VAE], num_blocks)
    return renamed.replace(*_VAE_SHORTCUT)


def vae_to_original(name: str, num_blocks: int) -> str:
    """Diffusers' name of a VAE tensor -> the original's."""
    renamed = _renamed(name, [(diffusers, original) for original, diffusers in _VAE], num_blocks)
    return renamed.replace(_VAE_SHORTCUT[1], _VAE_SHORTCUT[0])


def _renamed(name: str, table: list[tuple[str, str]], num_blocks: int) -> str:
    for before, after in table:
        pattern = re.escape(before)
        for field in ("i", "j", "up"):
            pattern = pattern.replace(rf"\{{{field}\}}", rf"(?P<{field}>\d+)")
        if found := re.match(pattern, name):
            fields = found.groupdict()
            if "up" in fields:
                fields["up"] = str(num_blocks - 1 - int(fields["up"]))
            return after.format(**fields) + name[found.end() :]
    return name
