"""`sd35.json`: what a checkpoint folder holds, file by file, and how it came about.

The manifest lists path, size and SHA-256 of every file, so damage shows later and two folders can be
compared without reading them. A folder's *identity* is the SHA-256 of that list: it is what a picture
records of the checkpoint that drew it. Folders from elsewhere have no manifest; theirs is computed.

A single file has its manifest beside it, as `NAME.safetensors.sd35.json`. It can't be inside: the header
would have to hold a hash of itself, or be left out of what is protected.
"""

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sd35.checkpoints.files import is_plain
from sd35.checkpoints.findings import printable
from sd35.checkpoints.progress import Progress
from sd35.checkpoints.strict_json import read_json
from sd35.checkpoints.tree import walk
from sd35.errors import CheckpointError, OutputError, RequestError

FILE_NAME = "sd35.json"
FORMAT = "sd35-checkpoint-1"
_BLOCK = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str

    def __post_init__(self) -> None:
        is_hash = isinstance(self.sha256, str) and _SHA256.fullmatch(self.sha256)
        if type(self.size) is not int or self.size < 0 or not is_hash:
            raise TypeError(f"{printable(self)} is no size and SHA-256")


@dataclass(frozen=True)
class Origin:
    """Where a folder was fetched from: `kind` is hub, git or folder, `place` the repository, URL or path."""

    kind: str
    place: str
    commit: str | None = None
    endpoint: str | None = None  # the hub's address

    def __post_init__(self) -> None:
        for value in (self.kind, self.place, self.commit or "", self.endpoint or ""):
            if not isinstance(value, str):
                raise TypeError(f"{value!r} is no text")


@dataclass(frozen=True)
class Manifest:
    """`files` by their path in the folder; the other fields tell where the folder comes from."""

    files: dict[str, FileRecord]
    variant: str | None = None
    tool: str | None = None
    recipe: dict[str, Any] | None = None
    source: dict[str, FileRecord] = field(default_factory=dict)
    origin: Origin | None = None

    @property
    def identity(self) -> str:
        """SHA-256 over the list of files: equal for equal contents, wherever they lie."""
        listing = "".join(f"{path} {record.sha256}\n" for path, record in sorted(self.files.items()))
        return hashlib.sha256(listing.encode()).hexdigest()


def hash_files(folder: Path) -> dict[str, FileRecord]:
    """Every file of the checkpoint in `folder` but the manifest itself, hashed two at a time."""
    paths = sorted(path for path in walk(folder) if path.is_file() and path.name != FILE_NAME)
    count = Progress(0)
    with ThreadPoolExecutor(max_workers=2) as pool:
        try:
            records = list(pool.map(partial(hash_file, count=count), paths))
        except BaseException:  # an interrupt, above all: the pool waits for its threads
            count.stop()
            raise
    return {path.relative_to(folder).as_posix(): record for path, record in zip(paths, records, strict=True)}


def manifest_place(checkpoint: Path) -> Path:
    """Where the manifest of a folder, or of a single file, lies."""
    return checkpoint / FILE_NAME if checkpoint.is_dir() else beside(checkpoint)


def beside(file: Path) -> Path:
    """Where the manifest of a single file lies, whether the file is there yet or not."""
    return file.with_name(f"{file.name}.{FILE_NAME}")


def read_manifest(checkpoint: Path) -> Manifest | None:
    """The manifest of a folder or a single file, None where it has none."""
    place = manifest_place(checkpoint)
    if not place.is_file():
        return None
    content = read_json(place)
    if content.pop("format", None) != FORMAT:
        raise CheckpointError(f"{place} is not of the format {FORMAT}: quantize or fetch anew.")
    try:
        files = {_below(path): FileRecord(**record) for path, record in content.pop("files").items()}
        source = {path: FileRecord(**record) for path, record in content.pop("source", {}).items()}
        origin = content.pop("origin", None)
        return Manifest(files=files, source=source, origin=Origin(**origin) if origin else None, **content)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{place} is damaged ({error}): quantize or fetch anew.") from error


def _below(path: str) -> str:
    """The path, which stays in its folder: a manifest may be a stranger's, and files are mended by it."""
    if not is_plain(path):
        raise TypeError(f"{printable(path)} is no path in the folder")
    return path


def write_manifest(checkpoint: Path, manifest: Manifest) -> None:
    """Write the manifest, whole, into the folder or beside the file; equal manifests give equal bytes."""
    text = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1, sort_keys=True)
    place = manifest_place(checkpoint)
    unfinished = place.with_name(f".{place.name}.unfinished")
    unfinished.write_text(text + "\n", encoding="utf-8", newline="\n")
    unfinished.replace(place)


def record(checkpoint: Path, tool: str) -> Manifest:
    """Write the manifest of a folder or a single file that came without one: what it holds today.

    RequestError if it has one, CheckpointError if no other system could have its files' names, OutputError if
    it can't be written.
    """
    place = manifest_place(checkpoint)
    if place.exists():
        raise RequestError(f"{place} is there already, and is never overwritten: remove it to record anew.")
    files = hash_files(checkpoint) if checkpoint.is_dir() else {checkpoint.name: hash_file(checkpoint)}
    if odd := [name for name in files if not is_plain(name)]:
        raise CheckpointError(f"{printable(odd[0])} is no name that every system can have: rename the file.")
    manifest = Manifest(files, tool=tool)
    try:
        write_manifest(checkpoint, manifest)
    except OSError as error:
        raise OutputError(
            f"{place} can't be written ({error.strerror}): make its folder writable."
        ) from error
    return manifest


def hash_file(path: Path, count: Progress | None = None) -> FileRecord:
    """One file's size and SHA-256; `count` hears of the bytes, and can end it."""
    sha256, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_BLOCK):
            sha256.update(chunk)
            size += len(chunk)
            if count is not None:
                count.add(len(chunk))
    return FileRecord(size, sha256.hexdigest())
