"""Forty-eight ways to write a word so that a filter does not see it, drawn at random from a fixed seed.

The letters come from the Unicode tables (by name or code point), not from the filter's own, so that what the
filter lacks is found out. Each way takes a term of small letters and spaces and a random generator.
"""

import unicodedata
from collections.abc import Callable
from random import Random

Disguise = Callable[[str, Random], str]

_GREEK = dict(zip("abeikopvxyt", "αβεικορνχγτ", strict=True))
_CYRILLIC = dict(zip("aceopxyijshkmt", "асеорхуіјѕһкмт", strict=True))
_ARMENIAN = dict(zip("ouhngj", "օսհոցյ", strict=True))
_CHEROKEE = dict(zip("adeghijkmprstwyz", "ᎪᎠᎬᏀᎻᎥᎫᏦᎷᏢᎡᏚᎢᏔᎩᏃ", strict=True))
_STROKES = dict(zip("bdhltoizgr", "ƀđħłŧøɨƶǥɍ", strict=True))
_LEET = dict(zip("aeiostlbg", "431057189", strict=True))
_SIGNS = dict(zip("aisl", "@!$|", strict=True))
_SMALL_CAPITALS = dict(zip("abcdefghijklmnoprstuvwyz", "ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ", strict=True))


def offset(small_a: int) -> Disguise:
    """Letters of a block that begins with its "a"."""
    return lambda term, _: "".join(chr(small_a + ord(c) - 97) if c.isalpha() else c for c in term)


def swapped(table: dict[str, str], share: float = 1.0) -> Disguise:
    """Letters that look like ours, each with a chance; at least one."""

    def disguise(term: str, random: Random) -> str:
        can = [at for at, letter in enumerate(term) if letter in table]
        chosen = {at for at in can if random.random() < share} | set(can[:1])
        return "".join(table[c] if at in chosen else c for at, c in enumerate(term))

    return disguise


def between(*signs: str) -> Disguise:
    """A sign, drawn from these, between all letters."""

    def disguise(term: str, random: Random) -> str:
        sign = random.choice(signs)
        return sign.join(term.replace(" ", ""))

    return disguise


def inside(*signs: str) -> Disguise:
    """A sign at one place within the word."""

    def disguise(term: str, random: Random) -> str:
        at = random.randrange(1, len(term))
        return term[:at] + random.choice(signs) + term[at:]

    return disguise


def after_each(*signs: str) -> Disguise:
    """Marks on every letter."""
    return lambda term, random: "".join(c + random.choice(signs) if c.isalpha() else c for c in term)


def superscript(term: str, _: Random) -> str:
    """Letters raised, where Unicode has them."""
    names = (f"MODIFIER LETTER SMALL {c.upper()}" for c in term)
    found = (_lookup(name) for name in names)
    return "".join(raised or c for raised, c in zip(found, term, strict=True))


def _lookup(name: str) -> str | None:
    try:
        return unicodedata.lookup(name)
    except KeyError:
        return None


def mixed_case(term: str, random: Random) -> str:
    """Capitals at random."""
    return "".join(random.choice((c, c.upper())) for c in term)


def weighted(term: str, random: Random) -> str:
    """The word in two halves, each with a weight."""
    at = random.randrange(1, len(term))
    return f"({term[:at]}:{random.uniform(0.5, 1.5):.1f})({term[at:]})"


def half_weighted(term: str, random: Random) -> str:
    """A weight on the end of the word."""
    at = random.randrange(1, len(term))
    return f"{term[:at]}[{term[at:]}:{random.uniform(0.5, 1.5):.2f}]"


def repeated(term: str, random: Random) -> str:
    """One letter many times."""
    at = random.randrange(len(term.replace(" ", "")[:3]))
    return term[:at] + term[at] * random.randrange(3, 6) + term[at + 1 :]


def reversed_(term: str, _: Random) -> str:
    """Backwards."""
    return term[::-1]


def leet_spaced(term: str, random: Random) -> str:
    """Digits, and spaces between."""
    return " ".join(swapped(_LEET, 0.6)(term, random).replace(" ", ""))


def entities(term: str, random: Random) -> str:
    """HTML's numbers for letters."""
    return "".join(random.choice((f"&#{ord(c)};", f"&#x{ord(c):x};", c)) if c != " " else c for c in term)


def percent(term: str, _: Random) -> str:
    """URL escapes."""
    return "".join(f"%{ord(c):02x}" for c in term)


def percent_twice(term: str, _: Random) -> str:
    """URL escapes of URL escapes."""
    return "".join(f"%25{ord(c):02x}" for c in term)


def escapes(term: str, _: Random) -> str:
    """A program's escapes."""
    return "".join(f"\\u{ord(c):04x}" if c != " " else c for c in term)


def fragments(term: str, random: Random) -> str:
    """Pieces of two or three letters with a sign between."""
    letters, size = term.replace(" ", ""), random.choice((2, 3))
    pieces = [letters[at : at + size] for at in range(0, len(letters), size)]
    return random.choice((".", "-", "_", "*", "/")).join(pieces)


def overridden(term: str, _: Random) -> str:
    """Written backwards, and shown forwards by a control character."""
    return f"\u202e{term[::-1]}\u202c"


DISGUISES: dict[str, Disguise] = {
    "plain": lambda term, _: term,
    "capitals": lambda term, _: term.upper(),
    "mixed case": mixed_case,
    "full width": offset(0xFF41),
    "bold": offset(0x1D41A),
    "bold fraktur": offset(0x1D586),
    "monospace": offset(0x1D68A),
    "circled": offset(0x24D0),
    "negative circled": offset(0x1F150),
    "squared": offset(0x1F130),
    "negative squared": offset(0x1F170),
    "regional": offset(0x1F1E6),
    "parenthesized": offset(0x1F110),
    "small capitals": swapped(_SMALL_CAPITALS),
    "superscript": superscript,
    "cyrillic": swapped(_CYRILLIC),
    "cyrillic, some": swapped(_CYRILLIC, 0.4),
    "greek": swapped(_GREEK),
    "armenian": swapped(_ARMENIAN),
    "cherokee": swapped(_CHEROKEE),
    "strokes": swapped(_STROKES),
    "zero width": between("\u200b", "\u200c", "\u200d", "\u2060", "\ufeff"),
    "soft hyphen": inside("\u00ad"),
    "bidi": inside("\u200e", "\u202a", "\u2066", "\u061c"),
    "tags": inside("\U000e0061", "\U000e007f"),
    "fillers": inside("\u3164", "\u115f", "\uffa0", "\u2800", "\u034f", "\ufe0f"),
    "marks": after_each("\u0301", "\u0308", "\u0323", "\u0336", "\u0489"),
    "piled marks": after_each("\u0300\u0316\u0338", "\u033e\u0324\u20dd"),
    "spaced": between(" ", "  ", "\u2003"),
    "dotted": between(".", ". ", " . ", "\u00b7"),
    "dashed": between("-", "_", " - ", "~"),
    "lines": between("\n", "\r\n"),
    "emoji": between("\U0001f642", " \U0001f525 "),
    "one sign inside": inside("*", ".", "-", "_", "\U0001f642"),
    "fragments": fragments,
    "leet": swapped(_LEET),
    "leet, some": swapped(_LEET, 0.4),
    "signs": swapped(_SIGNS),
    "leet and spaces": leet_spaced,
    "repeated": repeated,
    "reversed": reversed_,
    "overridden": overridden,
    "weights": weighted,
    "half weights": half_weighted,
    "entities": entities,
    "percent": percent,
    "percent twice": percent_twice,
    "escapes": escapes,
}
