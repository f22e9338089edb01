"""Undo what people do to a word so that a filter does not see it, while a model, or a person, still does.

Two readings of a text come out. The *plain* one keeps words apart and undoes what never changes a word's
meaning: entities and escapes, weight syntax, width and font, invisible characters, marks over letters,
other scripts' look-alikes, case. The *squashed* one goes further: separators go, digits and signs become
the letters that they stand for, repeated letters become one, `l` and `i` are the same (for `1` may be
either). Innocent texts say terrible things when read like that, so it keeps the seams: of any stretch one
can ask whether it begins and ends with words, and whether anything about it looks like a disguise at all.

Characters are folded by a table that fills itself as they appear, so a text costs one pass in C.
"""

import html
import re
import unicodedata
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from urllib.parse import unquote

from sd35.serving.lookalikes import LOOKALIKES

_ROUNDS = 3  # of escapes within escapes
_ESCAPE = re.compile(r"\\u\{?([0-9a-fA-F]{4})\}?|\\x([0-9a-fA-F]{2})")
_WEIGHT = re.compile(r":\s{0,3}[-+]?\d{0,6}\.?\d{1,6}(?=\s{0,3}[)\]}>|])")
_CAPITAL_I = re.compile(r"(?<=[a-z])I(?=[a-zI]|\b)")  # "kiII": nobody writes this but to deceive
_WORD = re.compile(r"[^\W_]+")
# A word in which signs may stand for letters; "!", "|" and "+" only where letters follow.
_SIGNED_WORD = re.compile(r"(?:[^\W_]|[@$€£¢](?=\S)|(?<=\S)[@$|]|[!|+](?=[^\W_]|[|@$]))+")
_LEET = "01346579825@$!|+€£¢"
_LETTERS = "oieagstgbzsasiiteic"
_LOOSE = str.maketrans(_LEET + "l", _LETTERS + "i")
_IS_LEET = re.compile(f"[{re.escape(_LEET)}]")
_LETTER = re.compile(r"[^\W\d_]")
_RUN = re.compile(r"(.)\1+")
_LONG_RUN = re.compile(r"(.)\1\1")
_CONTRACTED = {"s", "t", "ll", "re", "ve", "d", "m"}
_NAMES = re.compile(
    r"LATIN (?:SMALL |CAPITAL )?LETTER (?:SMALL CAPITAL |SCRIPT |DOTLESS |BARRED )?([A-Z])(?: WITH .+)?"
    r"|(?:REGIONAL INDICATOR SYMBOL|(?:CROSSED )?NEGATIVE (?:CIRCLED|SQUARED) LATIN CAPITAL) LETTER ([A-Z])"
)
# Letters and spaces by their category, and nothing to the eye.
_BLANKS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")


class _Fold(dict[int, str]):
    """A `str.translate` table that works out each character when it first appears."""

    def __missing__(self, code: int) -> str:
        folded = self[code] = _folded(chr(code))
        return folded


def _folded(char: str) -> str:
    if char in _BLANKS or unicodedata.category(char) == "Cf" or _is_mark(char):
        return ""
    return "".join(map(_letter, unicodedata.normalize("NFKC", char)))


def _letter(char: str) -> str:
    """One composed character, as small letters without marks."""
    if char in LOOKALIKES:
        return LOOKALIKES[char]
    parts = [part for part in unicodedata.normalize("NFKD", char.casefold()) if not _is_mark(part)]
    return "".join(LOOKALIKES.get(part) or _by_name(part) for part in parts if part not in _BLANKS)


def _by_name(char: str) -> str:
    if char.isascii():
        return char
    found = _NAMES.fullmatch(unicodedata.name(char, ""))
    return (found[1] or found[2]).lower() if found else char


def _is_mark(char: str) -> bool:
    """Marks on, over and around letters; vowel signs of Indic scripts (class 0 to 9) are letters to us."""
    combining = unicodedata.combining(char)
    return combining == 1 or combining >= 200 or unicodedata.category(char) == "Me"


_FOLD = _Fold()


