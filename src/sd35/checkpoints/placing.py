"""Outputs that appear whole or not at all: built beside their place and moved there at the end.

What was at the place stays as it was, for nothing is ever overwritten. Unfinished work lies in a folder of
its own beside it, whose name follows from the output's, so that a later run finds it:

    .NAME.partial/lock       held by the process at work; it falls with the process, however that dies
    .NAME.partial/job.json   what is being made: source, recipe, tool; written before anything else
    .NAME.partial/NAME       the output so far

Whoever asks to resume goes on there if the job is the very same one, to the last fact. In any other case the
remains are removed and the work starts anew. Work that was refused is removed at once; work that was killed,
interrupted, or ran out of disk is left for `--resume`.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd35.checkpoints.locked_folder import LOCK, HeldError, LockedFolder, remove
from sd35.errors import OutputError, RefusedError, RequestError

log = logging.getLogger(__name__)

_NOTE = "job.json"


class BeingMadeError(OutputError):
    """Another process makes this output now."""


@dataclass(frozen=True)
class Job:
    """What is made, as facts that JSON can hold, and whether an earlier run's remains may be built upon."""

    facts: dict[str, Any]
    resume: bool = False

    @property
    def text(self) -> str:
        """The facts in bytes that can be compared."""
        return json.dumps(self.facts, indent=1, sort_keys=True) + "\n"


@contextmanager
def fresh_folder(destination: Path, room_needed: int, job: Job) -> Iterator[Path]:
    """A folder to fill; it becomes `destination` on success. OutputError if there is no place or room."""
    with _partial(destination, room_needed, job) as place:
        place.mkdir(exist_ok=True)
        yield place


@contextmanager
def fresh_file(destination: Path, room_needed: int, job: Job) -> Iterator[Path]:
    """A path to write a file at; it becomes `destination` on success. A file that is there is whole.

    What is written beside it, such as its manifest, comes along, and gets there first: the file is never
    without it.
    """
    with _partial(destination, room_needed, job) as place:
        yield place


@contextmanager
def _partial(destination: Path, room_needed: int, job: Job) -> Iterator[Path]:
    """The output's path in its partial folder, which this process alone works in."""
    refuse_existing(destination)
    partial = destination.parent / f".{destination.name}.partial"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with _locked(partial, destination):
            refuse_existing(destination)  # another run may have finished while we came here
            _prepare(partial, job)
            _check_room(partial, room_needed)
            yield partial / destination.name
            refuse_existing(destination)
            _move(partial, destination)
    except OSError as error:
        raise OutputError(
            f"{destination} can't be written ({error.strerror or error}): free the disk and go on with "
            "--resume, or choose another place."
        ) from error


def _move(partial: Path, destination: Path) -> None:
    for path in sorted(_remains(partial), key=lambda path: path.name == destination.name):
        path.replace(destination.with_name(path.name))


@contextmanager
def _locked(partial: Path, destination: Path) -> Iterator[None]:
    """The lock of a partial folder; BeingMadeError if another process has it.

    The folder is removed in the end, unless there is work in it that can be gone on with.
    """
    try:
        locked = LockedFolder(partial)
    except HeldError as error:
        raise BeingMadeError(
            f"{destination} is being written by another sd35 at this moment: wait for it, or choose another "
            "place."
        ) from error
    is_worth_keeping = False
    try:
        yield
    except (RefusedError, RequestError):  # the same would be refused again
        raise
    except BaseException:
        is_worth_keeping = bool(_remains(partial))
        raise
    finally:
        if is_worth_keeping:
            locked.release()
        else:
            with suppress(OSError):
                _empty(partial)
            locked.clear()


def _prepare(partial: Path, job: Job) -> None:
    """Keep the remains of the same job if that is wanted, else begin with nothing but the note of ours."""
    note = partial / _NOTE
    if job.resume and note.is_file() and note.read_bytes() == job.text.encode():
        return
    if job.resume and _remains(partial):
        log.warning(
            "%s holds the beginning of something else (source, recipe or version): starting anew", partial
        )
    _empty(partial)
    note.write_bytes(job.text.encode())


def _empty(partial: Path) -> None:
    """Remove all but the lock; the note first, for what it says holds no longer."""
    (partial / _NOTE).unlink(missing_ok=True)
    for path in _remains(partial):
        remove(path)


def _remains(partial: Path) -> list[Path]:
    """What was made so far."""
    return [path for path in partial.iterdir() if path.name not in (LOCK, _NOTE)]


def _check_room(partial: Path, room_needed: int) -> None:
    inside = [path for remains in _remains(partial) for path in (remains, *remains.rglob("*"))]
    held = sum(path.stat().st_size for path in inside if path.is_file())
    missing, free = room_needed - held, shutil.disk_usage(partial).free
    if free < missing:
        raise OutputError(
            f"{partial.parent} has {free / 1e6:,.0f} MB free and up to {missing / 1e6:,.0f} MB are needed: "
            "free the disk or choose another."
        )


def refuse_existing(destination: Path) -> None:
    """OutputError if there is anything at the place."""
    if destination.exists():
        raise OutputError(
            f"{destination} exists already and is never overwritten: remove it or name another."
        )
