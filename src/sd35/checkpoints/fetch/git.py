"""A Git LFS remote, through the real git and git-lfs.

`git fetch` brings one commit into a bare clone: small files, and pointers in place of the large ones.
`git lfs fetch` brings the large files into the clone's store, where each lies under its SHA-256; it resumes
on its own. There is never a work tree: a file moves from the store to its place, so the disk holds it once.
`git lfs fsck` looks at the store alone and never at work-tree files; here every byte is hashed on its way,
against the pointer in the commit.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from sd35.checkpoints.fetch.listing import POINTER_SIZE, RemoteFile, pointer
from sd35.checkpoints.fetch.part import Part
from sd35.checkpoints.fetch.sources import is_commit, without_credentials
from sd35.checkpoints.progress import Progress
from sd35.errors import CheckpointError, LibraryError, MissingError, NetworkError

_POLL = 0.2  # seconds between two looks at how far git-lfs has come
# Never ask on the terminal, never run what a repository or an address brings along.
_ENVIRONMENT = {"GIT_TERMINAL_PROMPT": "0", "GIT_LFS_SKIP_SMUDGE": "1", "LC_ALL": "C"}
_SETTINGS = ("-c", "core.hooksPath=/dev/null", "-c", "protocol.ext.allow=never")


class GitRemote:
    """A remote and the bare clone that it is fetched through, in `clone`."""

    def __init__(self, url: str, clone: Path) -> None:
        for program in ("git", "git-lfs"):
            if shutil.which(program) is None:
                raise LibraryError(
                    f"{program} is not installed, and --via git runs it: apt-get install {program}"
                )
        self._url = url
        self._clone = clone
        self._commit = ""
        self._blobs: dict[str, str] = {}  # path -> git's SHA-1 of what the commit holds there

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def place(self) -> str:
        """The address, without credentials."""
        return without_credentials(self._url)

    def pin(self, revision: str | None) -> str:
        """The commit behind a branch, a tag or a commit (HEAD by default)."""
        self._commit = self._resolve(revision or "HEAD")
        self._git("init", "--quiet", "--bare", str(self._clone), inside=False)
        self._git("config", "remote.origin.url", self._url)
        self._git("fetch", "--quiet", "--depth=1", "--no-tags", "origin", self._commit)
        # git-lfs reads the repository's .lfsconfig from HEAD.
        self._git("update-ref", "--no-deref", "HEAD", self._commit)
        return self._commit

    def files(self) -> list[RemoteFile]:
        """Every file of the commit, large ones by what their pointers say."""
        return list(self._walk())

    def check(self, files: list[RemoteFile]) -> None:
        """Nothing: who could fetch the commit has been let in."""

    def prepare(self, files: list[RemoteFile], progress: Progress) -> None:
        """Let git-lfs bring the large files into the clone's store."""
        large = [file for file in files if file.blob is None and not self._object(file).is_file()]
        if not large:
            return
        paths = ",".join(file.path for file in large)
        log = self._clone / "fetch.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._command("lfs", "fetch", f"--include={paths}", "--exclude=", "origin", self._commit),
                env={**os.environ, **_ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                self._watch(process, progress)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
        if process.returncode != 0:
            raise self._failed("git lfs fetch", log.read_text(encoding="utf-8", errors="replace"))

    def bring(self, part: Part, progress: Progress) -> None:
        """Move one file out of the clone, hashing it; CheckpointError if it is not what the commit says."""
        if part.file.blob is not None:
            part.discard()
            part.write(self._git("cat-file", "blob", self._blobs[part.file.path]))
        elif not self._object(part.file).is_file():
            raise MissingError(f"{self.place} has the pointer of {part.file.path} and not the file itself.")
        else:
            part.adopt(self._object(part.file))
        if not part.is_right:
            part.discard()
            raise CheckpointError(
                f"{self.place} sent {part.file.path} with the wrong content: nothing was kept."
            )

    def _resolve(self, revision: str) -> str:
        if is_commit(revision):
            return revision
        listing = self._git("ls-remote", "--", self._url, inside=False).decode()
        commits = {
            name: commit for commit, _, name in (line.partition("\t") for line in listing.splitlines())
        }
        # An annotated tag is an object of its own; ^{} is the commit that it tags.
        for name in (
            f"refs/heads/{revision}",
            f"refs/tags/{revision}^{{}}",
            f"refs/tags/{revision}",
            revision,
        ):
            if name in commits:
                return commits[name]
        raise MissingError(
            f"{self.place} has no revision {revision}: name a branch, a tag or a whole commit id."
        )

    def _walk(self) -> Iterator[RemoteFile]:
        listing = self._git("ls-tree", "-r", "-z", "--long", self._commit).decode(errors="replace")
        for entry in filter(None, listing.split("\0")):
            facts, _, path = entry.partition("\t")
            mode, kind, blob, size = facts.split()
            if kind != "blob" or mode == "120000":  # submodules and links are not fetched
                continue
            self._blobs[path] = blob
            small = RemoteFile(path, int(size), blob=blob)
            content = self._git("cat-file", "blob", blob) if small.size < POINTER_SIZE else b""
            yield pointer(path, content) or small

    def _object(self, file: RemoteFile) -> Path:
        name = file.sha256 or ""
        return self._clone / "lfs" / "objects" / name[:2] / name[2:4] / name

    def _watch(self, process: "subprocess.Popen[bytes]", progress: Progress) -> None:
        """Count what has come until git-lfs ends."""
        counted = 0
        while process.poll() is None:
            progress.wait(_POLL)
            held = min(self._held(), progress.total)
            progress.add(held - counted)
            counted = held

    def _held(self) -> int:
        sizes = 0
        for path in (self._clone / "lfs").rglob("*"):
            try:
                sizes += path.stat().st_size if path.is_file() else 0
            except FileNotFoundError:  # git-lfs moved it between the two looks
                continue
        return sizes

    def _command(self, *arguments: str, inside: bool = True) -> list[str]:
        where = ("-C", str(self._clone)) if inside else ()
        return ["git", *_SETTINGS, *where, *arguments]

    def _git(self, *arguments: str, inside: bool = True) -> bytes:
        run = subprocess.run(
            self._command(*arguments, inside=inside),
            env={**os.environ, **_ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if run.returncode != 0:
            raise self._failed(f"git {arguments[0]}", run.stderr.decode(errors="replace"))
        return run.stdout

    def _failed(self, what: str, output: str) -> NetworkError:
        lines = [line.strip() for line in output.replace(self._url, self.place).splitlines() if line.strip()]
        told = [line for line in lines if line.startswith(("fatal:", "error:", "remote:"))] or lines[-1:]
        reason = "; ".join(told[:2]) or "it gave no reason"
        return NetworkError(
            f"{what} from {self.place} failed ({reason}): check the address, your access to it and the "
            "network."
        )
