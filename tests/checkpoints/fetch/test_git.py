"""Git LFS remotes, through the real git and git-lfs: over file://, and with a real LFS server behind."""

import hashlib
import itertools
import multiprocessing
from pathlib import Path

import pytest
from git_repository import SERVERS, free_port, git, push, repository_of, serving
from loopback_hub import SHARD, WEIGHTS, contents

from sd35.checkpoints.fetch import git as git_module
from sd35.checkpoints.fetch.fetch import fetch, refetch
from sd35.checkpoints.manifest import Origin, read_manifest
from sd35.cli.main import main
from sd35.errors import CheckpointError, LibraryError, MissingError, NetworkError, Sd35Error


def test_without_git_lfs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without the programs is told how to get them, and nothing is left."""
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(
        LibraryError, match="git is not installed, and --via git runs it: apt-get install git"
    ):
        fetch("https://host/a.git", tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.fixture
def source(tmp_path: Path, repository: dict[str, bytes]) -> Path:
    """A repository with its large files in LFS."""
    repository_of(repository, tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def remote(tmp_path: Path, source: Path) -> str:
    """The address of a bare repository that it was pushed to."""
    return push(source, tmp_path / "remote.git")


@pytest.mark.server
def test_fetch(remote: str, source: Path, tmp_path: Path, wanted: dict[str, bytes]) -> None:
    """The checkpoint's files at the branch's commit; no clone and no second copy is left."""
    report = fetch(remote, tmp_path / "m")
    assert contents(tmp_path / "m") == wanted
    assert report.manifest.origin == Origin("git", remote, git(source, "rev-parse", "HEAD"))
    assert not (tmp_path / "m" / ".fetch").exists()
    assert fetch(remote, tmp_path / "m").brought == 0


@pytest.mark.server
def test_revisions(remote: str, source: Path, tmp_path: Path, wanted: dict[str, bytes]) -> None:
    """Branches, annotated tags and commits, also ones that the branch has left behind."""
    first = git(source, "rev-parse", "HEAD")
    git(source, "tag", "--annotate", "v1", "--message=first")
    (source / WEIGHTS).write_bytes(b"new weights")
    git(source, "commit", "--all", "--quiet", "--message=second")
    git(source, "push", "--quiet", "origin", "main", "v1")
    for number, revision in enumerate(("v1", first)):
        report = fetch(remote, tmp_path / str(number), revision=revision)
        assert report.manifest.origin is not None
        assert report.manifest.origin.commit == first
        assert contents(tmp_path / str(number)) == wanted
    fetch(remote, tmp_path / "new", revision="main")
    assert (tmp_path / "new" / WEIGHTS).read_bytes() == b"new weights"
    with pytest.raises(MissingError, match="no revision v2"):
        fetch(remote, tmp_path / "none", revision="v2")


@pytest.mark.server
def test_refetch(remote: str, tmp_path: Path, wanted: dict[str, bytes]) -> None:
    """Damaged files come back from the recorded commit, and the remote shares no bytes with us."""
    folder = tmp_path / "m"
    fetch(remote, folder)
    for path in (SHARD, "tokenizer/merges.txt"):
        (folder / path).write_bytes(bytes(len(wanted[path])))
    assert refetch(folder, [SHARD, "tokenizer/merges.txt"]).brought == 2
    assert contents(folder) == wanted


@pytest.mark.server
def test_damaged_store(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that git-lfs took without complaint are hashed again, and refused if they are wrong."""
    prepare = git_module.GitRemote.prepare

    def damage(self: git_module.GitRemote, *arguments: object) -> None:
        prepare(self, *arguments)  # type: ignore[arg-type]
        for path in (self._clone / "lfs" / "objects").rglob("*"):
            if path.is_file():
                path.chmod(0o644)
                path.write_bytes(bytes(path.stat().st_size))

    monkeypatch.setattr(git_module.GitRemote, "prepare", damage)
    with pytest.raises(CheckpointError, match="with the wrong content: nothing was kept"):
        fetch(remote, tmp_path / "m", jobs=1)
    assert not (tmp_path / "m" / WEIGHTS).exists()
    assert read_manifest(tmp_path / "m") is None


@pytest.mark.server
def test_missing_large_file(remote: str, tmp_path: Path, wanted: dict[str, bytes]) -> None:
    """A remote that has the pointer and not the file is told about in git-lfs's words."""
    digest = hashlib.sha256(wanted[WEIGHTS]).hexdigest()
    (tmp_path / "remote.git/lfs/objects" / digest[:2] / digest[2:4] / digest).unlink()
    with pytest.raises(Sd35Error, match=r"git lfs fetch|has the pointer of"):
        fetch(remote, tmp_path / "m")
    assert not (tmp_path / "m" / WEIGHTS).exists()


@pytest.mark.server
def test_no_repository(tmp_path: Path) -> None:
    """git's own reason, in one line, without the password that the address had."""
    address = f"https://me:secret@127.0.0.1:{free_port()}/a.git"
    with pytest.raises(NetworkError, match="git ls-remote from https://127") as caught:
        fetch(address, tmp_path / "m")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.server
def test_a_real_lfs_server(tmp_path: Path, repository: dict[str, bytes], wanted: dict[str, bytes]) -> None:
    """giftless has the large files, `.lfsconfig` says so; killed ten times on its way, right in the end."""
    port, folder = free_port(), tmp_path / "giftless"
    folder.mkdir()
    (folder / "giftless.yaml").write_text(
        "AUTH_PROVIDERS: ['giftless.auth.allow_anon:read_write']\nLEGACY_ENDPOINTS: false\n"
    )
    command = [
        str(SERVERS / "giftless/bin/flask"),
        "--app",
        "giftless.wsgi_entrypoint",
        "run",
        "--port",
        str(port),
    ]
    with serving(command, port, folder, GIFTLESS_CONFIG_FILE=str(folder / "giftless.yaml")) as address:
        commit = repository_of(repository, tmp_path / "source", f"{address}/maker/model.git/info/lfs")
        remote = push(tmp_path / "source", tmp_path / "remote.git")
        assert not (tmp_path / "remote.git/lfs/objects").exists()
        killed_on_its_way(["fetch", remote, "-o", str(tmp_path / "m"), "--json"], tmp_path / "m")
        report = fetch(remote, tmp_path / "m")
    assert contents(tmp_path / "m") == wanted
    assert report.manifest.origin is not None
    assert report.manifest.origin.commit == commit


def killed_on_its_way(command: list[str], folder: Path) -> None:
    """Start the command ten times and kill -9 it, each time a little later."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sd35.checkpoints.fetch.fetch", "sd35.cli.main"])
    for tenths in itertools.islice(itertools.count(1), 10):
        process = context.Process(target=main, args=(command,))
        process.start()
        process.join(timeout=tenths / 10)
        process.kill()
        process.join()
        if (folder / "sd35.json").exists():
            return
