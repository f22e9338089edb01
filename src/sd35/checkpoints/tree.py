"""What may lie in a checkpoint folder: regular files without code, and links that stay inside.

A checkpoint is data. A Python file in it is there to be run, a pickle runs when it is read, a FIFO hangs
whoever opens it: one of them anywhere in the folder, under whatever name, and the folder is refused. Contents
decide, for extensions lie. `.git` and `.cache` are no part of the checkpoint and are not looked at.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from sd35.checkpoints.files import is_link, refuse_outside, refuse_special
from sd35.checkpoints.findings import BadFileError, Finding, bad_file, finding_of, shown_path
from sd35.checkpoints.sniff import sniff
from sd35.errors import MissingError

NOT_OURS = {".git", ".cache"}
MOST_FILES = 10_000
_CODE = {".py", ".pyc", ".pyo", ".pyd", ".pyx", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat", ".js", ".whl"}
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".dill", ".joblib", ".npy", ".npz"}
_REMOVE = "remove it; weights come as safetensors"


def check_tree(root: Path) -> None:
    """CheckpointError for the first thing in the folder that has no place in a checkpoint."""
    for error in tree_errors(root):
        raise error


def tree_findings(root: Path) -> list[Finding]:
    """Everything in the folder that has no place in a checkpoint, named by its path in the folder."""
    return [finding_of(error, error.finding.file, root) for error in tree_errors(root)]


def tree_errors(root: Path) -> Iterator[BadFileError]:
    """A refusal for each thing in the folder that has no place in a checkpoint."""
    for count, path in enumerate(walk(root)):
        if count >= MOST_FILES:
            yield bad_file(root, f"holds more than {MOST_FILES} files", "give the folder of one checkpoint")
            return
        try:
            _check(path, root)
        except FileNotFoundError:
            yield bad_file(path, "is a link to nothing", "fetch or copy the file itself")
        except BadFileError as error:
            yield error


def walk(root: Path) -> Iterator[Path]:
    """Everything below the folder but folders themselves, sorted; linked folders are entered only inside."""
    for folder, names, files in os.walk(root, onerror=_unreadable):
        here = Path(folder)
        links = sorted(name for name in names if is_link(here / name))
        names[:] = sorted(name for name in names if name not in NOT_OURS and name not in links)
        yield from (here / name for name in sorted([*files, *links]))


def _unreadable(error: OSError) -> None:
    raise MissingError(
        f"{shown_path(error.filename)} can't be listed ({error.strerror}): make it readable."
    ) from error


def _check(path: Path, root: Path) -> None:
    if is_link(path):
        refuse_outside(path, root)
    if path.is_dir():
        raise bad_file(path, "is a link to a folder", "put the folder itself in its place")
    refuse_special(path)
    suffix = path.suffix.lower()
    if suffix in _CODE:
        raise bad_file(path, "is code, and a checkpoint is data: refused", _REMOVE)
    sniffed = sniff(path)
    if sniffed is not None and sniffed.is_code:
        raise bad_file(path, sniffed.words, sniffed.remedy)
    if suffix in _PICKLES:
        raise bad_file(path, "has a name of pickled weights, which can run code", _REMOVE)
