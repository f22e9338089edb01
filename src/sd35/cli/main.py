"""The door: find the verb, run it, and turn every ending into an exit code.

    0  done                          3  something that we refuse to read or draw
    1  a bug: please report it       4  a path, disk, library or device that is not there
    2  a flag or a number            5  interrupted

Verbs are imported when they run, and their heavy rooms when they work, so `sd35 --help` costs no torch.
"""

import argparse
import logging
import os
import select
import sys
from importlib import import_module
from io import TextIOWrapper
from typing import NoReturn, TextIO

from sd35 import __version__
from sd35.checkpoints.findings import shown_path
from sd35.errors import RefusedError, RequestError, Sd35Error, UnavailableError

VERBS = (
    "fetch",
    "verify",
    "generate",
    "serve",
    "quantize",
    "convert",
    "compare",
    "bench",
    "doctor",
    "keys",
    "records",
    "config",
)
EXIT_CODES: dict[type[Sd35Error], int] = {RequestError: 2, RefusedError: 3, UnavailableError: 4}
INTERRUPTED = 5


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line, without importing any heavy room."""
    parser = Parser(prog="sd35", description="Stable Diffusion 3.5 in FP8.")
    parser.add_argument("--version", action="version", version=f"sd35 {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name in VERBS:
        module = import_module(f"sd35.cli.{name}")
        summary = (module.__doc__ or "").partition("\n")[0]
        verb = verbs.add_parser(name, help=summary, description=summary)
        verb.add_argument("--verbose", action="store_true", help="say what is going on")
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    level = logging.INFO if arguments.verbose else logging.WARNING
    logging.basicConfig(format="%(message)s", level=level, stream=sys.stderr)
    logging.getLogger("sd35").setLevel(logging.INFO)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except Sd35Error as error:
        print(f"sd35 {arguments.verb}: {error}", file=sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt:
        print(
            f"\nsd35 {arguments.verb}: interrupted; nothing half-written has taken its place.",
            file=sys.stderr,
        )
        return INTERRUPTED
    except OSError as error:
        return _ended_by_the_system(error, arguments.verb)
    return 0


def _ended_by_the_system(error: OSError, verb: str) -> int:
    has_seen_enough = isinstance(error, BrokenPipeError) and _has_lost_its_reader(sys.stdout)  # `| head`
    if not has_seen_enough:
        logging.info("The system refused:", exc_info=error)  # seen with --verbose
        print(f"sd35 {verb}: {_in_words(error)}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # Python would try once more at its end, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0 if has_seen_enough else EXIT_CODES[UnavailableError]


def _in_words(error: OSError) -> str:
    """A refusal of the system's that no room has put into a sentence of its own."""
    what = "" if error.filename is None else f"{shown_path(os.fsdecode(error.filename))}: "
    return f"{what}{error.strerror or error}: see to its permissions, its place and the room on its disk."


def _has_lost_its_reader(stream: TextIO) -> bool:
    if sys.platform == "win32":  # there a pipe without a reader is another error
        return False
    watch = select.poll()
    watch.register(stream, select.POLLOUT)
    return any(event & select.POLLERR for _, event in watch.poll(0))


def exit_code(error: Sd35Error) -> int:
    """The number for the branch of the tree on which the error sits."""
    return next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))


def _ready_console() -> None:
    """On Windows, UTF-8 wherever output goes (a code page has no word of Chinese), and escapes that draw."""
    from colorama import just_fix_windows_console

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    just_fix_windows_console()


def entry() -> NoReturn:
    """The console script."""
    # PyTorch's threads wait for one another hundreds of times a step. Where other programs share the cores,
    # a thread that waits by spinning takes the core from the one it waits for: a step of the demo model took
    # 10 s instead of 0.3. Read by OpenMP when torch is imported; a setting of the user's stands.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _ready_streams()
    if sys.platform == "win32":
        _ready_console()
    sys.exit(main())


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8", newline="\n")


def _ready_streams() -> None:
    """Where there is no stdout or stderr (`>&-`), words go nowhere; letters that one lacks are escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _nowhere())
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
