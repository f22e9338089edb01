"""The pipeline: determinism, batches, guidance, cancelling."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sd35.config import RuntimeConfig
from sd35.request import GenerationRequest, PromptTexts
from sd35.runtime.embeds import PromptCache
from sd35.runtime.encoders import TextEncoders, encode
from sd35.runtime.latents import initial_latents
from sd35.runtime.load import load_pipeline
from sd35.runtime.pipeline import Pipeline
from sd35.variants import VARIANTS


def pixels(pipeline: Pipeline, request: GenerationRequest) -> list[np.ndarray]:
    """The drawn pictures as arrays."""
    return [np.asarray(one.image, dtype=np.float64) for one in pipeline.generate(request).images]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """In dB."""
    return float(10 * np.log10(255**2 / max(((a - b) ** 2).mean(), 1e-9)))


def test_equal_requests_give_equal_bytes(pipeline_fp8: Pipeline, fox: GenerationRequest) -> None:
    """The same request twice is the same picture to the last bit; another seed is another one."""
    first, again = pixels(pipeline_fp8, fox)[0], pixels(pipeline_fp8, fox)[0]
    assert np.array_equal(first, again)
    assert psnr(first, pixels(pipeline_fp8, replace(fox, seed=8))[0]) < 30


def test_a_batch_is_its_pictures(pipeline_fp32: Pipeline, fox: GenerationRequest) -> None:
    """Pictures of a batch are those that their seeds give alone, up to rounding."""
    together = pixels(pipeline_fp32, replace(fox, num_images=2))
    alone = [pixels(pipeline_fp32, replace(fox, seed=seed))[0] for seed in (7, 8)]
    assert all(psnr(a, b) > 50 for a, b in zip(together, alone, strict=True))


def test_prompts_of_a_batch_stay_apart(pipeline_fp32: Pipeline, fox: GenerationRequest) -> None:
    """Different prompts in one batch each get their own text, and negative prompts theirs."""
    requests = [fox, replace(fox, prompt="a red apple", negative_prompt="a fox", seed=9)]
    batch = [request.pictures(pipeline_fp32.variant)[0] for request in requests]
    together = [np.asarray(one.image, dtype=np.float64) for one in pipeline_fp32.draw(batch).images]
    alone = [pixels(pipeline_fp32, request)[0] for request in requests]
    assert all(psnr(a, b) > 50 for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {"guidance_scale": 1.0},
        {"guidance_scale": 7.0},
        {"negative_prompt": "a fox, flat style"},
        {"prompt_2": "a green tree"},
        {"prompt_3": "a green tree"},
        {"skip_layer_guidance_scale": 2.8, "skip_layer_guidance_stop": 0.9},
        {"max_sequence_length": 200},
    ],
)
def test_every_setting_matters(
    pipeline_fp32: Pipeline, fox: GenerationRequest, change: dict[str, object]
) -> None:
    """No setting is dropped on the way: each changes the picture."""
    assert not np.array_equal(pixels(pipeline_fp32, fox)[0], pixels(pipeline_fp32, replace(fox, **change))[0])


def test_steps_are_reported_and_may_cancel(pipeline_fp8: Pipeline, fox: GenerationRequest) -> None:
    """on_step hears of every step, and what it raises ends the drawing at once."""
    heard: list[tuple[int, int]] = []
    pipeline_fp8.generate(fox, lambda done, of: heard.append((done, of)))
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]
    count: list[int] = []

    def cancel(done: int, of: int) -> None:
        count.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline_fp8.generate(fox, cancel)
    assert count == [1]


def test_noise_depends_on_the_seed_alone(fox: GenerationRequest) -> None:
    """A seed's noise is the same in every batch, and unlike another seed's."""
    variant, cpu = VARIANTS["demo"], torch.device("cpu")
    batch = initial_latents(replace(fox, num_images=3).pictures(variant), cpu)
    alone = initial_latents(replace(fox, seed=8).pictures(variant), cpu)
    assert torch.equal(batch[1:2], alone)
    assert abs(float((batch[0] * batch[1]).mean())) < 0.05
    assert float(batch.std()) == pytest.approx(1, abs=0.02)


def test_each_text_is_encoded_once(pipeline_fp32: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four pictures of one prompt need two encodings: the prompt's and the negative one's."""
    seen: list[PromptTexts] = []
    original = TextEncoders.encode
    monkeypatch.setattr(
        TextEncoders, "encode", lambda self, prompts, n: seen.extend(prompts) or original(self, prompts, n)
    )
    request = GenerationRequest("a fox", negative_prompt="a tree", num_images=4, seed=1)
    embeds = encode(pipeline_fp32.text_encoders, request.pictures(pipeline_fp32.variant), PromptCache())
    assert sorted(prompt.t5 for prompt in seen) == ["a fox", "a tree"]
    assert len(embeds.pooled) == 8
    assert torch.equal(embeds.pooled[0], embeds.pooled[3])
    assert not torch.equal(embeds.pooled[3], embeds.pooled[4])


def test_without_t5_its_tokens_are_zeros(
    demo_copy: Path, edit_json: Callable[..., None], fox: GenerationRequest
) -> None:
    """A folder without T5 loads, draws, and feeds zeros where its tokens were."""
    edit_json(demo_copy / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    pipeline = load_pipeline(demo_copy, RuntimeConfig(device="cpu"))
    pictures = fox.pictures(pipeline.variant)
    with torch.inference_mode():
        embeds = encode(pipeline.text_encoders, pictures, PromptCache())
    assert torch.count_nonzero(embeds.sequence[:, 77:]) == 0
    assert embeds.sequence.shape[1] == 77 + pictures[0].settings.max_sequence_length
    assert pixels(pipeline, fox)[0].std() > 1
