"""Gram matrices: of the inputs that layers really meet, a few blocks at a time, and good for --resume."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sd35
from sd35.checkpoints.manifest import hash_files
from sd35.errors import RequestError
from sd35.fp8 import ScaledTensor, Scheme
from sd35.quantization import convert
from sd35.quantization.grams import Grams
from sd35.quantization.recipe import Rule
from sd35.request import GenerationRequest
from sd35.runtime.pipeline import Pipeline

# One of the six blocks: as telling, and sooner done.
FEW = (Rule.parse("*.transformer_blocks.[1-5].*=16bit"),)
LEARNED = sd35.Recipe.of(Scheme(), rounding="learned", rules=FEW)
FOX = GenerationRequest("a fox", seed=1, num_inference_steps=1)
LAYER, PATH = "transformer_blocks.2.norm1.linear", "blocks.2.sample_modulation"


@pytest.fixture
def drawings(pipeline_fp32: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[GenerationRequest]:
    """The requests that are drawn from here on."""
    drawn: list[GenerationRequest] = []
    generate = Pipeline.generate

    def counted(self: Pipeline, request: GenerationRequest) -> object:
        drawn.append(request)
        return generate(self, request)

    monkeypatch.setattr(Pipeline, "generate", counted)
    return drawn


def test_they_are_of_the_inputs(pipeline_fp32: Pipeline) -> None:
    """mean of x x^T over what the layer is given, both halves of guidance, watched by hand."""
    seen: list[Tensor] = []
    hook = pipeline_fp32.mmdit.get_submodule(PATH).register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    gram = Grams(pipeline_fp32, [FOX]).of(LAYER)
    hook.remove()
    x = torch.cat([one.flatten(0, -2) for one in seen])
    assert len(x) == 2
    torch.testing.assert_close(gram, x.T @ x / 2)
    assert not pipeline_fp32.mmdit.get_submodule(PATH)._forward_pre_hooks


def test_a_small_budget_draws_again(pipeline_fp32: Pipeline, drawings: list[GenerationRequest]) -> None:
    """One block at a time where no more fits, each drawn once, and the matrices are the same."""
    rich, poor = Grams(pipeline_fp32, [FOX]), Grams(pipeline_fp32, [FOX], budget=1)
    layers = [f"transformer_blocks.{i}.{name}" for i in range(3) for name in ("attn.to_q", "ff.net.2")]
    ample = {layer: rich.of(layer) for layer in layers}
    assert len(drawings) == 1
    for layer in layers:
        assert torch.equal(poor.of(layer), ample[layer])
        assert len({path.split(".")[1] for path in poor._held}) == 1
    assert len(drawings) == 1 + 3


def test_learned_needs_them(tmp_path: Path) -> None:
    """A recipe with learned rounding and no Gram matrices is refused, and leaves nothing."""
    with pytest.raises(RequestError, match="Gram"):
        sd35.quantize("demo", tmp_path / "out", LEARNED)
    assert list(tmp_path.iterdir()) == []


def test_resumed_is_the_same(
    pipeline_fp32: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted at the eighth layer, gone on with: the bytes of an undisturbed run, and not nearest's."""
    monkeypatch.setattr("sd35.checkpoints.unfinished.STEP", 1)
    rounder, done = convert.round_by_gram, []

    def stopping(weight: Tensor, gram: Tensor, scheme: Scheme) -> ScaledTensor:
        done.append(1)
        if len(done) == 8:
            raise KeyboardInterrupt
        return rounder(weight, gram, scheme)

    with monkeypatch.context() as patch:
        patch.setattr(convert, "round_by_gram", stopping)
        with pytest.raises(KeyboardInterrupt):
            sd35.quantize("demo", tmp_path / "a", LEARNED, grams=Grams(pipeline_fp32, [FOX]))
    sd35.quantize("demo", tmp_path / "b", LEARNED, grams=Grams(pipeline_fp32, [FOX]))
    sd35.quantize("demo", tmp_path / "a", LEARNED, grams=Grams(pipeline_fp32, [FOX]), resume=True)
    sd35.quantize("demo", tmp_path / "nearest", replace(LEARNED, rounding="nearest"))
    a, b, nearest = (hash_files(tmp_path / name) for name in ("a", "b", "nearest"))
    assert a == b
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert a[weights].size == nearest[weights].size
    assert a[weights].sha256 != nearest[weights].sha256
