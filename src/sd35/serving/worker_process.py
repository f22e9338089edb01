"""A worker as the server sees it: a process, a pipe to it, and an inbox that its news arrive in.

The process is started afresh, not forked: a fork would copy threads' locks in whatever state they are. A
thread reads the pipe and hands each message to the event loop; the last one is always `Died`.
"""

import asyncio
import platform
import signal
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe

from sd35.serving.messages import (
    Batch,
    Beat,
    Cancel,
    Died,
    FromWorker,
    Holding,
    Holdings,
    Load,
    Unload,
)
from sd35.serving.settings import Terms


class WorkerProcess:
    """One process that draws; it lives until it is killed or dies."""

    def __init__(self, command: Sequence[str], terms: Terms) -> None:
        self._loop = asyncio.get_running_loop()
        self.inbox: asyncio.Queue[FromWorker] = asyncio.Queue()
        self.holdings: tuple[Holding, ...] = ()
        self._pipe, theirs = Pipe()
        # The pipe is handed down by its number; everything else of ours is closed in the child.
        self._process = subprocess.Popen(
            [*command, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
        )
        theirs.close()
        with suppress(OSError):
            self._pipe.send(terms)
        self.name = f"{platform.node()}:{self._process.pid}"
        self._reader = threading.Thread(target=self._read, name=f"worker {self.pid}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def send(self, message: Batch | Cancel | Load | Unload) -> None:
        """Tell the worker; if it is gone, `Died` is on its way to the inbox already."""
        with suppress(OSError):
            self._pipe.send(message)

    def kill(self) -> None:
        """End the process at once, whatever it is doing (a stopped one too)."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def gone(self) -> None:
        """Wait until the process has ended and its pipe is closed."""
        await asyncio.to_thread(self._reader.join)

    def _read(self) -> None:
        last_words: Died | None = None
        while True:
            try:
                message = self._pipe.recv()
            except (EOFError, OSError):
                break
            if isinstance(message, Died):
                last_words = message
            else:
                self._deliver(message)
        code = self._process.wait()
        self._pipe.close()
        self._deliver(last_words or Died(_ending(code), "killed" if code < 0 else "crashed"))

    def _deliver(self, message: FromWorker) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._take_in, message)

    def _take_in(self, message: FromWorker) -> None:
        """News of what is held come at any time; the rest is for whoever waits for the work in hand."""
        if isinstance(message, Holdings):
            self.holdings = message.models
        elif not isinstance(message, Beat) or self.inbox.empty():
            self.inbox.put_nowait(message)


def _ending(code: int) -> str:
    if code >= 0:
        return f"it ended with exit code {code}"
    name = signal.Signals(-code).name
    hint = " (perhaps by the kernel, for want of memory)" if name == "SIGKILL" else ""
    return f"it was ended by {name}{hint}"
