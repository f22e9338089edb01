"""What is wrong with a file, in three parts: which file, why, and what to do about it.

One gate refuses at once, `verify` goes on and lists everything; both say the same sentence. Whatever comes
from a file and gets into it (a name, a key, a value) is printed through `printable`, so that a hostile
header can neither move the cursor nor forge a line of a log.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from sd35.errors import CheckpointError

AGAIN = "fetch or copy it again"
_LONGEST_SHOWN = 120


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong; the three fields together make a sentence."""

    file: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file} {self.reason}: {self.remedy}."


class BadFileError(CheckpointError):
    """A file is refused; `finding` holds the parts of the sentence."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


def bad_file(path: Path | str, reason: str, remedy: str = AGAIN) -> BadFileError:
    """The refusal of a file, ready to be raised."""
    return BadFileError(Finding(shown_path(path), reason, remedy))


def finding_of(error: CheckpointError, file: str, root: Path | None = None) -> Finding:
    """The parts of a refusal, its file named as below `root` if it lies there, else as `file`.

    An error without parts is all reason.
    """
    if not isinstance(error, BadFileError):
        return Finding(file, f"is refused ({str(error).rstrip('.')})", AGAIN)
    finding = error.finding
    named = Path(finding.file)
    is_below = root is not None and named.is_relative_to(root)
    return replace(finding, file=named.relative_to(root).as_posix() if root and is_below else file)


def printable(value: object, longest: int = _LONGEST_SHOWN) -> str:
    """A value's text with all that is not plainly visible escaped, and cut where it gets long."""
    text = str(value)
    cut = "".join(letter if letter.isprintable() else _escaped(letter) for letter in text[:longest])
    return cut if len(text) <= longest else f"{cut}... ({len(text)} characters)"


def shown_path(path: Path | str) -> str:
    """A path for people: printable, and never cut."""
    return printable(path, longest=4096)


def some_of(names: list[str], most: int = 3) -> str:
    """'a, b, c and 4 more', printable."""
    listed = ", ".join(printable(name) for name in names[:most])
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")
