"""What a check says: all is well, or what is wrong and the one command that mends it."""

from dataclasses import dataclass
from typing import Literal

About = Literal["machine", "checkpoint"]


@dataclass(frozen=True)
class Finding:
    """One answer of one check.

    `fix` is a command or a deed; where `ok`, it is an offer (a library that would be faster). `trouble` is
    the row of the table of troubles (`troubles.py`) that a person would look under.
    """

    check: str
    ok: bool
    what: str
    fix: str = ""
    trouble: str | None = None
    about: About = "machine"


def well(check: str, what: str, offer: str = "", about: About = "machine") -> Finding:
    """Nothing is wrong."""
    return Finding(check, True, what, offer, None, about)


def wrong(check: str, what: str, fix: str, trouble: str, about: About = "machine") -> Finding:
    """Something is, and this mends it."""
    return Finding(check, False, what, fix, trouble, about)
