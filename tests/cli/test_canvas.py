"""Unfinished pictures in the terminal: one after the other in the same place, and none is left."""

import base64
import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sd35.cli.canvas import ROWS, SIXEL_PIXELS, canvas_for
from sd35.cli.main import main

Cell = tuple[str, str]  # a letter and its colours
_TOKENS = re.compile(
    r"\x1b_G(?P<kitty>[^\x1b]*)\x1b\\|\x1b\](?P<iterm>[^\x07]*)\x07|\x1bP(?P<sixel>[^\x1b]*)\x1b\\"
    r"|\x1b(?P<cursor>[78])|\x1b\[(?P<argument>[\d;]*)(?P<order>[A-Za-z])|(?P<letter>.)",
    re.DOTALL,
)


class Screen(io.StringIO):
    """A terminal of 40 rows: it scrolls, obeys the orders that we use, and says that it is a terminal."""

    def __init__(self, rows: int = 40) -> None:
        super().__init__()
        self.cells: list[dict[int, Cell]] = [{} for _ in range(rows)]
        self.row = self.column = 0
        self.saved, self.colours = (0, 0), ""
        self.pictures: list[tuple[int, str]] = []  # row, escape
        self.scrolled = 0

    def isatty(self) -> bool:
        """Yes."""
        return True

    def write(self, text: str) -> int:
        """Obey."""
        for token in _TOKENS.finditer(text):
            if token["letter"]:
                self._put(token["letter"])
            elif token["cursor"] == "7":
                self.saved = self.row, self.column
            elif token["cursor"] == "8":
                self.row, self.column = self.saved
            elif token["order"]:
                self._order(token["order"], token["argument"])
            else:
                self.pictures.append((self.row, token[0]))
                self.row += 5  # where a terminal leaves the cursor is its own affair
        return len(text)

    def text(self) -> list[str]:
        """Its rows as letters, without empty ones at the end."""
        rows = [
            "".join(row.get(i, (" ", ""))[0] for i in range(max(row, default=-1) + 1)) for row in self.cells
        ]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    def _put(self, letter: str) -> None:
        if letter == "\r":
            self.column = 0
        elif letter == "\n":
            self.column = 0
            self.row += 1
            if self.row == len(self.cells):
                self.cells = [*self.cells[1:], {}]
                self.row -= 1
                self.scrolled += 1
        else:
            self.cells[self.row][self.column] = letter, self.colours
            self.column += 1

    def _order(self, order: str, argument: str) -> None:
        if order == "m":
            self.colours = argument
        elif order == "A":
            self.row = max(0, self.row - int(argument))
        elif order == "B":
            self.row = min(len(self.cells) - 1, self.row + int(argument))
        elif order == "K":
            assert argument == "2"
            self.cells[self.row] = {}
        else:
            assert (order, argument) == ("J", "0")
            here = {i: cell for i, cell in self.cells[self.row].items() if i < self.column}
            self.cells[self.row :] = [here, *({} for _ in self.cells[self.row + 1 :])]


