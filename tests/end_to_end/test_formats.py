"""One model in every format draws one picture; and what plain diffusers makes of ComfyUI's format."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel

import sd35
from sd35.cli.main import main
from sd35.fp8 import Scheme

CPU = sd35.RuntimeConfig(device="cpu", compute_dtype="bf16")


def draw(checkpoint: Path, request: sd35.GenerationRequest, components: Path) -> np.ndarray:
    """The picture that a checkpoint draws."""
    beside = components if checkpoint.is_file() else None
    (image,) = sd35.load(checkpoint, "fp8", CPU, components=beside).generate(request).images
    return np.array(image.image)


@pytest.fixture(scope="module")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo as ComfyUI's FP8 file, all products in 16 bit."""
    folder = tmp_path_factory.mktemp("formats")
    recipe = sd35.Recipe.of(Scheme("e4m3fn", "tensorwise", "none"))
    sd35.quantize("demo", folder / "tensorwise", recipe)
    sd35.convert(folder / "tensorwise", folder / "c.safetensors", "comfy", requantize=True)
    return folder / "c.safetensors"


@pytest.mark.parametrize(
    ("target", "encoders"), [("comfy-legacy", False), ("rowwise", True), ("folder", False)]
)
def test_lossless_formats_draw_the_same_bytes(
    comfy: Path, demo: Path, tmp_path: Path, fox: sd35.GenerationRequest, target: str, encoders: bool
) -> None:
    """ComfyUI's file and what it is converted into, with and without encoders inside: equal pictures."""
    place = tmp_path / ("folder" if target == "folder" else "x.safetensors")
    sd35.convert(comfy, place, target, with_encoders=encoders)  # type: ignore[arg-type]
    expected = draw(comfy, fox, demo)
    assert expected.std() > 5
    assert np.array_equal(draw(place, fox, demo), expected)


def test_our_folder_and_its_rowwise_file(
    demo: Path, demo_fp8: Path, tmp_path: Path, fox: sd35.GenerationRequest
) -> None:
    """The default FP8 folder, FP8 products and all, draws the same as a single file."""
    sd35.convert(demo_fp8, tmp_path / "g.safetensors", "rowwise")
    assert np.array_equal(draw(tmp_path / "g.safetensors", fox, demo), draw(demo_fp8, fox, demo))


def test_from_the_command_line(
    comfy: Path, demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`sd35 convert` and `sd35 generate --checkpoint FILE --components FOLDER`, and the refusal's code."""
    path = str(tmp_path / "g.safetensors")
    assert main(["convert", str(comfy), path, "--format", "rowwise", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["requantized"] == 0
    arguments = ["generate", "a fox", "--checkpoint", path, "--components", str(demo), "--steps", "1"]
    assert main([*arguments, "-o", str(tmp_path / "fox.png"), "--json"]) == 0
    assert "float8_e4m3fn" in json.loads(capsys.readouterr().out)["precision"]["transformer"]
    assert main(["convert", "demo", str(tmp_path / "x.safetensors"), "--format", "comfy"]) == 2
    assert "--requantize" in capsys.readouterr().err


@torch.inference_mode()
def test_the_trap_that_we_remove(comfy: Path, demo: Path) -> None:
    """Plain diffusers drops the same file's scales without an error; its velocity is noise."""
    torch.manual_seed(0)
    inputs = (torch.randn(1, 16, 32, 32), torch.randn(1, 13, 256), torch.randn(1, 256), torch.tensor([500.0]))
    truth = SD3Transformer2DModel.from_pretrained(demo / "transformer", dtype=torch.float32)(*inputs).sample
    theirs = SD3Transformer2DModel.from_single_file(
        str(comfy),
        config=str(demo),
        subfolder="transformer",
        torch_dtype=torch.float32,
        local_files_only=True,
    )(*inputs).sample
    ours = sd35.load(
        comfy, "fp8", sd35.RuntimeConfig(device="cpu", compute_dtype="fp32"), components=demo
    ).mmdit
    conditioning = ours.condition(inputs[1], inputs[2], inputs[3])
    out = ours(inputs[0], conditioning.context, conditioning.table[0])
    assert relative_error(out, truth) < 0.1
    assert not relative_error(theirs, truth) < 0.9  # NaN is not below either


def relative_error(velocity: torch.Tensor, truth: torch.Tensor) -> float:
    """Norm of the difference over the norm of the truth."""
    return float((velocity - truth).norm() / truth.norm())
