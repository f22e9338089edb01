"""The caption grammar: it says what it should, in many ways, and nothing else."""

import re
from random import Random

import pytest

from sd35.demo.captions import caption, indefinite, noun_phrase, scene_caption, with_article
from sd35.demo.vocabulary import load_vocabulary

VOCABULARY = load_vocabulary()
FOX = next(subject for subject in VOCABULARY.subjects if subject.name == "fox")
APPLE = next(subject for subject in VOCABULARY.subjects if subject.name == "red apple")
FLAT = next(style for style in VOCABULARY.styles if style.name == "flat")
BLUE = next(colour for colour in VOCABULARY.colours if colour.name == "blue")


def _captions(count: int = 400) -> list[str]:
    rng = Random(0)
    return [caption(FOX, FLAT, BLUE, rng) for _ in range(count)]


def test_the_subject_is_always_named() -> None:
    """Every caption names its subject."""
    assert all("fox" in text.lower() for text in _captions())


def test_style_and_colour_are_sometimes_left_out() -> None:
    """Most captions give style and colour, some leave one out, a few both."""
    texts = [text.lower() for text in _captions()]
    styled = sum(any(word in text for word in ("flat", "minimal")) for text in texts) / len(texts)
    coloured = sum("blue" in text for text in texts) / len(texts)
    assert 0.78 < styled < 0.92
    assert 0.82 < coloured < 0.94
    assert any("blue" not in text and "flat" not in text and "minimal" not in text for text in texts)


def test_no_other_style_or_colour_slips_in() -> None:
    """A flat fox on blue is never called glossy or red."""
    words = {word for text in _captions() for word in re.findall(r"[a-z]+", text.lower())}
    others = {style.name for style in VOCABULARY.styles} | {colour.name for colour in VOCABULARY.colours}
    assert words & (others - {"flat", "blue"}) == set()


def test_variety() -> None:
    """Four hundred captions of one picture are mostly different, in small and capital letters."""
    texts = _captions()
    assert len(set(texts)) > 300
    assert any(text.isupper() for text in texts)
    assert any(text[0].islower() for text in texts)


def test_synonyms_appear() -> None:
    """A subject with synonyms is sometimes called by them."""
    dog = next(subject for subject in VOCABULARY.subjects if subject.name == "dog")
    rng = Random(1)
    assert {"dog", "puppy"} == {noun_phrase(dog, rng).split()[-1] for _ in range(100)}


def test_scene_names_both_in_order() -> None:
    """When a scene says left and right, each side holds its own subject."""
    rng = Random(2)
    for _ in range(300):
        text = scene_caption(FOX, APPLE, FLAT, BLUE, rng).lower()
        if match := re.search(r"(fox|red apple) on the left", text):
            assert match[1] == "fox", text
        if match := re.search(r"(fox|red apple) on the right", text):
            assert match[1] == "red apple", text
        assert "fox" in text
        assert "red apple" in text


@pytest.mark.parametrize(
    ("words", "article"),
    [("apple", "an"), ("fox", "a"), ("unicorn", "a"), ("umbrella", "an"), ("hourglass", "an"), ("ufo", "a")],
)
def test_articles(words: str, article: str) -> None:
    """ "a" or "an" by sound."""
    assert indefinite(words) == article
    assert with_article("a", words) == f"{article} {words}"


def test_no_article_before_what_has_none() -> None:
    """ "grapes", not "a grapes"; "the grapes" is fine."""
    assert with_article("", "grapes") == "grapes"
    assert with_article("", "grapes", "definite") == "the grapes"
