"""The original's names and diffusers', held to diffusers' own conversion: every rule of the two layouts."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_vae_checkpoint,
    convert_sd3_t5_checkpoint_to_diffusers,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from sd35.checkpoints.keys import PREFIXES, SHARED_T5
from sd35.checkpoints.lazy import Tensors, given
from sd35.checkpoints.relayout import Layout, infer_transformer_config, to_diffusers, to_original
from sd35.checkpoints.single_file import read_part
from sd35.errors import CheckpointError
from sd35.fp8 import Scheme

NUM_LAYERS, DUAL, WIDTH = 3, (0, 2), 128
QKV = "joint_blocks.1.context_block.attn.qkv"
LAST = f"joint_blocks.{NUM_LAYERS - 1}.context_block.adaLN_modulation.1"


def lazily(tensors: dict[str, Tensor]) -> Tensors:
    """Tensors that are there, as the layouts have them."""
    return {name: given(tensor) for name, tensor in tensors.items()}


def values(layout: Layout) -> dict[str, Tensor]:
    """A layout's tensors, read."""
    return {name: lazy.read() for name, lazy in layout.tensors.items()}


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """The same names, and under each the same values."""
    assert set(ours) == set(theirs)
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.fixture(scope="module")
def transformer() -> dict[str, Tensor]:
    """A tiny SD3.5 transformer by diffusers, all of its values different."""
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=16,
        num_layers=NUM_LAYERS,
        attention_head_dim=64,
        num_attention_heads=WIDTH // 64,
        joint_attention_dim=96,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=48,
        pos_embed_max_size=24,
        dual_attention_layers=DUAL,
        qk_norm="rms_norm",
    )
    return {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}


@pytest.fixture
def original(transformer: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same in the original's names."""
    return values(to_original("transformer", Layout(lazily(transformer))))


def test_diffusers_understands_what_we_write(
    transformer: dict[str, Tensor], original: dict[str, Tensor]
) -> None:
    """diffusers' converter takes every tensor of ours and gives the model back, value for value."""
    left = {PREFIXES["transformer"] + name: tensor for name, tensor in original.items()}
    assert_equal(convert_sd3_transformer_checkpoint_to_diffusers(left), transformer)
    assert left == {}


def test_we_read_as_diffusers_reads(original: dict[str, Tensor], tmp_path: Path) -> None:
    """A single file through us equals diffusers' own conversion, tensor by tensor."""
    path, prefix = tmp_path / "single.safetensors", PREFIXES["transformer"]
    save_file({prefix + name: tensor.contiguous() for name, tensor in original.items()}, path)
    theirs = convert_sd3_transformer_checkpoint_to_diffusers(load_file(path))
    with read_part(path, "transformer", prefix) as source:
        assert_equal({name: source.read(name) for name in source}, theirs)


@pytest.mark.parametrize("layer", ["final_layer.adaLN_modulation.1", LAST])
def test_two_layers_change_halves(
    transformer: dict[str, Tensor], original: dict[str, Tensor], layer: str
) -> None:
    """norm_out and the last block's norm1_context have scale and shift the other way round."""
    ours = {
        "final_layer.adaLN_modulation.1": "norm_out.linear",
        LAST: f"transformer_blocks.{NUM_LAYERS - 1}.norm1_context.linear",
    }[layer]
    for kind in ("weight", "bias"):
        shift, scale = original[f"{layer}.{kind}"].chunk(2)
        assert torch.equal(transformer[f"{ours}.{kind}"], torch.cat([scale, shift]))


def test_other_modulations_keep_their_order(
    transformer: dict[str, Tensor], original: dict[str, Tensor]
) -> None:
    """Every other AdaLN layer is the same rows in the same order."""
    for ours, theirs in (("norm1", "x_block"), ("norm1_context", "context_block")):
        expected = original[f"joint_blocks.0.{theirs}.adaLN_modulation.1.weight"]
        assert torch.equal(transformer[f"transformer_blocks.0.{ours}.linear.weight"], expected)


@pytest.mark.parametrize(
    ("granularity", "scale", "expected"),
    [
        ("tensorwise", torch.tensor(0.5), [torch.tensor(0.5)] * 3),
        ("rowwise", torch.arange(1.0, 385.0)[:, None], list(torch.arange(1.0, 385.0)[:, None].chunk(3))),
        ("blockwise", torch.arange(1.0, 4.0)[:, None], list(torch.arange(1.0, 4.0)[:, None].chunk(3))),
    ],
)
def test_scales_are_cut_with_their_rows(
    original: dict[str, Tensor], granularity: str, scale: Tensor, expected: list[Tensor]
) -> None:
    """q, k and v get the scales of their own rows, or the one that all share; and back."""
    scheme = Scheme("e4m3fn", granularity)  # type: ignore[arg-type]
    tensors = {**original, f"{QKV}.weight_scale": scale}
    layout = to_diffusers("transformer", Layout(lazily(tensors), {QKV: scheme}))
    for name, part in zip(("add_q_proj", "add_k_proj", "add_v_proj"), expected, strict=True):
        layer = f"transformer_blocks.1.attn.{name}"
        assert layout.schemes[layer] == scheme
        assert torch.equal(layout.tensors[f"{layer}.weight_scale"].read(), part)
    back = to_original("transformer", layout)
    assert back.schemes == {QKV: scheme}
    assert_equal(values(back), tensors)


def test_a_scale_a_row_is_swapped_with_its_row(original: dict[str, Tensor]) -> None:
    """In the two swapped layers each row keeps its scale."""
    scale = torch.arange(1.0, 2 * WIDTH + 1)[:, None]
    tensors = {**original, f"{LAST}.weight_scale": scale}
    layout = to_diffusers("transformer", Layout(lazily(tensors), {LAST: Scheme()}))
    ours = values(layout)
    name = f"transformer_blocks.{NUM_LAYERS - 1}.norm1_context.linear.weight"
    restored = original[f"{LAST}.weight"] * scale
    assert torch.equal(ours[name] * ours[f"{name}_scale"], torch.cat(list(restored.chunk(2))[::-1]))


def test_fp8_bytes_survive(original: dict[str, Tensor]) -> None:
    """Cutting, stacking and swapping FP8 leaves every byte as it was."""
    fp8 = {
        name: tensor.to(torch.float8_e4m3fn) if name.endswith(".weight") and tensor.ndim == 2 else tensor
        for name, tensor in original.items()
    }
    back = to_original("transformer", to_diffusers("transformer", Layout(lazily(fp8))))
    for name, tensor in values(back).items():
        assert tensor.dtype == fp8[name].dtype
        assert torch.equal(tensor.contiguous().view(torch.uint8), fp8[name].contiguous().view(torch.uint8))


def test_the_transformers_numbers_follow_from_shapes(transformer: dict[str, Tensor]) -> None:
    """Depth, width, dual layers and tables are read off the tensors."""
    config = infer_transformer_config(lazily(transformer))
    assert config == {
        "_class_name": "SD3Transformer2DModel",
        "attention_head_dim": 64,
        "caption_projection_dim": WIDTH,
        "dual_attention_layers": list(DUAL),
        "in_channels": 16,
        "joint_attention_dim": 96,
        "num_attention_heads": 2,
        "num_layers": NUM_LAYERS,
        "out_channels": 16,
        "patch_size": 2,
        "pooled_projection_dim": 48,
        "pos_embed_max_size": 24,
        "qk_norm": "rms_norm",
    }


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda t: t.update({"joint_blocks.0.x_block.stranger": torch.ones(1)}), "no place"),
        (lambda t: t.update({"joint_blocks.999999.x_block.mlp.fc1.bias": torch.ones(1)}), "without a gap"),
        (lambda t: t.update({f"{QKV}.weight": torch.ones(385, WIDTH)}), "cut into 3"),
        (lambda t: t.update({f"{QKV}.bias": torch.ones(())}), "cut into 3"),
    ],
)
def test_what_does_not_fit_is_refused(
    original: dict[str, Tensor], damage: Callable[[dict[str, Tensor]], None], word: str
) -> None:
    """Unknown tensors, gaps between blocks and sizes that can't be cut are named."""
    tensors = dict(original)
    damage(tensors)
    with pytest.raises(CheckpointError, match=word):
        to_diffusers("transformer", Layout(lazily(tensors)))


