"""The training steps: right distributions, right gradients, nothing forgotten between legs."""

from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor

from sd35.demo import architecture
from sd35.demo.conditioning import Tokens, draw_dropout
from sd35.demo.dataset import CAPTIONS_PER_PICTURE
from sd35.demo.train_mmdit import (
    BETWEEN,
    LONG,
    SHORT,
    Corpus,
    Trainer,
    draw_length,
    draw_sigmas,
    flow_loss,
)
from sd35.demo.train_vae import _crop, _edge_difference, keep_norms_in_bfloat16


@pytest.fixture(scope="module")
def tokenizers() -> architecture.Tokenizers:
    """Tokenizers learnt from a handful of captions."""
    return architecture.train_tokenizers(
        ["a red fox on blue", "an owl, flat style, on a green background"] * 20
    )


@pytest.fixture
def trainer(tokenizers: architecture.Tokenizers) -> Trainer:
    """A fresh model of the real architecture on the CPU."""
    torch.manual_seed(0)
    encoders = architecture.build_text_encoders(tokenizers)
    return Trainer(architecture.build_mmdit(), encoders, torch.device("cpu"))


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Two random latents with random tokens."""
    generator = torch.Generator().manual_seed(0)

    def ids(length: int, count: int = 2 * CAPTIONS_PER_PICTURE) -> Tensor:
        return torch.randint(2, 500, (count, length), generator=generator)

    empty = Tokens(ids(77, 1), ids(77, 1), ids(SHORT, 1))
    tokens = Tokens(ids(77), ids(77), ids(SHORT))
    return Corpus(torch.randn(2, 16, 32, 32, generator=generator), tokens, empty, 0)


def test_fresh_model_predicts_nothing(trainer: Trainer, corpus: Corpus) -> None:
    """With a zero output layer the loss is the variance of noise minus latents: two."""
    loss = flow_loss(trainer, corpus, SHORT, 4, torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(2.0, abs=0.1)


def test_every_weight_learns(trainer: Trainer, corpus: Corpus) -> None:
    """After three steps every parameter, in every text encoder too, has a gradient."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        trainer.update(flow_loss(trainer, corpus, SHORT, 2, generator), 1.0)
    assert [name for name, p in trainer.trained.named_parameters() if p.grad is None] == []


def test_state_survives_a_leg(
    trainer: Trainer, corpus: Corpus, tokenizers: architecture.Tokenizers, tmp_path: Path
) -> None:
    """Saved and loaded, model, averages, optimizers and step go on as if nothing had happened."""
    trainer.update(flow_loss(trainer, corpus, SHORT, 1, torch.Generator().manual_seed(0)), 1.0)
    torch.save(trainer.state(), tmp_path / "state.pt")
    encoders = architecture.build_text_encoders(tokenizers)
    second = Trainer(architecture.build_mmdit(), encoders, torch.device("cpu"))
    second.load_state(tmp_path / "state.pt")
    for leg in (trainer, second):
        leg.update(flow_loss(leg, corpus, SHORT, 1, torch.Generator().manual_seed(1)), 1.0)
    assert second.step == trainer.step == 2
    assert all(torch.equal(a, b) for a, b in zip(trainer.parameters, second.parameters, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(trainer.averages, second.averages, strict=True))


def test_sigmas_cover_the_range_and_favour_noise() -> None:
    """All noise levels occur; most lie above one half, where subjects are decided."""
    sigmas = draw_sigmas(20_000, torch.Generator().manual_seed(0))
    assert 0 < sigmas.min() < 0.02
    assert 0.98 < sigmas.max() < 1
    assert 0.65 < (sigmas > 0.5).float().mean() < 0.8


def test_lengths_are_mostly_short() -> None:
    """Most steps are short; the pipeline's default length and lengths between keep occurring."""
    rng = Random(0)
    drawn = [draw_length(rng) for _ in range(5000)]
    assert drawn.count(SHORT) / 5000 > 0.8
    assert 0.08 < drawn.count(LONG) / 5000 < 0.12
    assert set(drawn) == {SHORT, LONG, *BETWEEN}


def test_dropout_shares() -> None:
    """A tenth of captions become empty; each encoder is dropped on its own, T5 a little more."""
    empty, keep = draw_dropout(20_000, torch.Generator().manual_seed(0))
    assert empty.float().mean().item() == pytest.approx(0.10, abs=0.01)
    assert (1 - keep.float().mean(dim=0)).tolist() == pytest.approx([0.05, 0.05, 0.08], abs=0.01)


def test_crops_are_windows() -> None:
    """A crop holds neighbouring pixels of its own picture, unchanged."""
    picture = torch.arange(256 * 256, dtype=torch.float32).reshape(1, 1, 256, 256).expand(3, 3, -1, -1)
    crops = _crop(picture, torch.Generator().manual_seed(0))
    assert crops.shape == (3, 3, 128, 128)
    assert (crops[..., 1:] - crops[..., :-1] == 1).all()
    assert (crops[:, :, 1:] - crops[:, :, :-1] == 256).all()


def test_edges_see_blur_not_brightness() -> None:
    """The edge term ignores an even shift and punishes a lost edge."""
    step = torch.zeros(1, 1, 8, 8)
    step[..., 4:] = 1
    assert _edge_difference(step + 0.5, step) == 0
    assert _edge_difference(torch.full_like(step, 0.5), step) > 0.1


def test_bfloat16_norms_compute_the_same() -> None:
    """The replaced group norms equal torch's own."""
    norm = torch.nn.Sequential(torch.nn.GroupNorm(2, 8))
    inputs = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = norm(inputs)
    keep_norms_in_bfloat16(norm)
    torch.testing.assert_close(norm(inputs), expected)
    assert norm(inputs.bfloat16()).dtype == torch.bfloat16
