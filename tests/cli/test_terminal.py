"""Pictures for terminals: what is sent is the picture, and nobody is sent what it can't read."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from sd35.cli.terminal import KITTY_PIECE, blocks, iterm2, kitty, protocol_of, show, sixel


class Terminal(io.StringIO):
    """Something to write to that says that it is one."""

    def isatty(self) -> bool:
        """Yes."""
        return True


@pytest.fixture
def picture() -> Image.Image:
    """Noise in a few colours, 40 x 29: no side is a multiple of six, and rows have runs."""
    values = np.random.default_rng(0).integers(0, 3, (29, 40, 3), dtype=np.uint8) * 120
    values[3:9] = (240, 0, 120)
    return Image.fromarray(values)


def pixels(image: Image.Image) -> np.ndarray:
    """Its values."""
    return np.asarray(image.convert("RGB")).astype(int)


def png(text: str) -> np.ndarray:
    """The values of a PNG in base64."""
    return pixels(Image.open(io.BytesIO(base64.b64decode(text, validate=True))))


def test_kitty_gets_the_picture_in_pieces() -> None:
    """Each piece but the last says that more follow, and together they are the picture."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    pieces = re.findall(r"\x1b_G(.*?);(.*?)\x1b\\", kitty(noise))
    assert [head for head, _ in pieces] == ["a=T,f=100,m=1", *["m=1"] * (len(pieces) - 2), "m=0"]
    assert all(len(piece) == KITTY_PIECE for _, piece in pieces[:-1])
    assert np.array_equal(png("".join(piece for _, piece in pieces)), pixels(noise))


def test_iterm2_gets_the_picture_whole(picture: Image.Image) -> None:
    """With the number of bytes that follow."""
    found = re.fullmatch(r"\x1b\]1337;File=inline=1;size=(\d+):(.*)\x07", iterm2(picture))
    assert found is not None
    assert int(found[1]) == len(base64.b64decode(found[2]))
    assert np.array_equal(png(found[2]), pixels(picture))


def test_sixels_are_the_picture(picture: Image.Image) -> None:
    """Read back as a VT340 would: every pixel has its colour, to the hundredth that colours are told in."""
    found = re.fullmatch(r'\x1bPq"1;1;(\d+);(\d+)(.*)\x1b\\', sixel(picture))
    assert found is not None
    width, height, rest = int(found[1]), int(found[2]), found[3]
    assert (width, height) == picture.size
    drawn = np.full((height + 6, width, 3), -1.0)
    colours = {
        int(i): [int(v) * 2.55 for v in rgb.split(";")] for i, rgb in re.findall(r"#(\d+);2;([\d;]+)", rest)
    }
    for row, band in enumerate(re.sub(r"#\d+;2;\d+;\d+;\d+", "", rest).split("-")):
        for colour, letters in re.findall(r"#(\d+)([^#$]*)", band):
            columns = re.sub(r"!(\d+)(.)", lambda run: run[2] * int(run[1]), letters)
            assert len(columns) == width
            for x, letter in enumerate(columns):
                for bit in range(6):
                    if ord(letter) - 63 & 1 << bit:
                        drawn[6 * row + bit, x] = colours[int(colour)]
    assert np.abs(drawn[:height] - pixels(picture)).max() <= 2
    assert (drawn[height:] == -1).all()


def test_blocks_are_two_pixels_a_letter(picture: Image.Image) -> None:
    """Colours above and below are the picture's."""
    even = picture.crop((0, 0, 40, 28))
    lines = blocks(even).splitlines()
    cells = [re.findall(r"38;2;(\d+;\d+;\d+);48;2;(\d+;\d+;\d+)m▀", line) for line in lines]
    rows = [[[int(v) for v in cell[half].split(";")] for cell in line] for line in cells for half in (0, 1)]
    assert np.array_equal(np.array(rows), pixels(even))


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "screen-256color", "TMUX": "/tmp/x", "KITTY_WINDOW_ID": "1"}, None),
        ({"TERM": "xterm-256color"}, None),
        ({}, None),
    ],
)
def test_a_terminal_is_known_by_name(environment: dict[str, str], protocol: str | None) -> None:
    """And one that is not known gets nothing."""
    assert protocol_of(environment) == protocol
    out = Terminal()
    show(Image.new("RGB", (8, 8)), "auto", out, environment)
    assert bool(out.getvalue()) == (protocol is not None)


def test_a_file_gets_no_picture_unasked(picture: Image.Image) -> None:
    """`auto` writes to terminals alone; a demand is obeyed; never is never."""
    kitten = {"TERM": "xterm-kitty"}
    for wanted, is_shown in (("auto", False), ("blocks", True), ("never", False)):
        out = io.StringIO()
        show(picture, wanted, out, kitten)  # type: ignore[arg-type]
        assert bool(out.getvalue()) == is_shown
