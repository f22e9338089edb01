"""What other people and tools wrote down about a checkpoint's files, so that damage can be told from change.

| record | where | what it says |
|---|---|---|
| manifest | `sd35.json`, `<file>.sd35.json` | size and SHA-256 of every file |
| checksum list | `SHA256SUMS` | SHA-256 by name, as sha256sum writes it |
| hub folder | `.cache/huggingface/download/<path>.metadata` | SHA-256 of large files, git's hash of others |
| hub cache | `snapshots/<revision>/<path>` -> `blobs/<etag>` | the same, as the name of the blob |
| git clone | `HEAD` | git's hash; for LFS files the pointer's SHA-256 and size |

`git lfs fsck` looks at git's own store and passes a damaged work tree, so the files of the work tree are what
is compared here. Git is asked for objects only (`ls-tree`, `cat-file`): no hook runs, nothing is fetched.
"""

import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sd35.checkpoints.files import hub_blobs, open_regular
from sd35.checkpoints.findings import Finding, bad_file, finding_of, printable
from sd35.checkpoints.manifest import FILE_NAME, beside, read_manifest
from sd35.checkpoints.sniff import Pointer, read_pointer
from sd35.errors import CheckpointError

CHECKSUMS = "SHA256SUMS"
_LINE = re.compile(r"\\?([0-9a-fA-F]{64}) [ *](.+)")
_LONGEST_LIST = 8 << 20
_GIT_SECONDS = 60
# Objects only: no replacement of objects, no question, no download of what a partial clone lacks.
_GIT = ("git", "--no-replace-objects", "-c", "core.fsmonitor=false")
_GIT_ENVIRONMENT = {"GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}


@dataclass(frozen=True)
class Expected:
    """What one record says of a file: `hash` is a SHA-256, or git's blob hash where it has 40 digits."""

    record: str
    hash: str
    size: int | None = None

    @property
    def is_git_blob(self) -> bool:
        """Whether the hash is git's."""
        return len(self.hash) == 40


@dataclass
class Records:
    """All records of a folder, by path; those in `complete` must be there, `notes` say what went unread."""

    files: dict[str, list[Expected]] = field(default_factory=lambda: defaultdict(list))
    complete: set[str] = field(default_factory=set)
    has_manifest: bool = False
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The kinds of record that say anything."""
        return sorted({expected.record for known in self.files.values() for expected in known})


def read_records(root: Path) -> Records:
    """Everything that is written down about the files below `root`."""
    records = Records()
    for read in (_manifest, _checksums, _hub_folder, _hub_cache, _git):
        _add(read, root, records)
    return records


def read_records_of(file: Path) -> Records:
    """What is written down about a lone file: beside it, in its folder, in the one above it."""
    records = Records()
    file = Path(os.path.abspath(file))  # `..` above `model.safetensors` is no folder's name
    _add(_manifest_beside, file, records)
    for root in (file.parent, file.parent.parent):
        known = read_records(root)
        records.notes += known.notes
        records.files[file.name] += known.files.get(file.relative_to(root).as_posix(), [])
    return records


def _add(read: Callable[[Path, Records], None], place: Path, records: Records) -> None:
    try:
        read(place, records)
    except CheckpointError as error:
        records.findings.append(finding_of(error, read.__name__.strip("_").replace("_", " ")))


def _manifest_beside(file: Path, records: Records) -> None:
    manifest = read_manifest(file)
    if manifest is None:
        return
    place = beside(file)
    if len(manifest.files) != 1:
        raise bad_file(place, f"lists {len(manifest.files)} files, and belongs to one", "convert anew")
    (record,) = manifest.files.values()  # whatever the file was called when it was written
    records.files[file.name].append(Expected(place.name, record.sha256, record.size))


def _manifest(root: Path, records: Records) -> None:
    manifest = read_manifest(root)
    if manifest is None:
        return
    records.has_manifest = True
    for path, record in manifest.files.items():
        records.files[path].append(Expected(FILE_NAME, record.sha256, record.size))
        records.complete.add(path)


def _checksums(root: Path, records: Records) -> None:
    if not (root / CHECKSUMS).is_file():
        return
    with open_regular(root / CHECKSUMS) as file:
        lines = file.read(_LONGEST_LIST).decode("utf-8", "replace").splitlines()
    for line in filter(str.strip, lines):
        found = _LINE.fullmatch(line)
        if found is None:
            reason = f"has the line {printable(line)}, which sha256sum would not write"
            records.findings.append(Finding(CHECKSUMS, reason, "fetch it again"))
            continue
        path = found[2].removeprefix("./")
        records.files[path].append(Expected(CHECKSUMS, found[1].lower()))
        records.complete.add(path)


def _hub_folder(root: Path, records: Records) -> None:
    place = root / ".cache" / "huggingface" / "download"
    for note in sorted(place.rglob("*.metadata")) if place.is_dir() else ():
        with open_regular(note) as file:
            lines = file.read(4096).decode("ascii", "replace").splitlines()
        path = note.relative_to(place).as_posix().removesuffix(".metadata")
        if len(lines) >= 2 and _is_hash(lines[1]):
            records.files[path].append(Expected("hub metadata", lines[1]))


def _hub_cache(root: Path, records: Records) -> None:
    blobs = hub_blobs(root.resolve())
    for path in sorted(root.rglob("*")) if blobs else ():
        if path.is_symlink() and path.readlink().parent.name == "blobs" and _is_hash(path.readlink().name):
            expected = Expected("hub cache", path.readlink().name)
            records.files[path.relative_to(root).as_posix()].append(expected)


def _is_hash(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", text) is not None


def _git(root: Path, records: Records) -> None:
    if not (root / ".git").exists():
        return
    try:
        blobs = dict(_tree(root))
        pointers = _pointers(root, [hash for hash, size in blobs.values() if size < 1024])
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        records.notes.append(
            f"the git clone was not read, so its hashes were not compared ({printable(error)})"
        )
        return
    for path, (blob, size) in blobs.items():
        pointer = pointers.get(blob)
        if pointer is not None:
            records.files[path].append(Expected("git LFS pointer", pointer.sha256, pointer.size))
        else:
            records.files[path].append(Expected("git commit", blob, size))


def _tree(root: Path) -> Iterator[tuple[str, tuple[str, int]]]:
    """The regular files of HEAD: path -> (blob, bytes)."""
    for line in _run_git(root, "ls-tree", "-r", "-z", "-l", "HEAD").split(b"\0"):
        facts, _, path = line.partition(b"\t")
        mode, kind, blob, size = facts.split() if facts else (b"", b"", b"", b"")
        if kind == b"blob" and mode.startswith(b"100") and len(blob) == 40:
            yield path.decode("utf-8", "surrogateescape"), (blob.decode(), int(size))


def _pointers(root: Path, blobs: list[str]) -> dict[str, Pointer]:
    """The LFS pointers among these blobs."""
    answer = _run_git(root, "cat-file", "--batch", text="".join(f"{blob}\n" for blob in blobs).encode())
    found = {}
    at = 0
    while at < len(answer):
        end = answer.index(b"\n", at)
        blob, _, size = answer[at:end].decode().split()
        content = answer[end + 1 : end + 1 + int(size)]
        if pointer := read_pointer(content):
            found[blob] = pointer
        at = end + 1 + int(size) + 1
    return found


def _run_git(root: Path, *arguments: str, text: bytes = b"") -> bytes:
    return subprocess.run(
        [*_GIT, "-C", str(root), *arguments],
        input=text,
        capture_output=True,
        check=True,
        timeout=_GIT_SECONDS,
        env={**os.environ, **_GIT_ENVIRONMENT},
    ).stdout
