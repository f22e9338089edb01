"""Which files are opened at all: regular ones, below the folder that was named.

Opening a FIFO waits for ever and opening a device may do anything, so a path's kind is looked at first. A
symbolic link may point anywhere *inside* the checkpoint folder; outside of it there is one more place that
is allowed, for the hub's own cache is made of such links:

    models--org--name/snapshots/<revision>/vae/config.json -> ../../../blobs/<hash>

The `blobs` folder beside the `snapshots` folder above the checkpoint counts as part of it. Any other link
out is refused: the file it leads to is not part of what was fetched or verified. A hard link is an ordinary
file (package managers install with them). A set-user-id or set-group-id file is refused: no weight needs it.

Windows has another kind of link beside these, the junction, which only folders are; and there `C:name` and
`name:stream` lead out of a folder too, so a path with a colon in it is none that a record may hold.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from sd35.checkpoints.findings import bad_file
from sd35.errors import MissingError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_COPY = "put a regular file in its place"
# Without O_NONBLOCK, a FIFO put there since it was looked at would still make us wait; Windows has none.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_JUNCTION = 0xA0000003  # IO_REPARSE_TAG_MOUNT_POINT


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; FileNotFoundError as usual, CheckpointError for any other kind."""
    refuse_special(path)
    try:
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise MissingError(
            f"{path} can't be opened ({error.strerror}): make it readable, or copy it again."
        ) from error
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise bad_file(path, "is no regular file", _COPY)
    return file


def refuse_special(path: Path) -> os.stat_result:
    """The path's stat, links followed; CheckpointError unless it is an ordinary regular file."""
    status = followed(path)
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")
        raise bad_file(path, f"is {kind} where a file should be", _COPY)
    if status.st_mode & (stat.S_ISUID | stat.S_ISGID):
        raise bad_file(
            path, "is marked set-user-id or set-group-id, which no checkpoint needs", "chmod ug-s it"
        )
    return status


def followed(path: Path) -> os.stat_result:
    """`stat` of a path; CheckpointError for links that run in a circle or names that no file can have."""
    try:
        return path.stat()
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise MissingError(f"{path} can't be looked at (permission denied): make it readable.") from error
    except (OSError, ValueError) as error:
        raise bad_file(path, f"leads nowhere ({getattr(error, 'strerror', None) or error})", _COPY) from error


def is_there(path: Path) -> bool:
    """Whether there is anything at the path; an error in words where nobody can tell, or no file can be."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        followed(path)  # puts it in words
    return True


def is_link(path: Path) -> bool:
    """Whether it is a symbolic link, or a junction."""
    return path.is_symlink() or getattr(path.lstat(), "st_reparse_tag", 0) == _JUNCTION


def is_plain(path: str) -> bool:
    """Whether a record's path stays below its folder on every system, and can be printed."""
    is_inside = not any(part in ("", ".", "..") for part in path.split("/"))
    return is_inside and path.isprintable() and not set(path) & set("\\:")


def refuse_outside(path: Path, root: Path) -> None:
    """CheckpointError if `path`, links followed, lies outside `root` and its hub cache's blobs."""
    try:
        real = path.resolve(strict=True)
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise bad_file(path, "is a link that runs in a circle", _COPY) from error
    home = root.resolve()
    blobs = hub_blobs(home)
    if not real.is_relative_to(home) and not (blobs and real.is_relative_to(blobs)):
        raise bad_file(path, f"is a link that leaves {home}", "replace the link by the file itself")


def hub_blobs(folder: Path) -> Path | None:
    """The `blobs` folder of the hub cache in which a resolved folder is a snapshot, None elsewhere."""
    for place in (folder, *folder.parents):
        blobs = place.parent / "blobs"
        if place.name == "snapshots" and blobs.is_dir():
            return blobs
    return None
