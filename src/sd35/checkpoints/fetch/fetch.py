"""Bring a checkpoint into a folder: pin, list, choose, look for room and access, bring, prove, write down.

A folder stays what it is: once it is complete at a commit, another fetch says so without asking anyone, and
a fetch of something else is refused rather than mixed in. A fetch that was cut off goes on with the commit
that it began with, even if the branch has moved since. A folder of another downloader is taken over
(`adopt.py`).
"""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, Self

from sd35.checkpoints.fetch import environment
from sd35.checkpoints.fetch.adopt import is_download, refuse_overwriting, strangers
from sd35.checkpoints.fetch.git import GitRemote
from sd35.checkpoints.fetch.hub import Hub
from sd35.checkpoints.fetch.listing import INDEX, RemoteFile, select
from sd35.checkpoints.fetch.local import LocalFolder
from sd35.checkpoints.fetch.part import Part
from sd35.checkpoints.fetch.sources import Source, recorded, understand
from sd35.checkpoints.fetch.workshop import Workshop
from sd35.checkpoints.files import is_plain
from sd35.checkpoints.manifest import FileRecord, Manifest, Origin, read_manifest
from sd35.checkpoints.progress import Progress, Show
from sd35.checkpoints.store import UNFINISHED, home
from sd35.errors import CheckpointError, NetworkError, OutputError, RequestError

JOBS = 4
MAX_JOBS = 32


class Remote(Protocol):
    """Where files come from."""

    @property
    def place(self) -> str:
        """How it is called in sentences."""

    def pin(self, revision: str | None) -> str | None:
        """Settle on one commit, which all later calls are about."""

    def files(self) -> list[RemoteFile]:
        """What there is."""

    def check(self, files: list[RemoteFile]) -> None:
        """Raise whatever can be known to stand in the way of these files."""

    def prepare(self, files: list[RemoteFile], progress: Progress) -> None:
        """What is done for all files together, before each is brought."""

    def bring(self, part: Part, progress: Progress) -> None:
        """Bring one file to its end; it is right, or an error is raised."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@dataclass(frozen=True)
class FetchReport:
    """Where the folder is, what it holds, and how many of its files had to be brought (bytes too).

    `strangers` are files of the folder that are no part of the checkpoint.
    """

    path: Path
    manifest: Manifest
    brought: int
    brought_bytes: int
    strangers: list[str] = field(default_factory=list)


def fetch(
    source: str,
    destination: Path | None = None,
    *,
    revision: str | None = None,
    via: str | None = None,
    endpoint: str | None = None,
    files: tuple[str, ...] = (),
    may_replace: bool = False,
    jobs: int = JOBS,
    show: Show | None = None,
) -> FetchReport:
    """Fetch `source` (see sources.py) into `destination`, by default a folder of its name under SD35_HOME.

    `revision` is a branch, tag or commit; `files` are single files instead of the diffusers folder. Files
    that somebody else has put there are kept where they are right; where they are not, `may_replace` says
    that they may go. `show` is called with the bytes done and the bytes in all. NetworkError or
    MissingError if the remote can't or won't give it, CheckpointError if it gives something else than it
    lists, OutputError for the disk.
    """
    if not 1 <= jobs <= MAX_JOBS:
        raise RequestError(f"{jobs} files at once: give 1 to {MAX_JOBS}.")
    wanted = understand(source, via, endpoint, files)
    if wanted.kind == "folder" and revision is not None:
        raise RequestError("A folder has no revisions: leave --revision out.")
    folder = Path(os.path.expanduser(destination or home() / "checkpoints" / wanted.name))
    known = _known(folder, wanted)
    if known is None:
        return _begin(folder, wanted, revision, may_replace, jobs, show)
    _check_same(folder, known, wanted, revision)
    damaged = [path for path, record in known.files.items() if not _has_size(folder / path, record.size)]
    if damaged:
        return _again(folder, known, wanted, damaged, jobs, show)
    if (folder / UNFINISHED).is_dir():  # killed in its very last moment
        with Workshop(folder):
            pass
    return FetchReport(folder, known, 0, 0)


def refetch(folder: Path, paths: Iterable[str], *, jobs: int = JOBS, show: Show | None = None) -> FetchReport:
    """Bring just these files of a fetched folder again, from the origin and commit in its manifest.

    What comes must have the SHA-256 that the manifest has. RequestError for a path that is not in it,
    CheckpointError if the folder has no origin or the origin has something else now.
    """
    manifest = read_manifest(folder)
    if manifest is None or manifest.origin is None:
        raise CheckpointError(
            f"{folder} does not say where it was fetched from (no origin in sd35.json): fetch it anew with "
            "sd35 fetch."
        )
    wanted = sorted(set(paths))
    for path in wanted:
        if path not in manifest.files:
            raise RequestError(f"{path} is no file of {folder}.")
    return _again(folder, manifest, recorded(manifest.origin), wanted, jobs, show)


def _known(folder: Path, wanted: Source) -> Manifest | None:
    """The manifest of a folder that is complete; OutputError for a place that holds something else."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise OutputError(f"{folder} is a file: choose a folder with -o.")
    manifest = read_manifest(folder)
    if manifest is None and not is_download(folder, wanted.files):
        raise OutputError(
            f"{folder} holds files and nothing that tells of a download (model_index.json, .git, "
            ".cache/huggingface), and a checkpoint is not mixed with other things: choose another place with "
            "-o."
        )
    return manifest


