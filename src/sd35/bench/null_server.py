"""A server to measure: `sd35 serve --engine null`, a process of its own over a folder that goes afterwards.

Its processor time is measured too, because it says what a request costs whatever else the machine does;
latencies on a busy machine say what the neighbours cost.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory

import psutil

from sd35.errors import UnavailableError

WORDS = "sd35 serves on "
COMMITS = 200  # flushes to the disk whose median is told
# Nothing is refused for being too much: that is another measurement.
ROOM = "--max-queued=1000000", "--max-queued-per-key=1000000", "--silence-s=3600"


@dataclass(frozen=True)
class NullServer:
    """A server that was started for this run."""

    url: str
    pid: int
    commit_ms: float  # what its disk takes to keep 4 KiB, at the median

    def cpu_seconds(self) -> tuple[float, float]:
        """User and system time so far: of the server itself, and of its workers."""
        return _cpu_seconds(psutil.Process(self.pid)), sum(map(_cpu_seconds, self.workers()))

    def workers(self) -> list[psutil.Process]:
        """The processes that draw."""
        return psutil.Process(self.pid).children()

    @contextmanager
    def busy_workers(self) -> Iterator[None]:
        """Workers that finish nothing, as with a long picture on the card: they are stopped, and go on."""
        stopped = self.workers()
        for worker in stopped:
            worker.suspend()
        try:
            yield
        finally:
            for worker in stopped:
                worker.resume()


@contextmanager
def null_server(models: str, data_dir: Path | None = None) -> Iterator[NullServer]:
    """The server, until the block ends; over a folder of its own unless it is given one."""
    with TemporaryDirectory(prefix="sd35-bench-serve-", ignore_cleanup_errors=True) as temporary:
        folder = data_dir or Path(temporary)
        command = [sys.executable, "-m", "sd35", "serve", "--engine=null", "--port=0", f"--data-dir={folder}"]
        process = subprocess.Popen(
            [*command, f"--models={models}", *ROOM], stdout=subprocess.PIPE, encoding="utf-8"
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline().strip()
            if not line.startswith(WORDS):
                raise UnavailableError(
                    "`sd35 serve --engine null` did not start: its own words are above; try it by itself."
                )
            yield NullServer(line.removeprefix(WORDS), process.pid, _commit_ms(folder))
        finally:
            # What waits in its queue is of no use to anybody, so it need not drain.
            process.kill()
            process.communicate()


def _commit_ms(folder: Path) -> float:
    flush, times = getattr(os, "fdatasync", os.fsync), []  # macOS has the latter alone
    with NamedTemporaryFile(dir=folder) as file:
        for _ in range(COMMITS):
            file.write(bytes(4096))
            file.flush()
            begin = time.perf_counter()
            flush(file.fileno())
            times.append(time.perf_counter() - begin)
    return 1e3 * sorted(times)[COMMITS // 2]


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
