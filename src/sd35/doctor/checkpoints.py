"""The checkpoints of this machine: are they whole, and do their parts belong to SD3.5 and to each other?

One that is named is read to its last byte (`verify`). The others are held to their headers, configs and
tokenizers alone, which takes milliseconds; flipped bytes show only in the first.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sd35.checkpoints.audit import FolderAudit
from sd35.checkpoints.findings import Finding as FileFinding
from sd35.checkpoints.findings import shown_path
from sd35.checkpoints.manifest import Manifest, read_manifest
from sd35.checkpoints.store import REPOSITORIES, UNFINISHED, derived, home, locate
from sd35.checkpoints.verify import verify
from sd35.doctor.finding import Finding, well, wrong
from sd35.errors import CheckpointError, MissingError

Progress = Callable[[int, int], None]
_DERIVED = "it is made again when it is next needed"


@dataclass(frozen=True)
class Place:
    """A checkpoint: how it is called on a command line, where it is, and whether sd35 made it by itself."""

    name: str
    path: Path
    is_derived: bool = False


def places_here() -> Iterator[Place]:
    """The demo model, what was fetched, and the FP8 folders that sd35 made of them."""
    yield Place("demo", locate("demo"))
    for path in sorted((home() / "checkpoints").glob("*")):
        if path.is_dir() and not _is_unfinished(path):
            yield Place(path.name.replace("--", "/"), _whole(path))
    yield from (Place(str(path), path, is_derived=True) for path in _folders(home() / "derived"))


def places_named(name: str) -> list[Place]:
    """The checkpoint of that name or path, and FP8 folders made of it; MissingError where there is none."""
    path = locate(name)
    found = [Place(name, path)]
    manifest = _manifest(path) if path.is_dir() else None
    if manifest is not None:
        stem = derived(manifest.identity, "").name
        made = (one for one in _folders(home() / "derived") if one.name.startswith(stem))
        found += [Place(str(one), one, is_derived=True) for one in made]
    return found


def check_unfinished() -> Iterator[Finding]:
    """Fetches that were cut off and never went on."""
    for path in sorted((home() / "checkpoints").glob("*")):
        if _is_unfinished(path):
            name = path.name.replace("--", "/")
            what = f"the fetch into {shown_path(path)} is not finished"
            yield wrong(name, what, f"sd35 fetch {name}", "checkpoint missing or refused", "checkpoint")


def missing(name: str, error: MissingError) -> Finding:
    """A named checkpoint that is not here."""
    fix = f"sd35 fetch {name}" if name in REPOSITORIES else "give a path that exists, or a name"
    return wrong(name, str(error), fix, "checkpoint missing or refused", "checkpoint")


def refused(place: Place, error: CheckpointError) -> Finding:
    """A path that is not even read."""
    return wrong(
        place.name,
        str(error),
        "give the checkpoint's own path",
        "checkpoint missing or refused",
        "checkpoint",
    )


def check_structure(place: Place) -> Iterator[Finding]:
    """Headers, configs and tokenizers of a folder; of a single file nothing before it is named."""
    if place.path.is_file():
        yield well(place.name, "a single file; name it to have it read", about="checkpoint")
        return
    found = FolderAudit(place.path).run()
    yield from _told(place, found)
    if not found:
        what = "its parts, scales and tokenizers belong together; name it to have every byte read"
        yield well(place.name, what, about="checkpoint")


def check_integrity(place: Place, progress: Progress | None = None) -> Iterator[Finding]:
    """Every byte, as `sd35 verify` reads it."""
    report = verify(place.path, progress)
    yield from _told(place, report.findings)
    if report.sound:
        against = ", ".join(report.records) or "no record, so only what breaks a rule would be found"
        what = f"sound: {report.files} files, {report.bytes / 1e9:.2f} GB; compared with {against}"
        offer = "" if report.records else f"sd35 verify {place.name} --record"
        yield well(place.name, what, offer, "checkpoint")


def trouble_of(file: str) -> str:
    """What a person sees who draws with this file damaged."""
    part = file.partition("/")[0]
    if part.startswith(("tokenizer", "text_encoder")):
        return "prompt ignored"
    if part in ("transformer", "vae", "scheduler") or file.endswith(".safetensors"):
        return "blurred or off-colour"
    return "checkpoint missing or refused"


def _told(place: Place, found: list[FileFinding]) -> Iterator[Finding]:
    for one in found:
        fix = _fix(place, one)
        yield wrong(place.name, f"{one.file} {one.reason}", fix, trouble_of(one.file), "checkpoint")


def _fix(place: Place, finding: FileFinding) -> str:
    if place.is_derived:
        return f"rm -r {shown_path(place.path)}  # {_DERIVED}"
    folder = place.path if place.path.is_dir() else place.path.parent
    manifest = _manifest(folder)
    if manifest is not None and manifest.origin is not None and finding.file in manifest.files:
        return f"sd35 verify {place.name} --fix"
    return finding.remedy


def _folders(root: Path) -> list[Path]:
    return [path for path in sorted(root.glob("*")) if (path / "model_index.json").is_file()]


def _is_unfinished(path: Path) -> bool:
    return (path / UNFINISHED).is_dir() and _manifest(path) is None


def _manifest(folder: Path) -> Manifest | None:
    """None as well where it can't be read: `verify` says so."""
    try:
        return read_manifest(folder)
    except CheckpointError:
        return None


def _whole(folder: Path) -> Path:
    """A fetched folder, or the one file in it."""
    try:
        return locate(folder.name)
    except CheckpointError:
        return folder
