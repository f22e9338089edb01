"""Pages as tests read them: their fenced blocks, and the commands in those and between backticks."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHELLS = ("sh", "bash", "console")
# What a placeholder of a shell line may look like and be an argument all the same.
_SPAN = re.compile(r"(?<!`)`(sd35 [^`]+)`(?!`)")


@dataclass(frozen=True)
class Command:
    """One command of a shell block, with what a backslash or a here document joins to it."""

    page: str
    first: int  # lines of the page, counted from 0
    last: int
    text: str

    @property
    def words(self) -> list[str]:
        """As a shell splits it, without its comment."""
        return shlex.split(self.text.replace("\\\n", " "), comments=True)

    def __str__(self) -> str:
        return f"{self.page}:{self.first + 1}: {self.text}"


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    language: str
    first: int  # the line after the opening fence
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(f"{line}\n" for line in self.lines)


@dataclass(frozen=True)
class Page:
    """A file in Markdown."""

    name: str

    @cached_property
    def lines(self) -> list[str]:
        """Without their ends."""
        return (ROOT / self.name).read_text(encoding="utf-8").splitlines()

    @cached_property
    def blocks(self) -> list[Block]:
        """In their order."""
        found: list[Block] = []
        opened: tuple[str, int] | None = None
        for number, line in enumerate(self.lines):
            if opened is None and line.startswith("```"):
                opened = line[3:], number + 1
            elif opened is not None and line == "```":
                found.append(Block(opened[0], opened[1], tuple(self.lines[opened[1] : number])))
                opened = None
        assert opened is None, f"{self.name}: the block at line {opened} is not closed"
        return found

    @cached_property
    def prose(self) -> list[str]:
        """The lines outside of blocks; those of blocks, and the fences, are empty."""
        lines = list(self.lines)
        for block in self.blocks:
            for number in range(block.first - 1, block.first + len(block.lines) + 1):
                lines[number] = ""
        return lines

    @cached_property
    def commands(self) -> list[Command]:
        """Of all shell blocks."""
        return [
            command
            for block in self.blocks
            if block.language in SHELLS
            for command in _commands(self.name, block)
        ]

    @cached_property
    def spans(self) -> list[str]:
        """Commands of ours between backticks, in sentences and tables."""
        return _SPAN.findall("\n".join(self.prose).replace("\\|", "|"))

    def script(self, left_out: set[Command]) -> str:
        """The page as one shell script, line for line: what is no command is an empty line."""
        script = [""] * len(self.lines)
        for block in self.blocks:
            if block.language in (*SHELLS, "python"):
                script[block.first : block.first + len(block.lines)] = block.lines
            if block.language == "python":
                script[block.first - 1] = "python - <<'END OF PYTHON'"
                script[block.first + len(block.lines)] = "END OF PYTHON"
        for command in left_out:
            script[command.first : command.last + 1] = [""] * (command.last + 1 - command.first)
        return "\n".join(script) + "\n"


def pages() -> list[Page]:
    """Every page that people read for how to do something, and those beside."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "src/sd35/demo/MODEL_CARD.md"]
    return [Page(path.relative_to(ROOT).as_posix()) for path in sorted(found)]


def _commands(page: str, block: Block) -> Iterator[Command]:
    number = 0
    while number < len(block.lines):
        last = number
        here = re.search(r"<<'(\w+)'", block.lines[number])
        if here:
            last = block.lines.index(here[1], number)
        while block.lines[last].endswith("\\"):
            last += 1
        text = "\n".join(block.lines[number : last + 1])
        if text.strip() and not text.startswith("#"):
            yield Command(page, block.first + number, block.first + last, text)
        number = last + 1
