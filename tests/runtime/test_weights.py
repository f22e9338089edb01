"""Weights into modules: nothing missing, nothing left over, nothing changed by fusing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sd35
from sd35.config import RuntimeConfig
from sd35.errors import CheckpointError
from sd35.fp8 import Granularity, Scheme
from sd35.kernels.reference import dequantize_weight
from sd35.runtime.linear import Fp8Linear
from sd35.runtime.load import load_pipeline
from sd35.runtime.weights import rowwise_scale

CPU = RuntimeConfig(device="cpu", compute_dtype="fp32")
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("granularity", ["tensorwise", "rowwise", "blockwise"])
def test_fusing_changes_no_value(tmp_path: Path, granularity: Granularity) -> None:
    """The fused q, k, v restores to exactly what its three parts in the file mean."""
    folder = tmp_path / "fp8"
    sd35.quantize("demo", folder, sd35.Recipe.of(Scheme("e4m3fn", granularity)))
    fused = load_pipeline(folder, CPU).mmdit.blocks[1].context_attention.qkv
    assert isinstance(fused, Fp8Linear)
    stored = load_file(folder / TRANSFORMER)
    parts = []
    for name in ("add_q_proj", "add_k_proj", "add_v_proj"):
        data, scale = (
            stored[f"transformer_blocks.1.attn.{name}.weight{suffix}"] for suffix in ("", "_scale")
        )
        if granularity == "blockwise":
            scale = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
        parts.append(data.float() * scale)
    assert torch.equal(dequantize_weight(fused.weight, torch.float32), torch.cat(parts))


def test_without_fp8_products_only_storage_is_fp8(demo_fp8: Path) -> None:
    """`auto` multiplies in 16 bits on a CPU: the same weights, activations as they come."""
    auto, fp8 = (
        load_pipeline(demo_fp8, RuntimeConfig(device="cpu", compute_dtype="bf16", activations=activations))
        for activations in ("auto", "fp8")
    )
    stored, rounding = (one.mmdit.blocks[1].sample_mlp.fc1 for one in (auto, fp8))
    assert torch.equal(stored.data.view(torch.uint8), rounding.data.view(torch.uint8))
    x = torch.randn(1, 5, stored.data.shape[1], dtype=torch.bfloat16)
    exact = torch.nn.functional.linear(x.double(), stored.data.double() * stored.scale, stored.bias.double())
    errors = [float((layer(x).double() - exact).norm() / exact.norm()) for layer in (stored, rounding)]
    assert errors[0] < 0.004  # bf16's rounding of weight, product and sum
    assert 0.015 < errors[1] < 0.04  # and E4M3's of the activations


def test_weights_are_not_copied(demo: Path) -> None:
    """In the file's own dtype on the CPU a plain weight is the mapped file, not memory of its own."""
    bf16 = load_pipeline(demo, RuntimeConfig(device="cpu", compute_dtype="bf16"))
    weight = bf16.mmdit.proj_out.weight
    assert weight.untyped_storage().nbytes() >= weight.nbytes
    assert not weight.requires_grad


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (TRANSFORMER, "transformer_blocks.3.attn.to_k.weight"),
        (TRANSFORMER, "transformer_blocks.0.attn2.norm_q.weight"),
        (TRANSFORMER, "transformer_blocks.2.ff_context.net.2.bias"),
        ("text_encoder/model.safetensors", "text_projection.weight"),
        ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.bias"),
    ],
)
def test_a_missing_tensor_is_named(
    demo_copy: Path, edit_tensors: Callable[..., None], path: str, name: str
) -> None:
    """Whatever is missing, in whichever part, is an error with its name; nothing is made up."""
    edit_tensors(demo_copy / path, lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=r"(?i)" + name.split(".")[-2]):
        load_pipeline(demo_copy, CPU)


@pytest.mark.parametrize("path", [TRANSFORMER, "text_encoder_3/model.safetensors"])
def test_a_left_over_tensor_is_named(demo_copy: Path, edit_tensors: Callable[..., None], path: str) -> None:
    """A tensor that nobody asks for is an error, not ignored."""
    edit_tensors(demo_copy / path, lambda tensors: tensors.update({"stranger.weight": torch.ones(2)}))
    with pytest.raises(CheckpointError, match=r"stranger\.weight"):
        load_pipeline(demo_copy, CPU)


def test_a_misshapen_tensor_is_refused(demo_copy: Path, edit_tensors: Callable[..., None]) -> None:
    """A weight of another width than the config promises is refused."""
    name = "context_embedder.weight"
    edit_tensors(demo_copy / TRANSFORMER, lambda t: t.update({name: t[name][:, :-16].contiguous()}))
    with pytest.raises(CheckpointError, match="context_embed"):
        load_pipeline(demo_copy, CPU)


def test_fp8_without_its_scale_is_refused(demo_copy: Path, edit_tensors: Callable[..., None]) -> None:
    """FP8 bytes in a file that declares no format are never used as numbers."""
    name = "transformer_blocks.0.attn.to_q.weight"
    edit_tensors(demo_copy / TRANSFORMER, lambda t: t.update({name: t[name].to(torch.float8_e4m3fn)}))
    with pytest.raises(CheckpointError, match="declares no format"):
        load_pipeline(demo_copy, CPU)


@pytest.mark.parametrize("scale", [torch.ones(3), torch.ones(256, 1).half(), torch.ones(1, 256)])
def test_foreign_scales_are_refused(scale: torch.Tensor) -> None:
    """A scale of another shape or dtype restores nothing."""
    with pytest.raises(CheckpointError, match="restores no weight"):
        rowwise_scale("layer", scale, torch.Size((256, 128)))


def test_either_name_of_the_shared_t5_embedding(demo_copy: Path, edit_tensors: Callable[..., None]) -> None:
    """T5's embedding may come under either of its two names, and means the same."""
    path = demo_copy / "text_encoder_3/model.safetensors"
    before = load_pipeline(demo_copy, CPU).text_encoders.t5
    edit_tensors(path, lambda t: t.update({"encoder.embed_tokens.weight": t.pop("shared.weight")}))
    after = load_pipeline(demo_copy, CPU).text_encoders.t5
    assert before is not None
    assert after is not None
    ids = torch.tensor([[5, 9, 1]])
    assert torch.equal(before.model(ids), after.model(ids))
