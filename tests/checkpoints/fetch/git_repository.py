"""Real git repositories with Git LFS in them, and programs that serve them."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SERVERS = Path(__file__).parents[3] / "build" / "servers"
_AUTHOR = {"GIT_AUTHOR_NAME": "Test", "GIT_AUTHOR_EMAIL": "test@localhost", "GIT_COMMITTER_NAME": "Test",
           "GIT_COMMITTER_EMAIL": "test@localhost", "GIT_CONFIG_GLOBAL": "/dev/null"}  # fmt: skip


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder."""
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(
        command, env={**os.environ, **_AUTHOR}, check=True, capture_output=True, text=True
    ).stdout.strip()


def repository_of(files: dict[str, bytes], folder: Path, lfs_url: str | None = None) -> str:
    """Make a repository on the branch main, safetensors in LFS; the commit."""
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "lfs", "install", "--local")
    git(folder, "lfs", "track", "*.safetensors")
    if lfs_url:
        (folder / ".lfsconfig").write_text(f"[lfs]\n\turl = {lfs_url}\n")
    for path, content in files.items():
        if path == ".gitattributes":
            continue
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=weights")
    return git(folder, "rev-parse", "HEAD")


def push(folder: Path, bare: Path) -> str:
    """Push to a new bare repository; its address."""
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(bare)], check=True)
    git(folder, "remote", "add", "origin", f"file://{bare}")
    git(folder, "push", "--quiet", "origin", "main")
    return f"file://{bare}"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def serving(command: list[str], port: int, folder: Path, **environment: str) -> Iterator[str]:
    """Run a server until its port answers; its address. What it says goes to `server.log`."""
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            _wait_for(port, process, folder)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=20)


def _wait_for(port: int, process: "subprocess.Popen[bytes]", folder: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError(f"no server on port {port}: {(folder / 'server.log').read_text()}")
