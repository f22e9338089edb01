"""Random weights: the same for everyone, of the size that real ones have, and never zeros."""

import pytest
import torch

from sd35.bench.random_weights import RandomCheckpoint, random_embeds, random_tensor
from sd35.bench.work import shapes_of
from sd35.bench.workload import Workload
from sd35.checkpoints.reader import TensorSpec
from sd35.fp8 import quantize
from sd35.quantization.recipe import Recipe
from sd35.runtime.encoders import encode
from sd35.runtime.facts import precision
from sd35.runtime.load import assemble

CPU = torch.device("cpu")


def spec(*shape: int) -> TensorSpec:
    """A bf16 tensor."""
    return TensorSpec(torch.bfloat16, torch.Size(shape))


def test_a_name_is_a_seed() -> None:
    """Whoever asks for a tensor gets the same one, and another name is another tensor."""
    one, again, other = (
        random_tensor(name, spec(64, 64), CPU) for name in ("a.weight", "a.weight", "b.weight")
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "shape", "mean", "deviation"),
    [
        ("ff.net.2.weight", (512, 1024), 0.0, 1 / 32),
        ("conv.weight", (64, 64, 3, 3), 0.0, 1 / 24),
        ("norm.weight", (4096,), 1.0, 0.1),
        ("norm.bias", (4096,), 0.0, 0.02),
    ],
)
def test_values_keep_activations_near_one(
    name: str, shape: tuple[int, ...], mean: float, deviation: float
) -> None:
    """Weights by their fan in, norms around 1, biases small and none of them all zeros."""
    values = random_tensor(name, spec(*shape), CPU).float()
    assert float(values.mean()) == pytest.approx(mean, abs=deviation / 10)
    assert float(values.std()) == pytest.approx(deviation, rel=0.05)


def test_fp8_is_made_as_quantize_makes_it() -> None:
    """The recipe's layers hold what fp8.quantize gives for the 16-bit tensor; the rest stays 16-bit."""
    plain = RandomCheckpoint("demo", CPU).tensors("transformer")
    fp8 = RandomCheckpoint("demo", CPU, Recipe()).tensors("transformer")
    layer = "transformer_blocks.0.ff.net.2"
    expected = quantize(plain.read(f"{layer}.weight"), "e4m3fn", "rowwise")
    assert torch.equal(fp8.read(f"{layer}.weight").view(torch.uint8), expected.data.view(torch.uint8))
    assert torch.equal(fp8.read(f"{layer}.weight_scale"), expected.scale)
    assert fp8.schemes[layer].activation == "dynamic"
    assert fp8.schemes["transformer_blocks.0.norm1.linear"].activation == "none"
    assert torch.equal(fp8.read("proj_out.weight"), plain.read("proj_out.weight"))


def test_a_loaded_model_is_sane(tiny: Workload) -> None:
    """Strict loading takes every tensor, FP8 layers are there, and text and velocity are of order one."""
    pipeline = assemble(RandomCheckpoint("demo", CPU, Recipe()), tiny.config(), tiny.model, "random")
    assert precision(pipeline)["transformer"] == "float8_e4m3fn + float32"
    with torch.inference_mode():
        text = encode(pipeline.text_encoders, tiny.pictures(0), pipeline.prompts)
        embeds = random_embeds(shapes_of(tiny), CPU, torch.float32)
        assert embeds.sequence.shape == text.sequence.shape
        assert embeds.pooled.shape == text.pooled.shape
        conditioning = pipeline.mmdit.condition(text.sequence, text.pooled, torch.tensor([500.0]))
        velocity = pipeline.mmdit(torch.randn(2, 16, 8, 8), conditioning.context, conditioning.table[0])
    assert 0.1 < float(text.pooled.std()) < 10
    assert 0.1 < float(velocity.std()) < 10
