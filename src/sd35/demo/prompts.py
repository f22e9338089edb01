"""The prompts that judge the demo model, each with what its picture must show.

Three lists, drawn with fixed seeds so that every report means the same pictures: pairs of subject and
style seen in training, pairs held out of it, and subjects whose names hold a colour word ("a red apple
on a blue background"), where the word must colour the subject and not the wall.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from .captions import indefinite, with_article
from .vocabulary import Vocabulary, load_vocabulary

_TEMPLATES = (
    "{noun}, {style} style, on {a} {colour} background",
    "{noun} in {style} style, {colour} background",
    "an icon of {noun}, {style} style, on {colour}",
    "{noun} on {a} {colour} background, {style} style",
)


@dataclass(frozen=True)
class LabelledPrompt:
    """A prompt and the indices, into the vocabulary, of what it asks for."""

    text: str
    subject: int
    style: int
    background: int


def trained_prompts(count: int = 500) -> list[LabelledPrompt]:
    """Prompts for (subject, style) pairs that training has shown."""
    return _prompts(load_vocabulary().trained_pairs(), count, seed=11)


def held_out_prompts(count: int = 500) -> list[LabelledPrompt]:
    """Prompts for (subject, style) pairs that training has never shown."""
    return _prompts(sorted(load_vocabulary().held_out), count, seed=12)


def colour_word_prompts() -> list[LabelledPrompt]:
    """Every trained pair whose subject is named by a colour, on every background of another colour."""
    vocabulary = load_vocabulary()
    rng = Random(13)
    return [
        _prompt(vocabulary, subject, style, background, rng)
        for subject, style in vocabulary.trained_pairs()
        for background, colour in enumerate(vocabulary.colours)
        if (worn := colour_words(vocabulary, subject)) and colour.name not in worn
    ]


def colour_words(vocabulary: Vocabulary, subject: int) -> frozenset[str]:
    """The background colours that are words of the subject's name."""
    words = vocabulary.subjects[subject].name.split()
    return frozenset(colour.name for colour in vocabulary.colours if colour.name in words)


def _prompts(pairs: Sequence[tuple[int, int]], count: int, seed: int) -> list[LabelledPrompt]:
    """`count` prompts that go through the pairs evenly, in a random order."""
    vocabulary = load_vocabulary()
    rng = Random(seed)
    drawn: list[tuple[int, int]] = []
    while len(drawn) < count:
        drawn.extend(rng.sample(pairs, len(pairs)))
    colours = range(len(vocabulary.colours))
    return [_prompt(vocabulary, subject, style, rng.choice(colours), rng) for subject, style in drawn[:count]]


def _prompt(vocabulary: Vocabulary, subject: int, style: int, background: int, rng: Random) -> LabelledPrompt:
    thing = vocabulary.subjects[subject]
    text = rng.choice(_TEMPLATES).format(
        noun=with_article(thing.article, thing.name),
        style=vocabulary.styles[style].name,
        a=indefinite(vocabulary.colours[background].name),
        colour=vocabulary.colours[background].name,
    )
    return LabelledPrompt(text, subject, style, background)
