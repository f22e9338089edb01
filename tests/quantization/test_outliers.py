"""The outlier guard: planted giants are found, said by name, and spared or refused as the recipe has it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import sd35
from sd35.cli.main import main
from sd35.config import RuntimeConfig
from sd35.errors import CheckpointError
from sd35.fp8 import Scheme, quantize
from sd35.quantization.calibrate import LayerInputs, calibrate
from sd35.quantization.coarseness import least_db, weight_sqnr_db
from sd35.request import GenerationRequest
from sd35.runtime.load import load_pipeline

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
BLOCK = "transformer_blocks.1"
TENSORWISE = Scheme(granularity="tensorwise")


@pytest.fixture
def weight() -> Tensor:
    """An ordinary weight [128, 256]."""
    return 0.02 * torch.randn(128, 256, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def giant_row(demo_copy: Path, edit_tensors: Callable[..., None]) -> Path:
    """The demo with one row of one `to_k` ten thousand times as large."""
    edit_tensors(demo_copy / WEIGHTS, lambda tensors: tensors[f"{BLOCK}.attn.to_k.weight"][3].mul_(1e4))
    return demo_copy


def dtypes(folder: Path) -> dict[str, torch.dtype]:
    """What each weight of block 1 is stored as."""
    tensors = load_file(folder / WEIGHTS)
    return {name: tensor.dtype for name, tensor in tensors.items() if name.startswith(f"{BLOCK}.")}


@pytest.mark.parametrize("scheme", [Scheme(), TENSORWISE, Scheme("e5m2"), Scheme(granularity="blockwise")])
def test_ordinary_weights_pass(weight: Tensor, scheme: Scheme) -> None:
    """Ordinary values are measured within half a dB of what is called ordinary, whatever their size."""
    error = quantize(weight, scheme.dtype, scheme.granularity).dequantize() - weight
    truth = float(10 * torch.log10(weight.square().sum() / error.square().sum()))
    for size in (1e-12, 1.0, 1e12):
        assert weight_sqnr_db(size * weight, scheme) == pytest.approx(truth, abs=0.5)


@pytest.mark.parametrize(
    ("plant", "scheme", "is_spoilt"),
    [
        (lambda w: w[3].mul_(1e4), TENSORWISE, True),
        (lambda w: w[3].mul_(1e4), Scheme(), False),  # a giant row has a scale of its own
        (lambda w: w[:, 5].mul_(1e6), Scheme(), True),  # an input's column dwarfs every row
        (lambda w: w[:, 5].mul_(1e6), Scheme(granularity="blockwise"), True),
        (lambda w: w[:, 5].mul_(1e6), Scheme("e5m2"), False),  # E5M2 has the range
        (lambda w: w[:, 5].mul_(1e3), Scheme(), False),  # and E4M3 has some
        (lambda w: w[:64].zero_(), TENSORWISE, False),
    ],
)
def test_giants_spoil_what_shares_their_scale(
    weight: Tensor, plant: Callable[[Tensor], Tensor], scheme: Scheme, is_spoilt: bool
) -> None:
    """What counts is the ordinary values' own precision, not the energy, which is the giants'."""
    plant(weight)
    energy = quantize(weight, scheme.dtype, scheme.granularity).dequantize() - weight
    assert weight.square().sum() / energy.square().sum() > 10 ** (least_db(scheme.dtype) / 10)
    assert (weight_sqnr_db(weight, scheme) < least_db(scheme.dtype)) == is_spoilt


def test_a_giant_row_is_kept_in_16_bit(
    giant_row: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By name with its figure, in the log, the report and the manifest; q and v share k's fate."""
    recipe = sd35.Recipe.of(TENSORWISE)
    report = sd35.quantize(giant_row, tmp_path / "out", recipe)
    (found,) = report.outliers
    assert (found.layer, found.cause, found.instead) == (f"{BLOCK}.attn.to_k", "weight", None)
    assert found.figure < found.bound == least_db("e4m3fn")
    assert f"{BLOCK}.attn.to_k stays 16-bit: weight at {found.figure:.1f} dB" in caplog.text
    stored = dtypes(tmp_path / "out")
    fused = [stored[f"{BLOCK}.attn.{name}.weight"] for name in ("to_q", "to_k", "to_v")]
    assert torch.float8_e4m3fn not in fused
    assert stored[f"{BLOCK}.attn.to_out.0.weight"] == torch.float8_e4m3fn
    manifest = json.loads((tmp_path / "out" / "sd35.json").read_text())
    assert [one["layer"] for one in manifest["recipe"]["exceptions"]] == [found.layer]
    load_pipeline(tmp_path / "out", RuntimeConfig(device="cpu"))