def noise(seed: int) -> Image.Image:
    """A square of 32 pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8))


def colours(cells: dict[int, Cell]) -> list[list[list[int]]]:
    """The two rows of pixels in a row of half blocks."""
    found = [
        re.fullmatch(r"38;2;(.*);48;2;(.*)", colour) for letter, colour in cells.values() if letter == "▀"
    ]
    assert all(found)
    return [[list(map(int, pair[i].split(";"))) for pair in found if pair] for i in (1, 2)]


@pytest.mark.parametrize("before", [0, 3, 30, 60])
def test_the_last_picture_stands_where_the_first_stood(before: int) -> None:
    """Wherever the cursor was: the rows above stay, the picture is exact, the words are below it."""
    screen = Screen()
    screen.write("".join(f"line {i}\n" for i in range(before)))
    with canvas_for("blocks", screen, {}) as canvas:  # type: ignore[union-attr]
        tops = []
        for seed in range(3):
            canvas.draw(noise(seed))
            canvas.say(f"step {seed} of 3")
            rows = screen.text()
            tops.append((next(i for i, row in enumerate(rows) if "▀" in row), screen.scrolled))
            assert rows[-1] == f"step {seed} of 3"
            pixels = [line for cells in screen.cells[tops[-1][0] :][:ROWS] for line in colours(cells)]
            assert np.array_equal(np.array(pixels), np.asarray(noise(seed)))
        assert len(set(tops)) == 1
    shown = [f"line {i}" for i in range(before)]
    rows = screen.text()
    assert rows == shown[len(shown) - len(rows) :]
    assert (screen.row, screen.column) == (len(rows), 0)


def test_kitty_replaces_and_erases() -> None:
    """One number for all, no answers asked for, and as many rows as are there; erased at the end."""
    screen = Screen()
    with canvas_for("auto", screen, {"TERM": "xterm-kitty"}) as canvas:  # type: ignore[union-attr]
        for seed in range(2):
            canvas.draw(noise(seed))
    heads = [head for head in (p[3:].partition(";")[0] for _, p in screen.pictures) if "a=" in head]
    assert len(heads) == 3
    assert all("i=3535" in head and "q=2" in head for head in heads)
    assert f"r={ROWS}" in heads[0]
    assert "C=1" in heads[0]
    assert "a=d,d=I" in heads[-1]
    assert {row for row, picture in screen.pictures if "a=T" in picture} == {0}
    assert screen.text() == []


def test_iterm2_and_sixel_keep_to_the_rows() -> None:
    """The one is told how many rows, the other gets no more pixels than the lowest rows have."""
    screen = Screen()
    with canvas_for("iterm2", screen, {}) as canvas:  # type: ignore[union-attr]
        canvas.draw(noise(0))
    ((_, told),) = screen.pictures
    assert f";height={ROWS}:" in told
    content = base64.b64decode(told.partition(":")[2].rstrip("\x07"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), np.asarray(noise(0)))
    screen = Screen()
    with canvas_for("sixel", screen, {}) as canvas:  # type: ignore[union-attr]
        canvas.draw(noise(0))
    ((_, told),) = screen.pictures
    assert told.startswith(f'\x1bPq"1;1;{SIXEL_PIXELS};{SIXEL_PIXELS}')


def test_files_get_no_canvas() -> None:
    """Nothing can be drawn over there, whatever is asked for; nor in a terminal that is not known."""
    assert canvas_for("blocks", io.StringIO(), {"TERM": "xterm-kitty"}) is None
    assert canvas_for("auto", Screen(), {"TERM": "xterm"}) is None
    assert canvas_for("never", Screen(), {"TERM": "xterm-kitty"}) is None


def test_generate_shows_previews_and_leaves_the_picture(tmp_path: Path) -> None:
    """In a real terminal: unfinished pictures come nearer to the finished one, which alone is left."""
    ours, theirs = pty.openpty()
    command = [
        "generate",
        "a fox",
        "-n",
        "2",
        "--steps",
        "9",
        "--seed",
        "3",
        "--previews",
        "2",
        "--show",
        "blocks",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "sd35", *command, "--device", "cpu", "-o", str(tmp_path)],
        stdout=theirs, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs)
    said = b""
    while True:
        try:
            said += os.read(ours, 1 << 16)
        except OSError:  # how Linux says that the other end is closed
            break
    assert process.wait() == 0
    screen, frames = Screen(120), []
    for order in re.split(r"(?=\x1b\[17A)", said.decode().replace("\r\n", "\n")):
        screen.write(order)
        lines = [colours(row) for row in screen.cells if any(letter == "▀" for letter, _ in row.values())]
        if len(lines) == ROWS:
            frames.append(np.array([line for pair in lines for line in pair]))
    drawn = [frame for i, frame in enumerate(frames) if i == 0 or not np.array_equal(frame, frames[i - 1])]
    assert len(drawn) == 2
    finished = np.concatenate(
        [np.asarray(Image.open(path).resize((32, 32))) for path in sorted(tmp_path.glob("*.png"))], axis=1
    )
    apart = [np.abs(frame.astype(int) - finished).mean() for frame in drawn]
    assert apart[1] < apart[0] < 60
    rows = screen.text()
    assert sum("▀" in row for row in rows) == 2 * 32
    assert not any("step" in row for row in rows)
    assert any(row.startswith(str(tmp_path)) for row in rows)


def test_where_none_can_be_shown_a_sentence_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The picture is drawn all the same."""
    target = tmp_path / "fox.png"
    command = ["generate", "a fox", "--steps", "1", "--device", "cpu", "--previews", "3", "-o", str(target)]
    assert main(command) == 0
    assert "No previews: stdout is no terminal" in capsys.readouterr().err
    assert target.exists()
    assert main([*command[:-4], "--previews", "-1", "-o", str(target)]) == 2
