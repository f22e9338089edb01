"""The evaluator that ships: right on renderings, cheap to store, plain in its answers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sd35.demo
from sd35.demo.evaluator import FEATURES, Evaluator, EvaluatorNet, load_evaluator
from sd35.demo.vocabulary import load_vocabulary

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    """The bundled weights on the CPU."""
    return load_evaluator("cpu")


@pytest.fixture(scope="module")
def renderings() -> torch.Tensor:
    """64 renderings of 64 subjects, 128 pixels, at places the evaluator was not trained on."""
    sheet = np.array(Image.open(HERE / "renderings.webp").convert("RGB"))
    tiles = sheet.reshape(8, 128, 8, 128, 3).swapaxes(1, 2).reshape(64, 128, 128, 3)
    return torch.from_numpy(tiles)


@pytest.fixture(scope="module")
def labels() -> torch.Tensor:
    """Subject, style and background of each, [64, 3]."""
    vocabulary = load_vocabulary()
    columns = [
        [row.name for row in rows] for rows in (vocabulary.subjects, vocabulary.styles, vocabulary.colours)
    ]
    rows = json.loads((HERE / "renderings.json").read_text(encoding="utf-8"))
    return torch.tensor([[columns[k].index(name) for k, name in enumerate(row)] for row in rows])


def test_right_on_renderings(evaluator: Evaluator, renderings: torch.Tensor, labels: torch.Tensor) -> None:
    """At least 95 percent of subjects, styles and backgrounds are told rightly."""
    judgement = evaluator(renderings)
    for found, asked in zip(
        (judgement.subject, judgement.style, judgement.background), labels.unbind(1), strict=True
    ):
        assert (found == asked).float().mean() >= 0.95


def test_any_size(evaluator: Evaluator, renderings: torch.Tensor, labels: torch.Tensor) -> None:
    """Pictures twice as large are judged alike."""
    large = renderings[:16].repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    assert (evaluator(large).subject == labels[:16, 0]).float().mean() >= 0.9


def test_noise_is_not_recognised_as_what_was_asked(evaluator: Evaluator, labels: torch.Tensor) -> None:
    """On random pixels the answers are no better than chance would allow."""
    noise = torch.randint(0, 256, (64, 64, 64, 3), generator=torch.Generator().manual_seed(0))
    assert (evaluator(noise.byte()).subject == labels[:, 0]).float().mean() < 0.1


def test_features_are_float32_and_tell_pictures_apart(evaluator: Evaluator, renderings: torch.Tensor) -> None:
    """A picture's features lie nearer to its own softened copy than to any other picture's."""
    features = evaluator(renderings).features
    soft = torch.nn.functional.avg_pool2d(renderings.permute(0, 3, 1, 2).float(), 2).byte()
    nearest = torch.cdist(evaluator(soft.permute(0, 2, 3, 1)).features, features).argmin(dim=1)
    assert features.shape == (64, FEATURES)
    assert features.dtype == torch.float32
    assert (nearest == torch.arange(64)).float().mean() > 0.95


def test_weights_file_is_small() -> None:
    """At most four million bytes, readable by all."""
    path = Path(sd35.demo.__path__[0]) / "evaluator.safetensors"
    assert path.stat().st_size <= 4_000_000
    assert path.stat().st_mode & 0o777 == 0o644


def test_untrained_net_fails(renderings: torch.Tensor, labels: torch.Tensor) -> None:
    """The first test has teeth: fresh weights recognise next to nothing."""
    torch.manual_seed(0)
    untrained = Evaluator(EvaluatorNet(load_vocabulary()), torch.device("cpu"))
    assert (untrained(renderings).subject == labels[:, 0]).float().mean() < 0.1
