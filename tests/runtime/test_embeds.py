"""Prompts that are kept: what counts as the same, how many bytes, and that no picture notices."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sd35.config import RuntimeConfig
from sd35.request import GenerationRequest, PromptTexts
from sd35.runtime.embeds import EmbedsKey, PromptCache, PromptEmbeds
from sd35.runtime.encoders import TextEncoders, encode
from sd35.runtime.load import load_pipeline
from sd35.runtime.pipeline import Pipeline

ROW_BYTES = 4 * (6 + 2)


def embeds_of(value: float) -> PromptEmbeds:
    """One small row."""
    return PromptEmbeds(torch.full((1, 3, 2), value), torch.full((1, 2), value))


def key(text: str, length: int = 64, encoders: str = "a") -> EmbedsKey:
    """A key for one text."""
    return EmbedsKey(PromptTexts.of(text), length, encoders)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[PromptTexts]:
    """The texts that the encoders were really given, as they come."""
    seen: list[PromptTexts] = []
    original = TextEncoders.encode
    monkeypatch.setattr(
        TextEncoders, "encode", lambda self, prompts, n: seen.extend(prompts) or original(self, prompts, n)
    )
    return seen


def test_what_is_kept_comes_back() -> None:
    """The same embeds, not a copy of them."""
    cache, embeds = PromptCache(), embeds_of(1.0)
    cache.keep(key("a fox"), embeds)
    assert cache.recall(key("a fox")) is embeds


@pytest.mark.parametrize("other", [key("a fox "), key("a fox", 65), key("a fox", encoders="b")])
def test_another_key_is_another_text(other: EmbedsKey) -> None:
    """One character, the token count or other encoders: each makes another key."""
    cache = PromptCache()
    cache.keep(key("a fox"), embeds_of(1.0))
    assert cache.recall(other) is None


def test_the_least_recently_used_leaves_first() -> None:
    """Bytes are bounded, and what was used last stays."""
    cache = PromptCache(max_bytes=2 * ROW_BYTES)
    cache.keep(key("one"), embeds_of(1.0))
    cache.keep(key("two"), embeds_of(2.0))
    cache.recall(key("one"))
    cache.keep(key("three"), embeds_of(3.0))
    assert cache.nbytes == 2 * ROW_BYTES
    assert [text for text in ("one", "two", "three") if cache.recall(key(text))] == ["one", "three"]


def test_what_is_too_large_is_not_kept() -> None:
    """Embeds above the bound are forgotten at once."""
    cache = PromptCache(max_bytes=ROW_BYTES - 1)
    cache.keep(key("one"), embeds_of(3.0))
    assert cache.nbytes == 0


def test_texts_share_a_walk_and_nothing_else(pipeline_fp32: Pipeline) -> None:
    """Two texts encoded in one call come out to the last bit as each of them alone."""
    prompts = [PromptTexts.of(text) for text in ("a fox", "a green tree on a hill")]
    together = pipeline_fp32.text_encoders.encode(prompts, 64)
    for prompt, embeds in zip(prompts, together, strict=True):
        alone = pipeline_fp32.text_encoders.encode([prompt], 64)[0]
        assert torch.equal(embeds.sequence, alone.sequence)
        assert torch.equal(embeds.pooled, alone.pooled)


def test_the_negative_prompt_is_encoded_once(pipeline_fp32: Pipeline, counted: list[PromptTexts]) -> None:
    """A second request with another prompt has only that prompt encoded; cleared, it starts anew."""
    cache = PromptCache()
    for text in ("a fox", "a tree"):
        request = GenerationRequest(text, seed=1)
        encode(pipeline_fp32.text_encoders, request.pictures(pipeline_fp32.variant), cache)
    assert [prompt.t5 for prompt in counted] == ["", "a fox", "a tree"]
    cache.clear()
    encode(pipeline_fp32.text_encoders, request.pictures(pipeline_fp32.variant), cache)
    assert [prompt.t5 for prompt in counted[3:]] == ["", "a tree"]


def test_no_picture_notices(demo: Path, counted: list[PromptTexts], fox: GenerationRequest) -> None:
    """After other requests, with its texts kept, a request still gives its picture to the last bit."""
    request = replace(fox, negative_prompt="a red apple", num_inference_steps=2)

    def drawn(pipeline: Pipeline, request: GenerationRequest) -> np.ndarray:
        return np.asarray(pipeline.generate(request).images[0].image)

    fresh, used = (load_pipeline(demo, RuntimeConfig(device="cpu")) for _ in range(2))
    drawn(used, replace(request, prompt="a green tree on a hill"))
    drawn(used, replace(request, negative_prompt="rain"))
    counted.clear()
    assert np.array_equal(drawn(used, request), drawn(fresh, request))
    assert len(counted) == 2  # those of the fresh one
