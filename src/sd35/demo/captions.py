"""Captions: one picture, many ways to ask for it.

People write "a fox", "Fox icon, flat style, blue background" or "an emoji of a fox on blue". A small
grammar draws such sentences at random, and three habits of it matter. Style and colour are sometimes
left out, so that short prompts work. Every name meets every background equally often, so that "a red
apple on a blue background" does not turn the wall red. Capitals appear, because T5's tokenizer, unlike
CLIP's, tells "Fox" from "fox".
"""

from __future__ import annotations

from random import Random

from .vocabulary import Colour, Style, Subject

STYLE_OMITTED = 0.15
COLOUR_OMITTED = 0.12
ALIAS_CHANCE = 0.3
FILLER_CHANCE = 0.12

_ARTICLES = ("indefinite",) * 7 + ("definite", "none", "none")
_LEADS = ("picture", "icon", "emoji", "drawing", "image", "illustration", "photo")
_FILLERS = ("cute ", "little ", "big ", "nice ", "beautiful ", "small ", "simple ", "funny ")
_TAILS = (", centered", ", high quality", ", detailed", ".", "!", " please")
_STYLE_FORMS = ("{} style", "{} style", "in {} style", "in a {} style", "in the {} style", "{}")
_COLOUR_FORMS = (
    "on {a} {} background",
    "on {a} {} background",
    "on {}",
    "{} background",
    "with {a} {} background",
    "against {a} {} background",
    "on {a} {} backdrop",
)
_SCENE_FORMS = (
    "{left} on the left and {right} on the right",
    "{left} on the left and {right} on the right",
    "{left} on the left, {right} on the right",
    "{left} to the left of {right}",
    "{right} on the right and {left} on the left",
    "{right} to the right of {left}",
    "{left} and {right}",
    "{left} next to {right}",
)


def caption(subject: Subject, style: Style, colour: Colour, rng: Random) -> str:
    """A random caption of one subject."""
    place = _style_place(rng)
    word = style_word(style, rng) + " "
    noun = noun_phrase(subject, rng, word if place == "adjective" else "")
    if place == "lead":
        noun = _lead(word, rng) + noun
    elif rng.random() < 0.3:
        noun = _lead("", rng) + noun
    return _finish(noun, [_style_phrase(style, rng)] if place == "phrase" else [], colour, rng)


def scene_caption(left: Subject, right: Subject, style: Style, colour: Colour, rng: Random) -> str:
    """A random caption of two subjects side by side."""
    form = rng.choice(_SCENE_FORMS)
    text = form.format(left=noun_phrase(left, rng), right=noun_phrase(right, rng))
    said = rng.random() >= STYLE_OMITTED
    return _finish(text, [_style_phrase(style, rng)] if said else [], colour, rng)


def noun_phrase(subject: Subject, rng: Random, adjective: str = "") -> str:
    """The subject with an article, sometimes under a synonym, sometimes with a filler word."""
    name = rng.choice(subject.aliases) if subject.aliases and rng.random() < ALIAS_CHANCE else subject.name
    filler = rng.choice(_FILLERS) if rng.random() < FILLER_CHANCE else ""
    return with_article(subject.article, filler + adjective + name, rng.choice(_ARTICLES))


def with_article(article: str, words: str, wish: str = "indefinite") -> str:
    """`words` behind "a" or "an", "the", or nothing; a subject without article has no "a"."""
    if wish == "definite":
        return "the " + words
    return words if wish == "none" or not article else f"{indefinite(words)} {words}"


def indefinite(words: str) -> str:
    """ "a" or "an": by the sound, for the few words where the letter misleads."""
    if words.startswith(("hour", "umbrella")):
        return "an"
    return "an" if words[0] in "aeio" else "a"


def style_word(style: Style, rng: Random) -> str:
    """The style's name, now and then a synonym."""
    return rng.choice(style.aliases) if style.aliases and rng.random() < 0.15 else style.name


def _style_place(rng: Random) -> str:
    """Where the style is said: nowhere, before the noun, before "icon of", or in a phrase of its own."""
    draw = rng.random()
    if draw < STYLE_OMITTED:
        return "omitted"
    return "adjective" if draw < 0.25 else "lead" if draw < 0.35 else "phrase"


def _style_phrase(style: Style, rng: Random) -> str:
    return rng.choice(_STYLE_FORMS).format(style_word(style, rng))


def _lead(adjective: str, rng: Random) -> str:
    """ "an icon of ", "a flat drawing of "."""
    return with_article("a", adjective + rng.choice(_LEADS)) + " of "


def _finish(noun: str, phrases: list[str], colour: Colour, rng: Random) -> str:
    """Join noun, style and colour in a random order, then vary ending and capitals."""
    if rng.random() >= COLOUR_OMITTED:
        name = rng.choice(colour.names) if rng.random() < 0.3 else colour.name
        phrases = [*phrases, rng.choice(_COLOUR_FORMS).format(name, a=indefinite(name))]
    if rng.random() < 0.3:
        phrases.reverse()
    text = rng.choice((", ", ", ", " ")).join([noun, *phrases])
    if rng.random() < 0.1:
        text += rng.choice(_TAILS)
    return _capitalise(text, rng)


def _capitalise(text: str, rng: Random) -> str:
    draw = rng.random()
    if draw < 0.70:
        return text
    if draw < 0.88:
        return text[:1].upper() + text[1:]
    return text.title() if draw < 0.96 else text.upper()
