"""Output checks: found by name, and no picture leaves without a verdict."""

from importlib.metadata import EntryPoint, EntryPoints

import pytest

from sd35.errors import LibraryError, MissingError
from sd35.serving import output_check
from sd35.serving.output_check import GROUP, judge_picture, load_check
from sd35.serving.safety import Verdict


class Strict:
    """A check that lets nothing but kittens pass, and breaks on thunder."""

    def judge(self, picture: bytes, prompt: str) -> Verdict:
        """No kitten, no picture."""
        if prompt == "thunder":
            raise RuntimeError("lightning")
        return "yes" if prompt == "word" else Verdict(prompt == "kitten", "strict", "no kitten")


class Broken:
    """A check that can't be made."""

    def __init__(self) -> None:
        raise RuntimeError("no weights")


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints(
        EntryPoint(name.lower(), f"{__name__}:{name}", GROUP) for name in ("Strict", "Broken")
    )
    monkeypatch.setattr(output_check, "entry_points", lambda group: points.select(group=group))


def test_a_check_judges() -> None:
    """The verdict is the check's own."""
    check = load_check("strict")
    assert judge_picture(check, b"", "kitten").allowed
    assert judge_picture(check, b"", "storm") == Verdict(False, "strict", "no kitten")


@pytest.mark.parametrize("prompt", ["thunder", "word"])
def test_a_check_that_gives_no_verdict_holds_back(prompt: str) -> None:
    """An exception and an answer that is no verdict both mean no."""
    assert judge_picture(load_check("strict"), b"", prompt) == Verdict(False, "output_check", "failed")


def test_a_check_that_is_not_there_stops_the_start() -> None:
    """An unknown name and one that can't be made are errors, never "no check"."""
    with pytest.raises(MissingError, match="broken, strict"):
        load_check("kind")
    with pytest.raises(LibraryError, match="no weights"):
        load_check("broken")
