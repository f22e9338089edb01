"""How a server stands at this moment, in numbers: what metrics show and alerts judge.

The only file that reads them off the job core, so that the core may change its shape without either.
"""

import time
from dataclasses import dataclass

from sd35.serving.pool import PLACES as PLACES
from sd35.serving.service import JobService
from sd35.serving.spool import SpooledStorage


@dataclass(frozen=True)
class Gauges:
    """One reading."""

    queued: dict[str, int]  # by priority
    longest_wait_s: float  # of a job that still waits
    models: dict[str, str]  # to one of PLACES
    is_ready: bool
    spooled: int  # pictures that wait for the store
    store_trouble: str | None  # why the store of pictures takes none


def read_gauges(service: JobService) -> Gauges:
    """Now."""
    oldest, storage = service.queue.oldest_at(), service.storage
    spool = storage if isinstance(storage, SpooledStorage) else None
    return Gauges(
        queued=service.queue.by_priority(),
        longest_wait_s=0.0 if oldest is None else max(0.0, time.time() - oldest),
        models={name: service.pool.place(name) for name in service.models},
        is_ready=service.is_ready(),
        spooled=0 if spool is None else spool.waiting,
        store_trouble=None if spool is None or not spool.waiting else spool.trouble,
    )
