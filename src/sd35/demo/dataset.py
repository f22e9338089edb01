"""Which pictures training sees, and what is said about each.

A dataset is a list of recipes (who, in which style, on which colour) drawn from the trained pairs alone,
and a few captions for each. Both follow from one seed, so the captions can be written and tokenized on
the CPU while the VAE is still learning on the GPU, and they meet again by index.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from .captions import caption, scene_caption
from .scenes import CANVAS, Composer
from .vocabulary import Vocabulary

SCENE_SHARE = 0.16
CAPTIONS_PER_PICTURE = 3


@dataclass(frozen=True)
class Recipe:
    """A picture to be: one subject, or two side by side."""

    left: int
    right: int | None
    style: int
    colour: int


def draw_recipes(vocabulary: Vocabulary, count: int, seed: int) -> list[Recipe]:
    """`count` random recipes that never touch a held-out pair; singles go through the pairs evenly."""
    rng = Random(seed)
    trained = vocabulary.trained_pairs()
    partners = [[i for i, j in trained if j == style] for style in range(len(vocabulary.styles))]
    recipes: list[Recipe] = []
    while len(recipes) < count:
        for subject, style in rng.sample(trained, len(trained)):
            right = rng.choice(partners[style]) if rng.random() < SCENE_SHARE else None
            recipes.append(Recipe(subject, right, style, rng.randrange(len(vocabulary.colours))))
    return recipes[:count]


def draw_captions(vocabulary: Vocabulary, recipes: list[Recipe], seed: int) -> list[str]:
    """`CAPTIONS_PER_PICTURE` captions of each recipe, one recipe's captions in a row."""
    rng = Random(seed)
    return [_describe(vocabulary, recipe, rng) for recipe in recipes for _ in range(CAPTIONS_PER_PICTURE)]


def _describe(vocabulary: Vocabulary, recipe: Recipe, rng: Random) -> str:
    left = vocabulary.subjects[recipe.left]
    style, colour = vocabulary.styles[recipe.style], vocabulary.colours[recipe.colour]
    if recipe.right is None:
        return caption(left, style, colour, rng)
    return scene_caption(left, vocabulary.subjects[recipe.right], style, colour, rng)


def compose(composer: Composer, recipes: list[Recipe], generator: torch.Generator) -> Tensor:
    """The pictures of `recipes`, [B, 3, 256, 256] in 0..1."""
    pictures = torch.empty(len(recipes), 3, CANVAS, CANVAS, device=composer.device)
    alone = [i for i, recipe in enumerate(recipes) if recipe.right is None]
    paired = [i for i, recipe in enumerate(recipes) if recipe.right is not None]
    left, right, style, colour = _columns(recipes, composer.device)
    if alone:
        pictures[alone] = composer.alone(composer.pair(left, style)[alone], colour[alone], generator)
    if paired:
        pair_left, pair_right = composer.pair(left, style)[paired], composer.pair(right, style)[paired]
        pictures[paired] = composer.side_by_side(pair_left, pair_right, colour[paired], generator)
    return pictures


def _columns(recipes: list[Recipe], device: torch.device) -> tuple[Tensor, ...]:
    rows = [(r.left, r.right if r.right is not None else 0, r.style, r.colour) for r in recipes]
    return torch.tensor(rows, device=device).unbind(dim=1)
