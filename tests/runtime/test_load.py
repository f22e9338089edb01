"""Loading: what is recognised, what is refused, what `auto` comes to."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sd35.config import ComputeDtype, Kernels, RuntimeConfig
from sd35.errors import CheckpointError, DeviceError, RequestError
from sd35.request import GenerationRequest
from sd35.runtime import facts, load
from sd35.runtime.load import load_pipeline, resolve
from sd35.runtime.pipeline import Pipeline
from sd35.variants import VARIANTS


@pytest.mark.parametrize(
    ("file", "changes", "word"),
    [
        ("transformer/config.json", {"qk_norm": None}, "qk_norm"),
        ("transformer/config.json", {"attention_head_dim": 72}, "attention_head_dim"),
        ("transformer/config.json", {"num_layers": 10**9}, "num_layers"),
        ("transformer/config.json", {"num_layers": True}, "num_layers"),
        ("transformer/config.json", {"pooled_projection_dim": ...}, "pooled_projection_dim"),
        ("transformer/config.json", {"dual_attention_layers": [0]}, "no SD3.5 variant|left|lacks|no place"),
        ("scheduler/scheduler_config.json", {"use_dynamic_shifting": True}, "shift"),
        ("scheduler/scheduler_config.json", {"shift": "3"}, "shift"),
        ("vae/config.json", {"latent_channels": 4}, "16 channels"),
        ("vae/config.json", {"block_out_channels": [32, 64, 96]}, "factor 8"),
        ("vae/config.json", {"use_post_quant_conv": True}, "post_quant_conv"),
        ("vae/config.json", {"mid_block_add_attention": False}, "attention in the middle"),
        ("vae/config.json", {"scaling_factor": ...}, "scaling_factor"),
        ("text_encoder/config.json", {"eos_token_id": ...}, "eos_token_id"),
        ("text_encoder_2/config.json", {"num_attention_heads": 7}, "no multiple of num_attention_heads"),
        ("text_encoder_3/config.json", {"d_kv": ...}, "d_kv"),
        ("text_encoder_3/config.json", {"relative_attention_num_buckets": 2}, "no multiple of 4"),
        ("text_encoder_3/config.json", {"relative_attention_max_distance": 32}, "max_distance is 32"),
        ("vae/config.json", {"layers_per_block": ...}, "layers_per_block"),
    ],
)
def test_other_architectures_are_refused(
    demo_copy: Path, edit_json: Callable[..., None], file: str, changes: dict[str, object], word: str
) -> None:
    """A config that is not SD3.5's is refused with the key that is wrong."""
    edit_json(demo_copy / file, **changes)
    with pytest.raises(CheckpointError, match=word):
        load_pipeline(demo_copy, RuntimeConfig(device="cpu"))


@pytest.mark.parametrize("device", ["cuda:99", "tpu9", "mps"])
def test_absent_devices(device: str) -> None:
    """A device that isn't there is a DeviceError in words."""
    with pytest.raises(DeviceError):
        resolve(RuntimeConfig(device=device))


@pytest.mark.parametrize(
    ("device", "kernels", "is_told"),
    [("cuda", "auto", True), ("cuda", "reference", False), ("cpu", "auto", False)],
)
def test_a_card_without_kernels_says_so(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    device: str,
    kernels: Kernels,
    is_told: bool,
) -> None:
    """Where `auto` can't have the fused kernels on a card, a line says that PyTorch computes, and why."""
    monkeypatch.setattr(load, "triton_refuses", lambda *_: "the package triton is not installed")
    placement = replace(resolve(RuntimeConfig(device="cpu", kernels=kernels)), device=torch.device(device))
    load._say_who_computes(placement)
    assert ("plain PyTorch computes: the package triton is not installed" in caplog.text) == is_told


def test_unknown_words() -> None:
    """A RuntimeConfig can only say what is known."""
    with pytest.raises(RequestError, match="compute_dtype"):
        RuntimeConfig(compute_dtype="fp16")  # type: ignore[arg-type]


def test_the_variant_can_be_overruled(demo: Path) -> None:
    """Turbo looks like Large: who knows better may say so."""
    config = RuntimeConfig(device="cpu")
    assert load_pipeline(demo, config).variant == VARIANTS["demo"]
    assert load_pipeline(demo, config, VARIANTS["large-turbo"]).variant.num_inference_steps == 4


def test_no_variant_gives_a_checkpoint_what_it_lacks(demo: Path) -> None:
    """Overruled or not, sizes end where its position table does, and layers where its layers do."""
    pipeline = load_pipeline(demo, RuntimeConfig(device="cpu"), VARIANTS["medium"])
    small = GenerationRequest("a fox", width=64, height=64, num_inference_steps=1)
    assert pipeline.generate(small).images[0].image.size == (64, 64)
    assert GenerationRequest("a fox").pictures(pipeline.variant)[0].settings.width == 512
    with pytest.raises(RequestError, match="beyond the 512 pixels"):
        pipeline.generate(replace(small, width=1024))
    with pytest.raises(RequestError, match="layers 0 to 5"):
        pipeline.generate(replace(small, skip_layer_guidance_scale=2.8))


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_reading_is_told_from_nothing_to_all(demo_fp8: Path, dtype: ComputeDtype) -> None:
    """The share of the weights that has been read only grows, by hundredths, and ends at 1."""
    shares: list[float] = []
    config = RuntimeConfig(device="cpu", compute_dtype=dtype)
    load_pipeline(demo_fp8, config, on_progress=shares.append)
    assert shares == sorted(set(shares))
    assert shares[0] < 0.1
    assert shares[-1] == 1


def test_weight_bytes(pipeline_fp8: Pipeline, demo_fp8: Path) -> None:
    """Bytes in memory are those in the files (fused scales aside), and 16-bit is counted without scales."""
    sizes = facts.weight_bytes(pipeline_fp8)
    for part in ("transformer", "text_encoder_3"):
        on_disk = next((demo_fp8 / part).glob("*.safetensors")).stat().st_size
        assert sizes[part] == pytest.approx(on_disk, rel=0.01)
    stored = load_file(demo_fp8 / "vae/diffusion_pytorch_model.safetensors")
    decoder = [tensor for name, tensor in stored.items() if name.startswith("decoder.")]
    assert sizes["vae"] == sum(tensor.nbytes for tensor in decoder)  # the encoder's stay in the file
    parts = {name: size for name, size in sizes.items() if not name.startswith("total")}
    assert sizes["total"] == sum(parts.values())
    # Of the parts only the transformer is FP8 here: 1 byte + scales, where 16-bit has 2.
    assert sizes["total"] + sizes["transformer"] * 0.8 < sizes["total_16bit"] < sizes["total"] * 2


def test_precision_in_words(pipeline_fp8: Pipeline, pipeline_fp32: Pipeline) -> None:
    """Each part's dtype is what its tensors are."""
    assert facts.precision(pipeline_fp8)["transformer"] == "float8_e4m3fn + bfloat16"
    assert facts.precision(pipeline_fp8)["vae"] == "bfloat16"
    assert set(facts.precision(pipeline_fp32).values()) == {"float32"}


def test_auto_is_a_device_that_is_there() -> None:
    """`auto` is the card where there is one, and else the CPU."""
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve(RuntimeConfig()).device.type == expected
