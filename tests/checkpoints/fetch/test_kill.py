"""kill -9, twenty times: a real process each time, and the right hashes in the end."""

import multiprocessing
import time
from pathlib import Path

import pytest
from loopback_hub import CHUNK, LoopbackHub, contents

from sd35.cli.main import main

KILLS = 20


@pytest.fixture(scope="module")
def processes() -> multiprocessing.context.ForkServerContext:
    """Processes that begin with everything imported, so that twenty of them take seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sd35.checkpoints.fetch.fetch", "sd35.cli.main"])
    return context


def test_twenty_kills(
    processes: multiprocessing.context.ForkServerContext,
    hub: LoopbackHub,
    tmp_path: Path,
    wanted: dict[str, bytes],
) -> None:
    """Each life gets a few chunks; the next goes on, no byte is wrong, few are sent twice."""
    folder = tmp_path / "m"
    command = ["fetch", "maker/model", "-o", str(folder), "--endpoint", hub.endpoint, "--jobs", "3", "--json"]
    total = sum(len(content) for content in wanted.values())
    each = total // CHUNK // (KILLS + 5)
    for life in range(KILLS):
        before, sent = held(folder), hub.sent
        hub.gate.let(each)
        process = processes.Process(target=main, args=(command,))
        process.start()
        assert hub.gate.drained.wait(20)
        if life % 2:  # every other life ends at once, whatever is on its way
            wait_for(folder, before + 0.8 * (hub.sent - sent))
        assert process.is_alive()
        process.kill()
        process.join()
        assert not (folder / "sd35.json").exists()
    assert hub.sent < total
    hub.gate.let(None)
    assert main(command) == 0
    assert contents(folder) == wanted
    assert hub.sent < 1.5 * total


def held(folder: Path) -> int:
    """Bytes that lie in the folder, whole or in part; files come and go while it is counted."""
    return sum(size_of(path) for path in folder.rglob("*"))


def size_of(path: Path) -> int:
    """A file's size; 0 for a folder, and for what is gone by now."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def wait_for(folder: Path, count: float) -> None:
    """Until what was sent has been written, or will not be.

    A request of the life before that the server takes up late gets a part of it, for nobody.
    """
    deadline = time.monotonic() + 2
    while held(folder) < count and time.monotonic() < deadline:
        time.sleep(0.005)
