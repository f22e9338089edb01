"""A picture in the terminal that asked for it: by its graphics protocol, or as blocks of two pixels a letter.

Terminals say who they are in the environment and not what they can do, so the protocol is chosen by name.
Kitty's takes a PNG in base64, in pieces of at most 4,096 letters; iTerm2's takes it whole. Sixel, which is
DEC's of 1983, takes up to 256 colours, six rows at a time, colour by colour; letters from "?" on are columns
of six bits. Blocks need nothing but 24-bit colour: an upper half block has one colour above and one below.

Sources: https://sw.kovidgoyal.net/kitty/graphics-protocol, https://iterm2.com/documentation-images.html,
the VT330/VT340 Programmer Reference Manual, volume 2, chapter 14.
"""

import base64
import io
from collections.abc import Callable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from PIL.Image import Image

Show = Literal["auto", "never", "kitty", "iterm2", "sixel", "blocks"]
SHOWS = get_args(Show)

KITTY_PIECE = 4096
SIXEL_COLOURS = 256
SIXEL_ROWS = 6
LONGEST_SIDE = 768  # pixels that are sent: a terminal is no gallery
BLOCK_COLUMNS = 64

_KITTY_PROGRAMS = ("ghostty", "konsole")
_ITERM_PROGRAMS = ("iTerm.app", "WezTerm", "vscode", "mintty")
_SIXEL_TERMS = ("foot", "mlterm", "yaft", "contour")


def show(image: "Image", wanted: Show, out: IO[str], environment: Mapping[str, str]) -> None:
    """Write the picture to a terminal; nothing where `auto` knows no protocol that it speaks."""
    way = None if wanted == "auto" and not out.isatty() else way_of(wanted, environment)
    if way in _WAYS:
        out.write(_WAYS[way](image) + "\n")
        out.flush()


def way_of(wanted: Show, environment: Mapping[str, str]) -> str | None:
    """`auto` decided."""
    return protocol_of(environment) if wanted == "auto" else wanted


def protocol_of(environment: Mapping[str, str]) -> str | None:
    """What the terminal understands, by what it calls itself; None for one that is not known."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if environment.get("TMUX") or term.startswith("screen"):
        return None  # what is between would swallow it
    if "KITTY_WINDOW_ID" in environment or "kitty" in term or program.lower() in _KITTY_PROGRAMS:
        return "kitty"
    if program in _ITERM_PROGRAMS:
        return "iterm2"
    if term.startswith(_SIXEL_TERMS) or "sixel" in term:
        return "sixel"
    return None


def kitty(image: "Image", keys: str = "") -> str:
    """The escapes that have Kitty and its kin draw the picture at the cursor; `keys` say more of how."""
    head = "a=T,f=100," + (f"{keys}," if keys else "")
    text = _png_base64(image)
    pieces = [text[i : i + KITTY_PIECE] for i in range(0, len(text), KITTY_PIECE)]
    return "".join(
        f"\x1b_G{head if i == 0 else ''}m={int(i + 1 < len(pieces))};{piece}\x1b\\"
        for i, piece in enumerate(pieces)
    )


def iterm2(image: "Image", keys: str = "") -> str:
    """The escape that has iTerm2 and its kin draw the picture."""
    text = _png_base64(image)
    more = f";{keys}" if keys else ""
    return f"\x1b]1337;File=inline=1;size={len(base64.b64decode(text))}{more}:{text}\x07"


def sixel(image: "Image") -> str:
    """The picture in Sixel, in the 256 colours that fit it best."""
    small = _limited(image).quantize(SIXEL_COLOURS)
    width, height = small.size
    palette = small.getpalette("RGB") or []
    shares = [str(round(value * 100 / 255)) for value in palette]
    colours = "".join(f"#{i};2;{';'.join(shares[3 * i : 3 * i + 3])}" for i in range(len(shares) // 3))
    bands = "-".join(_band(small, top) for top in range(0, height, SIXEL_ROWS))
    return f'\x1bPq"1;1;{width};{height}{colours}{bands}\x1b\\'


def blocks(image: "Image", columns: int = BLOCK_COLUMNS) -> str:
    """The picture in half blocks, so many letters wide."""
    from PIL.Image import Resampling

    width = max(1, min(columns, image.width))
    height = max(2, round(image.height * width / image.width / 2) * 2)
    pixels = image.convert("RGB").resize((width, height), Resampling.BOX).tobytes()

    def colour(x: int, y: int) -> str:
        start = 3 * (y * width + x)
        return ";".join(map(str, pixels[start : start + 3]))

    return "\n".join(
        "".join(f"\x1b[38;2;{colour(x, y)};48;2;{colour(x, y + 1)}m▀" for x in range(width)) + "\x1b[0m"
        for y in range(0, height, 2)
    )


_WAYS: dict[str | None, Callable[["Image"], str]] = {
    "kitty": kitty, "iterm2": iterm2, "sixel": sixel, "blocks": blocks,
}  # fmt: skip


def _band(image: "Image", top: int) -> str:
    """Six rows: for each colour in them, which of the six it has in every column."""
    width, rows = image.width, min(SIXEL_ROWS, image.height - top)
    values = image.crop((0, top, width, top + rows)).tobytes()
    columns: dict[int, list[int]] = {}
    for place, colour in enumerate(values):
        columns.setdefault(colour, [0] * width)[place % width] |= 1 << place // width
    return "$".join(f"#{colour}{''.join(_runs(bits))}" for colour, bits in columns.items())


def _runs(bits: list[int]) -> Iterator[str]:
    """Columns as letters, repeated ones as `!count letter`."""
    start = 0
    for end in range(1, len(bits) + 1):
        if end == len(bits) or bits[end] != bits[start]:
            letter, count = chr(63 + bits[start]), end - start
            yield f"!{count}{letter}" if count > 3 else letter * count
            start = end


def _limited(image: "Image") -> "Image":
    small = image.convert("RGB")
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return small


def _png_base64(image: "Image") -> str:
    buffer = io.BytesIO()
    _limited(image).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
