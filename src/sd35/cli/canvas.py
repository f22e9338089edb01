"""A place in the terminal that is drawn on again and again: unfinished pictures, and a line below them.

The rows are made by as many line ends, so that whatever scrolls has scrolled before the first picture. From
then on the cursor rests below them, and drawing is: up, erase, picture, back down. How far a picture moves
the cursor differs from terminal to terminal, so its place is saved before and restored behind it. Kitty lays
pictures over the text and erases them by their number; with one, a new picture replaces the old.
"""

from collections.abc import Callable, Mapping
from typing import IO, TYPE_CHECKING, Self

from sd35.cli.terminal import BLOCK_COLUMNS, Show, blocks, iterm2, kitty, sixel, way_of

if TYPE_CHECKING:
    from PIL.Image import Image

ROWS = 16
SIXEL_PIXELS = 12 * ROWS  # rows of a terminal are 12 pixels high or more
_KITTY_NUMBER = 3535
_KITTY_ERASE = f"\x1b_Ga=d,d=I,i={_KITTY_NUMBER},q=2\x1b\\"


def canvas_for(wanted: Show, out: IO[str], environment: Mapping[str, str]) -> "Canvas | None":
    """A canvas where pictures can be drawn and drawn over, that is on a terminal; None elsewhere."""
    way = way_of(wanted, environment) if out.isatty() else None
    return Canvas(way, out) if way in _WAYS else None


class Canvas:
    """Rows of a terminal, from the first picture until the end of the `with` block, which leaves no trace."""

    def __init__(self, way: str | None, out: IO[str]) -> None:
        self._way, self._out = way, out
        self._is_open = False

    def draw(self, image: "Image") -> None:
        """Put the picture in the place of the one before."""
        picture = _WAYS[self._way](image)
        self._write(f"{self._top()}\x1b[0J\x1b7{picture}\x1b8\x1b[{ROWS + 1}B\r")

    def say(self, words: str) -> None:
        """Replace the line below the picture."""
        self._write(f"{self._top()}\x1b[{ROWS}B\x1b[2K{words}\r\x1b[1B")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_open:
            self._write((_KITTY_ERASE if self._way == "kitty" else "") + f"{self._top()}\x1b[0J")

    def _top(self) -> str:
        """The way to the first row, which is there from now on."""
        rows = "" if self._is_open else "\n" * (ROWS + 1)
        self._is_open = True
        return f"{rows}\x1b[{ROWS + 1}A\r"

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def _kitty(image: "Image") -> str:
    return kitty(image, f"i={_KITTY_NUMBER},q=2,C=1,r={ROWS}")


def _iterm2(image: "Image") -> str:
    return iterm2(image, f"height={ROWS}")


def _sixel(image: "Image") -> str:
    return sixel(image.resize((max(1, round(image.width * SIXEL_PIXELS / image.height)), SIXEL_PIXELS)))


def _blocks(image: "Image") -> str:
    return blocks(image, min(BLOCK_COLUMNS, round(image.width * 2 * ROWS / image.height)))


_WAYS: dict[str | None, Callable[["Image"], str]] = {
    "kitty": _kitty, "iterm2": _iterm2, "sixel": _sixel, "blocks": _blocks,
}  # fmt: skip
