"""The prompt lists that judge the model: fixed, labelled rightly, and never mixed with training."""

import subprocess
import sys

from sd35.demo.dataset import draw_recipes
from sd35.demo.prompts import (
    LabelledPrompt,
    colour_word_prompts,
    colour_words,
    held_out_prompts,
    trained_prompts,
)
from sd35.demo.vocabulary import load_vocabulary

VOCABULARY = load_vocabulary()


def _pairs(prompts: list[LabelledPrompt]) -> set[tuple[int, int]]:
    return {(prompt.subject, prompt.style) for prompt in prompts}


def test_lists_are_the_same_every_time() -> None:
    """Two calls give equal lists of 500."""
    assert trained_prompts() == trained_prompts()
    assert held_out_prompts() == held_out_prompts()
    assert len(trained_prompts()) == len(held_out_prompts()) == 500


def test_held_out_pairs_stay_out() -> None:
    """Trained prompts hold no held-out pair; held-out prompts hold no other and cover all."""
    assert _pairs(trained_prompts()).isdisjoint(VOCABULARY.held_out)
    assert _pairs(colour_word_prompts()).isdisjoint(VOCABULARY.held_out)
    assert _pairs(held_out_prompts()) == VOCABULARY.held_out


def test_training_never_shows_a_held_out_pair() -> None:
    """Recipes, single or side by side, use trained pairs alone, and all of them."""
    recipes = draw_recipes(VOCABULARY, 5000, seed=3)
    shown = {(recipe.left, recipe.style) for recipe in recipes}
    beside = {(recipe.right, recipe.style) for recipe in recipes if recipe.right is not None}
    assert shown == set(VOCABULARY.trained_pairs())
    assert beside <= shown
    assert 0.13 < sum(recipe.right is not None for recipe in recipes) / len(recipes) < 0.19


def test_labels_match_the_words() -> None:
    """Every prompt names the subject, style and background of its labels."""
    for prompt in trained_prompts() + held_out_prompts() + colour_word_prompts():
        assert VOCABULARY.subjects[prompt.subject].name in prompt.text
        assert f"{VOCABULARY.styles[prompt.style].name} style" in prompt.text
        assert prompt.text.rindex(VOCABULARY.colours[prompt.background].name) >= 0


def test_colour_words_meet_other_backgrounds() -> None:
    """Subjects such as "red apple" are asked for on every background but their own colour."""
    prompts = colour_word_prompts()
    names = {VOCABULARY.subjects[prompt.subject].name for prompt in prompts}
    assert {"red apple", "green salad", "orange", "black cat"} <= names
    for prompt in prompts:
        worn = colour_words(VOCABULARY, prompt.subject)
        assert worn
        assert VOCABULARY.colours[prompt.background].name not in worn


def test_prompts_need_no_torch() -> None:
    """Importing the prompt lists leaves torch out of the process."""
    code = "import sys, sd35.demo.prompts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
