"""What the demo model can draw: subjects, styles and background colours, and which pairs it never saw.

A picture is a point in the product subjects x styles x colours. Some (subject, style) pairs are held
out: each of their words is trained, their combination never is. Drawing such a pair shows that the
model composes words instead of recalling pictures, so nothing that trains may touch `held_out`.

The lists are data (`vocabulary.json`); an index into them is a label everywhere else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources


@dataclass(frozen=True)
class Subject:
    """A thing to draw: the names people type, the icon it is drawn from, its indefinite article."""

    name: str
    icon: str
    article: str
    aliases: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The display name first, then the synonyms."""
        return (self.name, *self.aliases)


@dataclass(frozen=True)
class Style:
    """An icon family under a plain word."""

    name: str
    package: str
    version: str
    license: str
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class Colour:
    """A background colour, 8 bits a channel."""

    name: str
    rgb: tuple[int, int, int]
    aliases: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The name first, then the synonyms."""
        return (self.name, *self.aliases)


@dataclass(frozen=True)
class Vocabulary:
    """All subjects, styles and colours; `held_out` holds (subject index, style index) pairs."""

    subjects: tuple[Subject, ...]
    styles: tuple[Style, ...]
    colours: tuple[Colour, ...]
    held_out: frozenset[tuple[int, int]]

    def trained_pairs(self) -> list[tuple[int, int]]:
        """Every (subject, style) pair that training may show."""
        return [pair for pair in self.pairs() if pair not in self.held_out]

    def pairs(self) -> list[tuple[int, int]]:
        """Every (subject, style) pair, subject by subject."""
        return [(i, j) for i in range(len(self.subjects)) for j in range(len(self.styles))]


@lru_cache(maxsize=1)
def load_vocabulary() -> Vocabulary:
    """Read the vocabulary that ships with the package."""
    text = resources.files(__package__).joinpath("vocabulary.json").read_text(encoding="utf-8")
    data = json.loads(text)
    subjects = tuple(
        Subject(row["name"], row["icon"], row["article"], tuple(row["aliases"])) for row in data["subjects"]
    )
    styles = tuple(
        Style(row["name"], row["package"], row["version"], row["license"], tuple(row["aliases"]))
        for row in data["styles"]
    )
    colours = tuple(Colour(row["name"], tuple(row["rgb"]), tuple(row["aliases"])) for row in data["colours"])
    subject_index = {subject.name: index for index, subject in enumerate(subjects)}
    style_index = {style.name: index for index, style in enumerate(styles)}
    held_out = frozenset((subject_index[subject], style_index[style]) for subject, style in data["held_out"])
    return Vocabulary(subjects, styles, colours, held_out)
