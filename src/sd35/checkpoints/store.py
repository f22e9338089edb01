"""Where checkpoints live: the bundled one, those under SD35_HOME, and folders that people name by path.

This file and `fetch/environment.py` are the only readers of the environment. `SD35_HOME` (default: `sd35` in
the user's cache folder) holds what sd35 makes for itself, such as the FP8 folder of the demo model, and below
`checkpoints` what `sd35 fetch` brought.
"""

import hashlib
import logging
import os
from importlib.resources import files
from pathlib import Path

from sd35.checkpoints.files import is_there
from sd35.checkpoints.manifest import Manifest, hash_file, hash_files, read_manifest
from sd35.errors import MissingError
from sd35.variants import VARIANTS

log = logging.getLogger(__name__)

# The names that people may use, and the hub repositories behind them.
REPOSITORIES = {
    **{variant.name: variant.repository for variant in VARIANTS.values() if variant.repository},
    "large-fp8": "Comfy-Org/stable-diffusion-3.5-fp8",
}
UNFINISHED = ".fetch"  # a folder that has this one inside, and no manifest, is not completely fetched


def home() -> Path:
    """`SD35_HOME`, else `$XDG_CACHE_HOME/sd35`, else `~/.cache/sd35`."""
    if chosen := os.environ.get("SD35_HOME"):
        return Path(os.path.expanduser(chosen))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sd35"


def locate(checkpoint: str | Path) -> Path:
    """The folder or file that is meant by a name (`demo`) or a path; MissingError where there is none."""
    if str(checkpoint) == "demo":
        return Path(str(files("sd35"))) / "demo" / "checkpoint"
    path = Path(os.path.expanduser(checkpoint))  # `~nobody` stays what it is, as in a shell
    if is_there(path):
        return path
    if str(checkpoint) in REPOSITORIES:
        return _named(str(checkpoint))
    fetched = home() / "checkpoints" / str(checkpoint).replace("/", "--")
    if is_there(fetched) and fetched.is_dir():
        return _finished(fetched, str(checkpoint))
    raise MissingError(
        f"There is no checkpoint {str(checkpoint)!r}: give the path of a folder or a single file, or one of "
        f"the names demo, {', '.join(REPOSITORIES)}."
    )


def _named(name: str) -> Path:
    path = home() / "checkpoints" / name
    if is_there(path) and path.is_dir():
        return _finished(path, name)
    raise MissingError(
        f"The checkpoint {name!r} is not on this machine: run `sd35 fetch {name}` (it is "
        f"{REPOSITORIES[name]} on the hub), or give the path of a folder."
    )


def _finished(path: Path, name: str) -> Path:
    """A fetched checkpoint: its folder, or the one file that was fetched of a repository of single files."""
    if (path / UNFINISHED).is_dir() and read_manifest(path) is None:
        raise MissingError(
            f"The fetch of {name} into {path} is not finished: run `sd35 fetch {name}` to go on."
        )
    single = list(path.glob("*.safetensors"))
    return single[0] if len(single) == 1 and not (path / "model_index.json").exists() else path


def identity(*places: Path) -> str:
    """The identity of a folder: from its manifest, else by reading it all, once, and remembering the answer.

    That of a file is its SHA-256, and that of several places is made of theirs. What is remembered holds as
    long as no file's path, size or modification time changes.
    """
    if len(places) > 1:
        return hashlib.sha256("".join(map(identity, places)).encode()).hexdigest()
    place = places[0]
    manifest = read_manifest(place) if place.is_dir() else None
    if manifest is not None:
        return manifest.identity
    note = home() / "identities" / stamp(place)
    if os.path.isfile(note):  # unlike Path's, this is no error where the home can't be looked into
        return note.read_text(encoding="utf-8").strip()
    computed = hash_file(place).sha256 if place.is_file() else Manifest(hash_files(place)).identity
    _remember(note, computed)
    return computed


def _remember(note: Path, identity: str) -> None:
    """Write the note whole, for others may read it at this moment; a home that takes none costs only time."""
    unfinished = note.with_name(f"{note.name}.{os.getpid()}")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(identity + "\n", encoding="utf-8", newline="\n")
        unfinished.replace(note)
    except OSError as error:
        log.info("%s can't be written (%s), so the next run reads all weights again", note, error.strerror)


def file_identity(checkpoint: Path, file: Path) -> str:
    """The SHA-256 of one of a checkpoint's files, from the folder's manifest where it has one."""
    manifest = read_manifest(checkpoint) if checkpoint.is_dir() else None
    if manifest is not None and file.is_relative_to(checkpoint):
        record = manifest.files.get(file.relative_to(checkpoint).as_posix())
        if record is not None:
            return record.sha256
    return identity(file)


def derived(source_identity: str, recipe: str) -> Path:
    """Where the FP8 folder lives that sd35 makes, once, from a checkpoint and a recipe."""
    return home() / "derived" / f"{source_identity[:16]}-{recipe}"


def stamp(place: Path) -> str:
    """SHA-256 over path, size and time of change of the file, or of all files of the folder."""
    facts = [str(place.resolve())]
    files = [place] if place.is_file() else (path for path in place.rglob("*") if path.is_file())
    for path in sorted(files):
        facts.append(f"{path.relative_to(place)} {path.stat().st_size} {path.stat().st_mtime_ns}")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()
