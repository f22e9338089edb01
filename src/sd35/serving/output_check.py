"""Judge finished pictures, by a check that somebody else provides.

We bring no classifier. A package offers one under the entry point group `sd35.output_checks`: a callable
without arguments that returns an `OutputCheck`. Whoever configures a check wants no picture unchecked, so
everything fails closed: a check that can't be loaded stops the start, and one that raises, or answers
anything but a verdict, holds the picture back.
"""

import logging
from importlib.metadata import entry_points
from typing import Protocol

from sd35.errors import LibraryError, MissingError
from sd35.serving.seams import Verdict

LOG = logging.getLogger(__name__)
GROUP = "sd35.output_checks"


class OutputCheck(Protocol):
    """Something that looks at pictures."""

    def judge(self, picture: bytes, prompt: str) -> Verdict:
        """Whether a picture (an encoded image file) may leave the server."""


def load_check(name: str) -> OutputCheck:
    """The check that an installed package offers under this name; it is made ready before it is needed."""
    offered = {point.name: point for point in entry_points(group=GROUP)}
    if name not in offered:
        known = ", ".join(sorted(offered)) or "none"
        raise MissingError(f"There is no output check {name!r} (installed: {known}): install its package.")
    try:
        check: OutputCheck = offered[name].load()()
    except Exception as error:
        raise LibraryError(
            f"The output check {name} can't be started ({error}): see to its package."
        ) from error
    return check


def judge_picture(check: OutputCheck, picture: bytes, prompt: str) -> Verdict:
    """The check's verdict, and "no" where it gives none."""
    try:
        verdict: object = check.judge(picture, prompt)
    except Exception:
        LOG.exception("output check: it failed, and the picture is held back")
        return Verdict(False, "output_check", "failed")
    if not isinstance(verdict, Verdict):
        LOG.error("output check: it answered %r, and the picture is held back", type(verdict).__name__)
        return Verdict(False, "output_check", "failed")
    return verdict
