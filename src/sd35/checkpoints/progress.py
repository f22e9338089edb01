"""One count for all files at once, and the one way to stop them together."""

import threading
from collections.abc import Callable

Show = Callable[[int, int], None]


class Stopped(Exception):
    """Another file failed, or the person interrupted: give up quietly."""


class Progress:
    """Bytes of all files together; every thread adds to it, and learns here that it should stop."""

    def __init__(self, total: int, show: Show | None = None) -> None:
        self.total = total
        self.done = 0
        self._show = show
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def add(self, count: int) -> None:
        """`count` bytes more (fewer, if bytes were thrown away); raises Stopped when it is over."""
        with self._lock:
            self.done += count
            if self._show is not None:
                self._show(self.done, self.total)
        if self._stopping.is_set():
            raise Stopped

    def wait(self, seconds: float) -> None:
        """Sleep, unless it is over."""
        if self._stopping.wait(seconds):
            raise Stopped

    def stop(self) -> None:
        """Everyone gives up at the next byte."""
        self._stopping.set()