def _begin(
    folder: Path, wanted: Source, revision: str | None, may_replace: bool, jobs: int, show: Show | None
) -> FetchReport:
    """Fetch into a new folder or that of another downloader, or go on in an unfinished one."""
    _check_online(wanted, folder)
    with Workshop(folder) as workshop, _remote(wanted, workshop) as remote:
        begun = workshop.begun()
        if begun is not None and not _is_from(begun, wanted):
            raise OutputError(
                f"{folder} holds an unfinished fetch of {begun.place}: remove it, or choose another place "
                "with -o."
            )
        commit = remote.pin(revision or (begun.commit if begun else None))
        offered = remote.files()
        files = select(offered, wanted.files, remote.place)
        origin = Origin(wanted.kind, wanted.place, commit, wanted.endpoint)
        manifest = Manifest(_extras(workshop, offered, files), wanted.variant, origin=origin)
        may_replace |= begun is not None and begun.commit == commit  # it was asked when that began
        return _bring(remote, workshop, manifest, files, jobs, show, may_replace=may_replace)


def _extras(workshop: Workshop, offered: list[RemoteFile], files: list[RemoteFile]) -> dict[str, FileRecord]:
    """Files of the remote that no checkpoint needs, and that another downloader has brought all the same."""
    names = {file for file in set(offered) - set(files) if is_plain(file.path)}
    there = [file for file in names if (workshop.folder / file.path).is_file()]
    hashes = {file: workshop.whole(file, Progress(file.size, None)) for file in there}
    return {file.path: FileRecord(file.size, sha256) for file, sha256 in hashes.items() if sha256}


def _again(
    folder: Path, manifest: Manifest, source: Source, paths: list[str], jobs: int, show: Show | None
) -> FetchReport:
    """Bring some files of a complete folder again: exactly those that its manifest knows."""
    _check_online(source, folder)
    with Workshop(folder) as workshop, _remote(source, workshop) as remote:
        remote.pin(manifest.origin.commit if manifest.origin else None)
        offered = {file.path: file for file in remote.files() if is_plain(file.path)}
        files = [_same(offered.get(path), path, manifest.files[path], remote.place) for path in paths]
        return _bring(remote, workshop, manifest, files, jobs, show)


