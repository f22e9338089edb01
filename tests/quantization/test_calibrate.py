"""Static activation scales: found by drawing, stored once a layer, used at every step."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sd35
from sd35.checkpoints.manifest import read_manifest
from sd35.cli.main import main
from sd35.config import RuntimeConfig
from sd35.errors import CheckpointError, RequestError
from sd35.fp8 import Scheme
from sd35.kernels.reference import quantize_static
from sd35.quantization.calibrate import LayerInputs, calibrate
from sd35.request import GenerationRequest
from sd35.runtime.linear import Fp8Linear
from sd35.runtime.load import load_pipeline
from sd35.runtime.pipeline import Pipeline

STATIC = sd35.Recipe.of(Scheme(activation="static"))
LAYER = "transformer_blocks.1.ff.net.2"
CPU = RuntimeConfig(device="cpu", compute_dtype="fp32", activations="fp8")


@pytest.fixture(scope="module")
def request_() -> GenerationRequest:
    """Two steps of a fox."""
    return GenerationRequest("a fox", seed=1, num_inference_steps=2)


@pytest.fixture(scope="module")
def inputs(pipeline_fp32: Pipeline, request_: GenerationRequest) -> dict[str, LayerInputs]:
    """The demo's, from one short drawing."""
    return calibrate(pipeline_fp32, [request_])


def test_quantize_static_saturates() -> None:
    """x / scale rounded to E4M3, one scale for all; what lies beyond 448 steps becomes 448 steps."""
    x = torch.tensor([[1.0, -3.0, 100.0], [0.5, 0.0, -1e6]])
    scaled = quantize_static(x, torch.tensor(0.125))
    assert scaled.dequantize().tolist() == [[1.0, -3.0, 56.0], [0.5, 0.0, -56.0]]
    assert scaled.scale.shape == (2, 1)


def test_calibration_sees_every_call(
    pipeline_fp32: Pipeline, request_: GenerationRequest, inputs: dict[str, LayerInputs]
) -> None:
    """The largest input of a layer over all steps and both halves of guidance, watched by hand."""
    largest: list[float] = []
    layer = pipeline_fp32.mmdit.get_submodule("blocks.1.sample_mlp.fc2")
    hook = layer.register_forward_pre_hook(lambda _, inputs: largest.append(float(inputs[0].abs().max())))
    pipeline_fp32.generate(request_)
    hook.remove()
    assert len(largest) == 2
    assert inputs[LAYER].amax == inputs[LAYER].peak == pytest.approx(max(largest))


def test_cuda_graphs_are_left_alone(
    pipeline_fp32: Pipeline, request_: GenerationRequest, inputs: dict[str, LayerInputs]
) -> None:
    """A pipeline that replays its steps is watched all the same: a replay would call no hook."""
    replaying = replace(pipeline_fp32, recorder=object())  # type: ignore[arg-type]
    assert calibrate(replaying, [request_])[LAYER].amax == inputs[LAYER].amax


def test_q_k_and_v_share_their_input(inputs: dict[str, LayerInputs]) -> None:
    """What is one layer at run time gets one scale, and every linear of the blocks gets one."""
    names = [f"transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v")]
    assert len({inputs[name].amax for name in names}) == 1
    assert set(STATIC.plan("transformer", {f"{name}.weight": torch.Size((1, 1)) for name in inputs})) == set(
        inputs
    )


def test_a_lower_percentile_gives_smaller_scales(
    pipeline_fp32: Pipeline, request_: GenerationRequest, inputs: dict[str, LayerInputs]
) -> None:
    """Leaving out the largest tokens never widens a range; the hooks of a calibration are gone after it."""
    lower = calibrate(pipeline_fp32, [request_], percentile=50)
    assert all(lower[name].amax <= inputs[name].amax for name in inputs)
    assert lower[LAYER].amax < inputs[LAYER].amax
    assert lower[LAYER].peak == inputs[LAYER].peak
    assert not pipeline_fp32.mmdit.get_submodule("blocks.1.sample_mlp.fc2")._forward_pre_hooks
    with pytest.raises(RequestError, match="percentile"):
        calibrate(pipeline_fp32, [], percentile=0)


def test_static_scales_travel_with_the_folder(
    pipeline_fp32: Pipeline, request_: GenerationRequest, inputs: dict[str, LayerInputs], tmp_path: Path
) -> None:
    """scale = amax / 448 arrives at the layer, AdaLN stays in storage, the picture stays the same picture."""
    sd35.quantize("demo", tmp_path / "static", STATIC, inputs=inputs)
    static = load_pipeline(tmp_path / "static", CPU)
    layer = static.mmdit.get_submodule("blocks.1.sample_mlp.fc2")
    assert isinstance(layer, Fp8Linear)
    assert layer.input_scale is not None
    assert float(layer.input_scale) == pytest.approx(inputs[LAYER].amax / 448)
    assert static.mmdit.get_submodule("blocks.1.sample_modulation").input_scale is None
    ours, theirs = (
        torch.frombuffer(
            bytearray(p.generate(request_).images[0].image.tobytes()), dtype=torch.uint8
        ).double()
        for p in (static, pipeline_fp32)
    )
    assert 0 < float((ours - theirs).square().mean()) < 65


def test_no_calibration_no_static_scales(tmp_path: Path) -> None:
    """A static recipe without figures is refused, and leaves nothing."""
    with pytest.raises(RequestError, match="calibration"):
        sd35.quantize("demo", tmp_path / "static", STATIC)
    assert list(tmp_path.iterdir()) == []


def test_a_lost_static_scale_is_an_error(inputs: dict[str, LayerInputs], tmp_path: Path) -> None:
    """A declared static scale that is missing from the file is never replaced by something else."""
    sd35.quantize("demo", tmp_path / "static", STATIC, inputs=inputs)
    path = tmp_path / "static/transformer/diffusion_pytorch_model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    del tensors[f"{LAYER}.input_scale"]
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(CheckpointError, match="static activation scale"):
        load_pipeline(tmp_path / "static", CPU)


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Static scales and learned rounding in one command; what it wrote is sound and says how it was made."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\n")
    generate = Pipeline.generate
    monkeypatch.setattr(Pipeline, "generate", lambda self, one: generate(self, two_steps(one)))
    arguments = ["--static", "--prompts", str(prompts), "-n", "1", "--device", "cpu"]
    assert main(["quantize", "demo", str(tmp_path / "static"), *arguments, "--rounding", "learned"]) == 0
    assert main(["verify", str(tmp_path / "static")]) == 0
    manifest = read_manifest(tmp_path / "static")
    assert manifest is not None
    assert manifest.recipe is not None
    assert (manifest.recipe["rounding"], manifest.recipe["outliers"]) == ("learned", "keep")
    assert main(["quantize", "demo", str(tmp_path / "other"), *arguments, "--storage-only"]) == 2
    assert "leave one of them out" in capsys.readouterr().err


def two_steps(request: GenerationRequest) -> GenerationRequest:
    """The same, sooner done."""
    return replace(request, num_inference_steps=2)
