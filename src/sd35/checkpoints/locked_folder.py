"""A folder that one process at a time works in: its lock falls with the process, however that dies.

Whoever is done takes the folder away, and nobody may come in between. POSIX removes a file that is open, so
there the lock goes last, while it is held: who has opened it meanwhile has a lock of nothing, and is told.
Windows removes no file that anyone has open: there the lock is let go first, and a folder whose lock somebody
else has taken by then stays theirs.
"""

import os
import shutil
import stat
import sys
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = "lock"


class HeldError(Exception):
    """Another process works in the folder."""


class LockedFolder:
    """The lock on a folder, from here on until `clear` or `release`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Where a file system has no such locks it is said so: a mere file would outlive its process.
        self._lock = FileLock(folder / LOCK, blocking=False, thread_local=False, fallback_to_soft=False)
        try:
            self._lock.acquire()
        except (Timeout, FileNotFoundError) as error:  # gone: another process has cleared it this moment
            raise HeldError from error

    def release(self) -> None:
        """Let others in."""
        self._lock.release()

    def clear(self) -> None:
        """Remove the folder and let others in; what can't be removed stays for the next who comes."""
        with suppress(OSError):
            for path in self.folder.iterdir():
                if path.name != LOCK:
                    remove(path)
            if sys.platform == "win32":
                self.release()
            (self.folder / LOCK).unlink(missing_ok=True)
            self.folder.rmdir()
        self.release()


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it."""
    if not path.is_dir() or path.is_symlink():
        path.unlink()
        return
    if sys.platform == "win32":  # which removes nothing that is marked read-only, as git's objects are
        for inside in path.rglob("*"):
            os.chmod(inside, stat.S_IWRITE)
    shutil.rmtree(path)