@dataclass(frozen=True)
class Plain:
    """Words between single spaces, one before and one after; `starts` are their places in `text`."""

    text: str
    starts: list[int]

    def words(self, begin: int, end: int) -> tuple[int, int]:
        """First and last word of a stretch of `text`."""
        return bisect_right(self.starts, begin) - 1, bisect_right(self.starts, end - 1) - 1


@dataclass(frozen=True)
class _Seams:
    """Per letter of a squashed text: does a word begin, end here; its first and its last word."""

    opens: list[bool]
    closes: list[bool]
    first: list[int]
    last: list[int]


@dataclass(frozen=True)
class Squashed:
    """Loose letters without separators, the words that they came from, and what stood between those.

    Most texts are searched in vain, so the seams are only looked for once something is found.
    """

    text: str
    words: list[str]
    joints: list[str]

    @cached_property
    def seams(self) -> _Seams:
        """Where words begin and end in `text`; a letter that swallowed its like has the seams of both."""
        seams, before = _Seams([], [], [], []), ""
        for number, word in enumerate(self.words):
            last = len(word) - 1
            for at, letter in enumerate(word.translate(_LOOSE)):
                if letter != before:
                    before = letter
                    seams.opens.append(False)
                    seams.closes.append(False)
                    seams.first.append(number)
                    seams.last.append(number)
                seams.opens[-1] |= at == 0
                seams.closes[-1] |= at == last
                seams.last[-1] = number
        return seams

    def looks_disguised(self, begin: int, end: int, words: int) -> bool:
        """Whether letters [begin, end), which should be so many words, are odd or oddly apart."""
        last = self.seams.first[end - 1]
        first = min(self.seams.last[begin], last)
        count, letters = last - first + 1, end - begin
        if count < words or any(map(_is_odd, self.words[first : last + 1])):
            return True
        if count == 1:
            return False
        if count > words and all(self._is_tight(at) for at in range(first, last)):
            return True
        longest_fragment = 3.0 if letters >= 6 else 1.5
        return count > words and (letters >= 8 or (count >= 3 and letters <= longest_fragment * count))

    def _is_tight(self, at: int) -> bool:
        """Whether no honest writer puts this between two words: a dot or an emoji without a space."""
        joint = self.joints[at]
        if joint in ("'", "’") and self.words[at + 1] in _CONTRACTED:
            return False
        return not any(char.isspace() for char in joint)


def fold(text: str) -> str:
    """The text with every character undone, its separators kept."""
    decoded = _WEIGHT.sub("", _decoded(text))
    return _CAPITAL_I.sub("1", decoded).translate(_FOLD)


def plain(folded: str) -> Plain:
    """The words of a folded text."""
    words = _WORD.findall(folded)
    starts, at = [], 1
    for word in words:
        starts.append(at)
        at += len(word) + 1
    return Plain(f" {' '.join(words)} ", starts)


def squashed(folded: str) -> Squashed:
    """The letters of a folded text."""
    found = list(_SIGNED_WORD.finditer(folded))
    words = [match.group() for match in found]
    joints = [folded[left.end() : right.start()] for left, right in pairwise(found)]
    return Squashed(_RUN.sub(r"\1", "".join(words).translate(_LOOSE)), words, joints)


def loose(words: str) -> str:
    """A folded term as it stands in a squashed text."""
    return _RUN.sub(r"\1", "".join(_WORD.findall(words)).translate(_LOOSE))


def _is_odd(word: str) -> bool:
    """Digits or signs among letters, a letter three times, or many letters twice."""
    if _IS_LEET.search(word) and _LETTER.search(word):
        return True
    return bool(_LONG_RUN.search(word)) or sum(1 for _ in _RUN.finditer(word)) >= 3


def _decoded(text: str) -> str:
    for _ in range(_ROUNDS):
        before = text
        if "&" in text:
            text = html.unescape(text)
        if "%" in text:
            text = unquote(text, errors="ignore")
        if "\\" in text:
            text = _ESCAPE.sub(lambda found: chr(int(found[1] or found[2], 16)), text)
        if text == before:
            break
    return text