def test_refusing_and_ignoring(giant_row: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`refuse` ends with exit code 3 and leaves nothing, `ignore` quantizes all the same."""
    command = ["quantize", str(giant_row), str(tmp_path / "out"), "--granularity", "tensorwise", "--outliers"]
    assert main([*command, "refuse"]) == 3
    assert f"{BLOCK}.attn.to_k (weight at" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))
    assert main([*command, "ignore"]) == 0
    assert dtypes(tmp_path / "out")[f"{BLOCK}.attn.to_k.weight"] == torch.float8_e4m3fn


def test_damage_is_no_outlier(giant_row: Path, tmp_path: Path, edit_tensors: Callable[..., None]) -> None:
    """NaN beside a giant is a damaged checkpoint, and never kept as if 16 bit could help."""
    name = f"{BLOCK}.attn.to_k.weight"
    edit_tensors(giant_row / WEIGHTS, lambda tensors: tensors[name][7].fill_(float("nan")))
    with pytest.raises(CheckpointError, match=f"{name} holds NaN"):
        sd35.quantize(giant_row, tmp_path / "out", sd35.Recipe.of(TENSORWISE))


def inputs_with(channel: float) -> Tensor:
    """Tokens [300, 256] of size one, one channel of which is this large in all of them."""
    x = torch.randn(300, 256, generator=torch.Generator().manual_seed(0))
    x[:, 9] = channel
    return x


@pytest.mark.parametrize("activation", ["dynamic", "static"])
def test_a_giant_channel_drowns_its_tokens(activation: str) -> None:
    """One channel of 6.6e4 is found, whichever way inputs are scaled, and its figure is the true one."""
    ordinary, spoilt = LayerInputs(), LayerInputs()
    ordinary.see(inputs_with(3.0), 1.0)
    x = inputs_with(6.6e4)
    spoilt.see(x, 1.0)
    assert ordinary.sqnr_db(activation) > least_db("e4m3fn") + 2.5
    error = quantize(x).dequantize() - x
    body = torch.arange(256) != 9
    truth = 10 * torch.log10(x[:, body].square().sum() / error[:, body].square().sum())
    assert spoilt.sqnr_db(activation) == pytest.approx(float(truth), abs=1.5)
    assert spoilt.sqnr_db(activation) < least_db("e4m3fn")


def test_a_giant_token_drowns_others_under_one_scale() -> None:
    """Token by token it harms nobody; a static scale that covers it spoils all the others."""
    x = inputs_with(1.0)
    x[0] *= 6.6e5
    seen = LayerInputs()
    seen.see(x, 1.0)
    assert seen.sqnr_db("dynamic") > least_db("e4m3fn") + 2.5
    assert seen.sqnr_db("static") < least_db("e4m3fn")


def plant_giant_channel(tensors: dict[str, Tensor]) -> None:
    """Channel 9 of block 1's hidden layer becomes 6.6e4, and nobody reads it: pictures stay as they were."""
    tensors[f"{BLOCK}.ff.net.0.proj.bias"][9] = 6.6e4
    tensors[f"{BLOCK}.ff.net.2.weight"][:, 9] = 0


def test_calibration_spares_a_giant_channel(
    demo_copy: Path, tmp_path: Path, edit_tensors: Callable[..., None]
) -> None:
    """The layer that gets it stays FP8 in storage, its product is taken in 16 bit; no other layer changes."""
    edit_tensors(demo_copy / WEIGHTS, plant_giant_channel)
    request = GenerationRequest("a fox", seed=1, num_inference_steps=1)
    pipeline = load_pipeline(demo_copy, RuntimeConfig(device="cpu", compute_dtype="fp32"))
    inputs = calibrate(pipeline, [request])
    report = sd35.quantize(
        demo_copy, tmp_path / "out", sd35.Recipe.of(Scheme(activation="static")), inputs=inputs
    )
    (found,) = report.outliers
    assert (found.layer, found.cause) == (f"{BLOCK}.ff.net.2", "inputs")
    assert found.instead == Scheme(activation="none")
    layer = load_pipeline(tmp_path / "out", RuntimeConfig(device="cpu")).mmdit.blocks[1].sample_mlp.fc2
    assert layer.activation == "none"


def test_what_saturates_far_beyond_the_percentile(demo: Path, tmp_path: Path) -> None:
    """A static scale that the largest token exceeds more than fourfold is not used; twofold is."""
    layers = {name.removesuffix(".weight") for name in load_file(demo / WEIGHTS) if name.endswith(".weight")}
    seen = {layer: LayerInputs(amax=1.0, peak=2.0) for layer in layers}
    seen[f"{BLOCK}.ff.net.2"] = LayerInputs(amax=1.0, peak=5.0)
    report = sd35.quantize("demo", tmp_path / "out", sd35.Recipe.of(Scheme(activation="static")), inputs=seen)
    (found,) = report.outliers
    assert (found.layer, found.cause, found.figure) == (f"{BLOCK}.ff.net.2", "saturation", 5.0)
    assert "5.0 times" in str(found)
