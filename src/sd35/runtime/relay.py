"""How values in ordinary memory reach a card as fast as the bus allows: through a few page-locked buckets.

T5 is 9 GB. To lock all of it would take that from every other program; not to lock it leaves the copying to
one thread of the driver. So a few buckets are locked, and threads of ours fill them: each takes the bucket
that was sent off longest ago, waits until the card has emptied it, fills it and sends it off. Nobody waits
for anybody else as long as there are more buckets than threads. Copying in host memory goes on without
Python's lock, and where values are mapped from a file, the threads bring its pages in side by side.

A bucketful is a stretch of the room that the values are for, not of one value: what lies side by side there
is one transfer, so small values cost nothing of their own. With a CPU for a card the same threads fill the
same buckets.
"""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from queue import SimpleQueue
from typing import Protocol

import torch
from torch import Tensor

from sd35.runtime.pages import page_locked, whole_pages

BUCKET = 16 << 20  # bytes: a core fills it in 2 ms, beside which 0.1 ms of Python are little
MOST_THREADS = 8  # one core copies 6 to 10 GB/s, the bus 25 to 55
WORD = 256  # bytes: transfers begin at multiples of it, as values in a room do
BUCKETS_PER_THREAD = 2  # one is filled while the card empties the other


class Load(Protocol):
    """Values side by side, as they are to lie in a room of so many bytes."""

    nbytes: int

    def gather(self, start: int, end: int, address: int) -> None:
        """Copy what belongs between two bytes of the room to an address in host memory."""
        ...


class Relay:
    """Buckets for one device, and the threads that fill them: they begin with a load and end with `rest`."""

    def __init__(self, device: torch.device, bucket: int = BUCKET, threads: int | None = None) -> None:
        self._bucket, self._threads = bucket, threads or min(MOST_THREADS, os.cpu_count() or 1)
        count = BUCKETS_PER_THREAD * self._threads
        # Kept for as long as its slices are in use: memory is unlocked when this tensor goes.
        self._memory = (page_locked if device.type == "cuda" else whole_pages)(count * bucket)
        self._empty: SimpleQueue[_Bucket] = SimpleQueue()  # the one sent off longest ago first
        for i in range(count):
            self._empty.put(_Bucket(self._memory[i * bucket : (i + 1) * bucket]))
        self._crew: ThreadPoolExecutor | None = None

    def send(self, load: Load, room: Tensor, stream: torch.cuda.Stream | None) -> list[Future[None]]:
        """Begin to copy a load to the room, on that stream; it is queued there when all of these are done."""
        if self._crew is None:
            self._crew = ThreadPoolExecutor(self._threads, thread_name_prefix="sd35-relay")
        size = self._share(load.nbytes)
        starts = range(0, load.nbytes, size)
        return [self._crew.submit(self._carry, load, start, size, room, stream) for start in starts]

    def rest(self) -> None:
        """End the threads; what has not begun is never copied."""
        if self._crew is not None:
            self._crew.shutdown(cancel_futures=True)
            self._crew = None

    def _share(self, nbytes: int) -> int:
        """How full each bucket is, so that every thread fills as many as the others."""
        rounds = -(-nbytes // (self._bucket * self._threads))
        share = -(-nbytes // (max(rounds, 1) * self._threads))
        return max(-(-share // WORD) * WORD, WORD)

    def _carry(
        self, load: Load, start: int, size: int, room: Tensor, stream: torch.cuda.Stream | None
    ) -> None:
        end = min(start + size, load.nbytes)
        bucket = self._empty.get()
        try:
            bucket.fill(load, start, end)
            bucket.pour_into(room[start:end], stream)
        finally:
            self._empty.put(bucket)


def recall(pieces: list[Future[None]]) -> None:
    """Have nothing of these under way any more: what has not begun stays, for the rest we wait."""
    wait_for([piece for piece in pieces if not piece.cancel()])


class _Bucket:
    """A stretch of page-locked memory, and when the card will have read what is in it."""

    def __init__(self, memory: Tensor) -> None:
        self._memory = memory
        self._emptied: torch.cuda.Event | None = None

    def fill(self, load: Load, start: int, end: int) -> None:
        """With what belongs between two bytes of the load's room, once the bucket is empty."""
        if self._emptied is not None:
            self._emptied.synchronize()
        load.gather(start, end, self._memory.data_ptr())

    def pour_into(self, place: Tensor, stream: torch.cuda.Stream | None) -> None:
        """Queue the copy of what is in it; a CPU has copied when this returns."""
        content = self._memory[: place.nbytes]
        if stream is None:
            place.copy_(content)
            return
        with torch.cuda.stream(stream):
            place.copy_(content, non_blocking=True)
            if self._emptied is None:
                self._emptied = torch.cuda.Event(blocking=True)  # a thread that waits leaves its core
            self._emptied.record(stream)
