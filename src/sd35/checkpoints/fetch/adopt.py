"""A folder that another downloader made, at the very place that a fetch goes to: what is right in it stays.

`hf download --local-dir` and `git clone` with LFS leave the files that we would fetch, and no manifest. Each
of them is hashed against the remote's record; what is right is kept where it is, what is lacking is brought.
A Git LFS pointer makes room for the content that it stands for. Any other file under one of the names may be
somebody's work, so it is replaced only after the person has said so.
"""

import os
from collections.abc import Collection
from pathlib import Path

from sd35.checkpoints.fetch.listing import INDEX, POINTER_SIZE, RemoteFile, pointer
from sd35.checkpoints.findings import some_of
from sd35.checkpoints.manifest import FILE_NAME
from sd35.checkpoints.store import UNFINISHED
from sd35.checkpoints.tree import walk
from sd35.errors import OutputError

_TRACES = (INDEX, ".git", ".cache/huggingface", UNFINISHED)


def is_download(folder: Path, names: tuple[str, ...]) -> bool:
    """Whether a folder is empty, or shows that a checkpoint was, or was to be, downloaded into it."""
    return not any(folder.iterdir()) or any((folder / name).exists() for name in (*_TRACES, *names))


def refuse_overwriting(folder: Path, missing: list[RemoteFile], place: str) -> None:
    """OutputError if a file that is to be brought has its name taken by something else than its pointer."""
    taken = [
        file for file in missing if os.path.lexists(folder / file.path) and not _is_pointer(folder, file)
    ]
    if not taken:
        return
    named = some_of([f"{file.path} ({_size(folder / file.path)} of {file.size} bytes)" for file in taken])
    raise OutputError(
        f"{folder} holds {len(taken)} files that are not what {place} has, or that it has no hash for: "
        f"{named}. Fetch these anew with --replace, which removes what is there; or name the commit that "
        "they are of with --revision, or another place with -o."
    )


def strangers(folder: Path, known: Collection[str]) -> list[str]:
    """The files of the folder that are no part of what was fetched: they are left as they are."""
    names = (path.relative_to(folder).as_posix() for path in walk(folder))
    ours = {*known, FILE_NAME}
    return [name for name in names if name not in ours and not name.startswith(f"{UNFINISHED}/")]


def _is_pointer(folder: Path, file: RemoteFile) -> bool:
    path = folder / file.path
    if path.is_symlink() or not path.is_file() or path.stat().st_size >= POINTER_SIZE:
        return False
    found = pointer(file.path, path.read_bytes())
    return found is not None and found.sha256 == file.sha256


def _size(path: Path) -> str:
    return str(path.stat().st_size) if path.is_file() and not path.is_symlink() else "a link or folder,"