def _check_same(folder: Path, known: Manifest, wanted: Source, revision: str | None) -> None:
    """OutputError unless the complete folder is what is asked for."""
    if known.origin is None or not _is_from(known.origin, wanted):
        what = known.origin.place if known.origin else "a checkpoint that was not fetched"
        raise OutputError(f"{folder} holds {what}: choose another place with -o.")
    is_folder = INDEX in known.files
    if is_folder == bool(wanted.files) or not set(wanted.files) <= set(known.files):
        what = "the diffusers folder" if is_folder else "single files"
        raise OutputError(f"{folder} holds {what} of {known.origin.place}: choose another place with -o.")
    if revision is None or revision == known.origin.commit:
        return
    _check_online(wanted, folder)
    with Workshop(folder) as workshop, _remote(wanted, workshop) as remote:
        commit = remote.pin(revision)
    if commit != known.origin.commit:
        raise OutputError(
            f"{folder} holds {known.origin.place} at commit {known.origin.commit}, and {revision} is "
            f"{commit}: remove the folder, or choose another place with -o."
        )


def _bring(
    remote: Remote,
    workshop: Workshop,
    manifest: Manifest,
    files: list[RemoteFile],
    jobs: int,
    show: Show | None,
    *,
    may_replace: bool = True,
) -> FetchReport:
    """Bring what is not there yet, and finish the folder."""
    progress = Progress(sum(file.size for file in files), show)
    present = {file: workshop.whole(file, progress) for file in files}
    missing = [file for file, sha256 in present.items() if sha256 is None]
    if not may_replace:
        refuse_overwriting(workshop.folder, missing, remote.place)
    if missing:
        workshop.check_room(missing)
        remote.check(missing)
    if manifest.origin is not None:
        workshop.begin(manifest.origin)
    remote.prepare(missing, progress)
    records = {file.path: FileRecord(file.size, sha256) for file, sha256 in present.items() if sha256}
    # model_index.json makes the folder a checkpoint, so it comes when all else is there.
    for group in ([f for f in missing if f.path != INDEX], [f for f in missing if f.path == INDEX]):
        records |= _side_by_side(remote, workshop, group, jobs, progress)
    manifest = replace(manifest, files=dict(sorted({**manifest.files, **records}.items())))
    workshop.finish(manifest)
    return FetchReport(
        workshop.folder,
        manifest,
        brought=len(missing),
        brought_bytes=sum(file.size for file in missing),
        strangers=strangers(workshop.folder, manifest.files),
    )


def _side_by_side(
    remote: Remote, workshop: Workshop, files: list[RemoteFile], jobs: int, progress: Progress
) -> dict[str, FileRecord]:
    """Several files at once, the largest first; the first failure stops them all."""

    def _bring_one(file: RemoteFile) -> tuple[str, FileRecord]:
        with workshop.part(file, progress) as part:
            remote.bring(part, progress)
            part.settle(workshop.folder / file.path)
            return file.path, FileRecord(part.size, part.checksum.sha256)

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        try:
            futures = [pool.submit(_bring_one, file) for file in sorted(files, key=lambda file: -file.size)]
            return dict(future.result() for future in as_completed(futures))
        except BaseException:
            progress.stop()
            pool.shutdown(cancel_futures=True)
            raise


def _remote(source: Source, workshop: Workshop) -> Remote:
    if source.kind == "folder":
        return LocalFolder(Path(source.place))
    if source.kind == "git":
        return GitRemote(source.url or source.place, workshop.corner / "git")
    endpoint = source.endpoint or environment.endpoint()
    return Hub(source.place, endpoint, environment.token() if source.has_token else None)


def _is_from(origin: Origin, wanted: Source) -> bool:
    """A mirror of a repository is as good as the repository: content is compared by hash."""
    return (origin.kind, origin.place) == (wanted.kind, wanted.place)


def _same(file: RemoteFile | None, path: str, record: FileRecord, place: str) -> RemoteFile:
    """The remote's file with the manifest's hash; CheckpointError if it can't be the same."""
    known = file.sha256 if file else None
    if file is None or file.size != record.size or (known is not None and known != record.sha256):
        raise CheckpointError(
            f"{place} no longer has the {path} that sd35.json describes: fetch the checkpoint anew."
        )
    return replace(file, sha256=record.sha256)


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _check_online(source: Source, folder: Path) -> None:
    if environment.is_offline() and source.needs_network:
        raise NetworkError(
            f"HF_HUB_OFFLINE is set, and {folder} does not hold all of {source.place}: unset it, or "
            "fetch from a folder on this machine."
        )
