"""What lies around: host memory, room on the disk, the hub's token, the licence."""

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

from sd35.checkpoints.fetch import environment
from sd35.checkpoints.fetch.access import ask_access
from sd35.checkpoints.store import REPOSITORIES, home
from sd35.doctor.finding import Finding, well, wrong
from sd35.doctor.fits import Fits
from sd35.errors import Sd35Error
from sd35.runtime.budget import gibibytes

LEAST_ROOM = 1 << 30  # for pictures, and for the FP8 folder of a small model
_OTHERS_MAY = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class Memory:
    """Bytes of host memory: what is free for a new program, and all."""

    available: int
    total: int


def host_memory() -> Memory:
    """This machine's."""
    found = psutil.virtual_memory()
    return Memory(found.available, found.total)


def check_host_memory(memory: Memory, checkpoints: list[Fits], *, on_card: bool) -> Iterator[Finding]:
    """Weights that move, or that a CPU draws with, lie in host memory."""
    yield well("host memory", f"{gibibytes(memory.available)} available of {gibibytes(memory.total)}")
    for fits in checkpoints:
        plan = fits.asked.plan or "streamed"
        needed = (0 if plan == "resident" else fits.weights) if on_card else fits.asked.bytes
        if needed > memory.total:
            what = (
                f"{fits.name} keeps {gibibytes(needed)} there, and {gibibytes(memory.total)} is all there is"
            )
            yield wrong("host memory", what, "choose a smaller variant: sd35 fetch medium", "out of memory")


def check_disk(room: int, checkpoints: list[Fits]) -> Finding:
    """Room for FP8 folders under SD35_HOME; `checkpoints` are those that may still have to be made."""
    place = str(home())
    if room < LEAST_ROOM:
        what = f"{gibibytes(room)} free at {place}"
        return wrong("disk", what, "free the disk, or export SD35_HOME=/another/disk", "disk full")
    too_large = [f"{fits.name} ({fits.weights / 1e9:.0f} GB)" for fits in checkpoints if fits.weights > room]
    words = f"; too little for {', '.join(too_large)} in FP8" if too_large else ""
    return well("disk", f"{gibibytes(room)} free at {place}{words}")


def disk_room() -> int:
    """Bytes free where SD35_HOME is, or will be."""
    place = home().absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def check_token() -> Iterator[Finding]:
    """Whether there is a token for the hub, and that nobody else may read it; never the token itself."""
    try:
        found = environment.token()
    except Sd35Error as error:
        yield wrong("hub token", str(error), "hf auth login", "fetch refused")
        return
    if found is None:
        page = f"{environment.HUB}/{REPOSITORIES['large']}"
        what = f"none; the demo needs none, and Stability's weights do, with their licence accepted at {page}"
        yield well("hub token", what, "hf auth login")
        return
    yield well("hub token", "there is one")
    path = environment.token_path()
    if os.name == "posix" and path.is_file() and path.stat().st_mode & _OTHERS_MAY:
        yield wrong("token file", f"others may read {path}", f"chmod 600 {path}", "token readable by others")


def check_licences(names: list[str]) -> Iterator[Finding]:
    """Whether the hub would let us fetch each of these."""
    for name in names:
        check = f"licence of {name}"
        try:
            page = ask_access(name)
        except Sd35Error as error:
            fix = f"accept the licence at {environment.HUB}/{REPOSITORIES[name]}, then hf auth login"
            yield wrong(check, str(error), fix, "fetch refused")
        else:
            yield well(check, f"{page} may be fetched")
