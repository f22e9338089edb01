"""Unfinished pictures: the estimate of the clean latents, and its colours."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sd35.request import GenerationRequest
from sd35.runtime.pipeline import Pipeline
from sd35.runtime.previews import LatentColours, Previews
from sd35.runtime.sampling import clean_latents


def test_estimate_is_where_the_line_ends() -> None:
    """Along a straight line from noise to a picture, every step points to the picture."""
    picture, noise = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 4, 4)
    for sigma, following in ((1.0, 0.8), (0.5, 0.1), (0.2, 0.0)):
        before, after = ((1 - s) * picture + s * noise for s in (sigma, following))
        found = clean_latents(before, after, torch.tensor(sigma), torch.tensor(following))
        assert torch.allclose(found, picture, atol=1e-5)


def test_looking_changes_no_picture(pipeline_fp8: Pipeline, fox: GenerationRequest) -> None:
    """With previews after every step the picture is the same to the last bit, and each step was shown."""
    shown: list[int] = []
    pictures = fox.pictures(pipeline_fp8.variant)
    plain = pipeline_fp8.draw(pictures).images[0].image
    previews = Previews(frozenset(range(1, 5)), lambda done, _: shown.append(done))
    watched = pipeline_fp8.draw(pictures, previews=previews).images[0].image
    assert shown == [1, 2, 3, 4]
    assert plain.tobytes() == watched.tobytes()


def test_nothing_is_painted_unasked(
    pipeline_fp8: Pipeline, fox: GenerationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drawing that nobody watches computes no colour; a watched one only after the steps asked for."""
    painted: list[int] = []
    original = LatentColours.paint
    monkeypatch.setattr(LatentColours, "paint", lambda self, x: painted.append(1) or original(self, x))
    pictures = fox.pictures(pipeline_fp8.variant)
    pipeline_fp8.draw(pictures)
    assert not painted
    pipeline_fp8.draw(pictures, previews=Previews(frozenset({2}), lambda *_: None))
    assert len(painted) == 1


def test_rows_of_a_batch_are_their_pictures(pipeline_fp32: Pipeline, fox: GenerationRequest) -> None:
    """The preview of a picture in a batch is its preview alone."""
    seen: list[np.ndarray] = []
    previews = Previews(frozenset({3}), lambda _, pictures: seen.append(pictures.numpy().astype(int)))
    for request in (replace(fox, num_images=2), fox, replace(fox, seed=fox.seed + 1)):
        pipeline_fp32.draw(request.pictures(pipeline_fp32.variant), previews=previews)
    together, first, second = seen
    assert np.abs(together - np.concatenate([first, second])).max() <= 1
    assert np.abs(first - second).max() > 50


@pytest.mark.gpu
@torch.inference_mode()
def test_recorded_steps_show_the_same() -> None:
    """Replayed from CUDA graphs, a drawing shows what it shows without them."""
    from sd35.config import RuntimeConfig
    from sd35.quantization.ready import load

    request = GenerationRequest("a red apple", seed=1, num_inference_steps=6, num_images=2)
    shown: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for graphs in shown:
        pipeline = load("demo", "fp8", RuntimeConfig(device="cuda", cuda_graphs=graphs))
        previews = Previews(frozenset({2, 3, 5}), lambda _, rgb, graphs=graphs: shown[graphs].append(rgb))
        pipeline.draw(request.pictures(pipeline.variant), previews=previews)
    assert len(shown[True]) == 3
    for recorded, plain in zip(shown[True], shown[False], strict=True):
        assert torch.equal(recorded, plain)
