"""Composing pictures: subjects land where they should, over the colour they should."""

import numpy as np
import pytest
import torch

from sd35.demo.dataset import Recipe, compose
from sd35.demo.scenes import Composer
from sd35.demo.vocabulary import load_vocabulary

VOCABULARY = load_vocabulary()


@pytest.fixture(scope="module")
def composer() -> Composer:
    """Two subjects in three styles: opaque squares of 160 pixels, the first red, the second green."""
    renderings = np.zeros((6, 224, 224, 4), dtype=np.uint8)
    renderings[:3, 32:192, 32:192] = (255, 0, 0, 255)
    renderings[3:, 32:192, 32:192] = (0, 255, 0, 255)
    return Composer(renderings, VOCABULARY, torch.device("cpu"))


def _colour(index: int) -> torch.Tensor:
    return torch.tensor(VOCABULARY.colours[index].rgb) / 255


def test_subject_in_the_middle_background_around(composer: Composer) -> None:
    """One subject covers the centre, the corners show the background exactly."""
    pictures = compose(composer, [Recipe(0, None, 0, 4)] * 8, torch.Generator().manual_seed(0))
    assert torch.allclose(pictures[:, :, 128, 128], torch.tensor([1.0, 0.0, 0.0]), atol=1e-3)
    assert torch.allclose(pictures[:, :, 2, 2], _colour(4), atol=1e-3)


def test_two_subjects_keep_their_sides(composer: Composer) -> None:
    """In a scene the left subject is left and the right one right."""
    pictures = compose(composer, [Recipe(0, 1, 2, 7)] * 8, torch.Generator().manual_seed(0))
    assert torch.allclose(pictures[:, :, 128, 66], torch.tensor([1.0, 0.0, 0.0]), atol=1e-3)
    assert torch.allclose(pictures[:, :, 128, 190], torch.tensor([0.0, 1.0, 0.0]), atol=1e-3)
    assert torch.allclose(pictures[:, :, 128, 128], _colour(7), atol=1e-3)


def test_jitter_moves_subjects(composer: Composer) -> None:
    """No two pictures of one recipe are equal."""
    pictures = compose(composer, [Recipe(1, None, 1, 0)] * 4, torch.Generator().manual_seed(0))
    assert len({picture.sum().item() for picture in pictures}) == 4


def test_edges_do_not_darken(composer: Composer) -> None:
    """A white subject's edge over white stays white: transparent black does not bleed in."""
    renderings = np.zeros((6, 224, 224, 4), dtype=np.uint8)
    renderings[:, 60:160, 60:160] = 255
    white = Composer(renderings, VOCABULARY, torch.device("cpu"))
    pictures = compose(white, [Recipe(0, None, 0, 7)] * 4, torch.Generator().manual_seed(1))
    assert pictures.min() >= _colour(7).min() - 1e-3