def test_a_third_of_a_fused_layer_is_not_enough(transformer: dict[str, Tensor]) -> None:
    """With q and v alone there is no qkv."""
    tensors = {
        name: tensor
        for name, tensor in transformer.items()
        if name != "transformer_blocks.1.attn.to_k.weight"
    }
    with pytest.raises(CheckpointError, match="to_k"):
        to_original("transformer", Layout(lazily(tensors)))


def test_the_vae_is_diffusers_own_conversion() -> None:
    """Our names of the VAE are what diffusers' converter expects, and both readings are equal."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64),
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        latent_channels=16,
        layers_per_block=2,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    expected = {name: torch.randn_like(tensor) for name, tensor in vae.state_dict().items()}
    original = values(to_original("vae", Layout(lazily(expected))))
    assert original["decoder.mid.attn_1.q.weight"].shape == (64, 64, 1, 1)
    prefixed = {PREFIXES["vae"] + name: tensor for name, tensor in original.items()}
    assert_equal(convert_ldm_vae_checkpoint(prefixed, vae.config), expected)
    assert_equal(values(to_diffusers("vae", Layout(lazily(original)))), expected)


@pytest.mark.parametrize("held", [SHARED_T5[:1], SHARED_T5[1:], SHARED_T5])
def test_t5_has_one_embedding(held: tuple[str, ...]) -> None:
    """Files hold T5's table under either name or under both; it is read once and written as `shared`."""
    table = torch.randn(8, 4)
    layout = Layout(lazily(dict.fromkeys(held, table)))
    read = values(to_diffusers("text_encoder_3", layout))
    assert len(read) == 1
    assert torch.equal(*read.values(), table)
    assert list(to_original("text_encoder_3", layout).tensors) == ["shared.weight"]
    prefixed = {PREFIXES["text_encoder_3"] + name: table for name in held}
    assert set(read) <= set(convert_sd3_t5_checkpoint_to_diffusers(prefixed))
