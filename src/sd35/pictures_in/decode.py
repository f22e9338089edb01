"""From a stranger's bytes to pixels, without letting their decoder near us.

The file is decoded by a process of its own (`child.py`) with bounds on its memory, its seconds and its
answer, and what comes back is believed only as far as it can be counted. So a file that breaks its decoder,
or keeps it busy for ever, costs one sentence. Both directions are files, on Linux in memory (memfd): there is
no pipe to fill up, and the kernel holds the child to the size of its answer.

PNG, JPEG and WEBP are read. EXIF's orientation is applied; transparency is laid on white; an ICC profile is
converted to sRGB; of an animation the first frame counts; metadata is dropped.
"""

import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from sd35.errors import MissingError, SourceError
from sd35.pictures_in.source_picture import SourcePicture

CHILD = Path(__file__).with_name("child.py")
INHERITED = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT")  # of the environment, which may hold secrets
ANSWER_LINE = 200  # bytes of the answer's first line, at most

if sys.platform == "linux":

    def nameless_file() -> IO[bytes]:
        """A file that is gone when it is closed: in memory."""
        return open(os.memfd_create("picture"), "w+b", buffering=0)

else:

    def nameless_file() -> IO[bytes]:
        """A file that is gone when it is closed: on disk."""
        return TemporaryFile(buffering=0)


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a picture may cost; the defaults take 32 megapixels with transparency and a colour profile."""

    file_bytes: int = 32 << 20
    pixels: int = 32_000_000
    address_space: int = 1 << 30  # bytes
    cpu_s: int = 20
    wall_s: float = 40.0


def decode(data: bytes, limits: Limits = Limits()) -> SourcePicture:
    """The picture in these bytes; SourceError, in one sentence, for whatever is not one."""
    if not data:
        raise SourceError("The picture's file is empty: send the whole file.")
    if len(data) > limits.file_bytes:
        raise too_long(limits.file_bytes)
    with _filled(data) as file, _filled() as answer:
        _run(file, answer, limits)
        answer.seek(0)
        head = answer.readline(ANSWER_LINE)
        # In one piece: the file's own buffer would be joined to it, and all threads wait for 96 MB.
        os.lseek(answer.fileno(), len(head), os.SEEK_SET)
        pixels = os.read(answer.fileno(), 3 * limits.pixels + 1)
    return _picture(head, pixels, limits)


def read_picture(path: Path, limits: Limits = Limits()) -> SourcePicture:
    """The picture in a file, of which no more is read than may be; MissingError where it can't be."""
    try:
        with open(os.path.expanduser(path), "rb") as file:
            data = file.read(limits.file_bytes + 1)
    except OSError as error:
        raise MissingError(
            f"The picture {path} can't be read ({error.strerror}): check the name and its permissions."
        ) from error
    return decode(data, limits)


def too_long(most: int) -> SourceError:
    """The sentence for a file of more bytes than that."""
    return SourceError(
        f"The picture's file is longer than {most >> 20} MiB, the most that is read: make it smaller, or "
        "save it as JPEG."
    )


def _run(file: IO[bytes], answer: IO[bytes], limits: Limits) -> None:
    output = 3 * limits.pixels + ANSWER_LINE
    bounds = (limits.pixels, limits.address_space, limits.cpu_s, output)
    command = [sys.executable, "-I", "-S", str(CHILD), _home_of_pillow(), *map(str, bounds)]
    own = {name: os.environ[name] for name in INHERITED if name in os.environ}
    try:
        ended = subprocess.run(
            command, stdin=file, stdout=answer, stderr=subprocess.DEVNULL, env=own, timeout=limits.wall_s,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise _too_slow(f"{limits.wall_s:g} s") from error
    log.debug("decoding ended with %d", ended.returncode)
    if ended.returncode < 0:
        name = signal.Signals(-ended.returncode).name
        if name == "SIGXCPU":
            raise _too_slow(f"{limits.cpu_s} s of computing")
        raise SourceError(
            f"Decoding the picture was ended by {name}, so it is not read: save it anew with another "
            "program, and smaller."
        )
    if ended.returncode > 0:
        raise damaged()


def _home_of_pillow() -> str:
    """The folder that Pillow is imported from, wherever it is installed; this imports nothing."""
    found = importlib.util.find_spec("PIL")
    assert found is not None, "Pillow is a dependency"
    assert found.origin is not None
    return str(Path(found.origin).parents[1])


def _picture(head: bytes, pixels: bytes, limits: Limits) -> SourcePicture:
    """What the child says, as far as it adds up."""
    try:
        said = json.loads(head)
    except ValueError as error:
        raise damaged() from error
    match said:
        case {"refused": str(why)}:
            raise _refusal(why, limits)
        case {"width": int(width), "height": int(height)} if 0 < width * height <= limits.pixels:
            if len(pixels) == 3 * width * height and min(width, height) > 0:
                return SourcePicture(width, height, pixels)
    raise damaged()


def _refusal(why: str, limits: Limits) -> SourceError:
    kind, _, size = why.partition(" ")
    if kind == "format":
        return SourceError(
            "The picture is no PNG, JPEG or WEBP file, and no other is read here: convert it first."
        )
    if kind == "pixels":
        return SourceError(
            f"The picture has {size} pixels and the most is {limits.pixels // 10**6} megapixels: make it "
            "smaller."
        )
    return SourceError(
        f"The picture needs more than {limits.address_space >> 20} MiB to be decoded: make it smaller, or "
        "save it as JPEG."
    )


def damaged() -> SourceError:
    """The sentence for a file that ends early, contradicts itself or makes no sense."""
    return SourceError("The picture's file is damaged or not complete: save it anew, or send it again.")


def _too_slow(bound: str) -> SourceError:
    return SourceError(
        f"The picture took more than {bound} to decode and was given up: make it smaller, or save it as JPEG."
    )


@contextmanager
def _filled(content: bytes = b"") -> Iterator[IO[bytes]]:
    """A file that a child can be given as its stdin or stdout, open at its beginning.

    Unbuffered: joining a buffer to 96 MB of pixels would keep all threads waiting.
    """
    with nameless_file() as file:
        file.write(content)
        file.seek(0)
        yield file
