"""How long pictures and records are kept, and the task that ends their time.

`keep_pictures` may name an age, a size or both (`30d`, `200GB`, `30d,200GB`): what is older goes, and then
the oldest until the rest fits. `keep_records` names an age. Without one, everything is kept for ever. Only
jobs that have ended are forgotten, counted from their end. A record must live for a day at least, because
quotas are counted over the last 24 hours. An upload lives as long as a job in the database names it.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from sd35.errors import RequestError, UnavailableError
from sd35.serving.jobs import FINAL
from sd35.serving.settings import ServerSettings
from sd35.serving.storage import Storage, retire
from sd35.serving.store import Store
from sd35.serving.tables import attempts, jobs, webhooks
from sd35.serving.uploads import Uploads

SWEEP_S = 3600.0
DAY_S = 86_400.0
LARGEST_BITE = 1000  # records in one transaction: the writer has acknowledgements to make meanwhile
_SECONDS = {"h": 3600.0, "d": DAY_S, "w": 7 * DAY_S}
_BYTES = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Term:
    """How long something is kept; None: for ever, however much it is."""

    seconds: float | None = None
    size: int | None = None  # bytes

    @classmethod
    def parse(cls, setting: str, text: str) -> "Term":
        """`30d`, `12h`, `200GB` or one of each; RequestError for anything else."""
        found: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-zA-Z]+)", part)
            unit = match[2] if match else ""
            kind = "seconds" if unit in _SECONDS else "size" if unit in _BYTES else ""
            if match is None or not kind or kind in found or not float(match[1]):
                raise RequestError(
                    f"{setting} can't be {text!r}: write an age such as 30d or 12h, a size such as 200GB, "
                    "or one of each with a comma between them."
                )
            found[kind] = float(match[1]) * {**_SECONDS, **_BYTES}[unit]
        return cls(found.get("seconds"), int(found["size"]) if "size" in found else None)


@dataclass(frozen=True)
class Terms:
    """Both terms of a server, checked."""

    pictures: Term
    records: Term

    @classmethod
    def of(cls, settings: ServerSettings) -> "Terms":
        """As the settings say; RequestError where they make no sense."""
        terms = cls(
            Term.parse("keep_pictures", settings.keep_pictures),
            Term.parse("keep_records", settings.keep_records),
        )
        if terms.records.size is not None:
            raise RequestError("keep_records can't be a size: give an age such as 90d.")
        if terms.records.seconds is not None and terms.records.seconds < DAY_S:
            raise RequestError(
                f"keep_records is {settings.keep_records}: give 1d or more, for quotas count 24 hours."
            )
        return terms


@dataclass(frozen=True)
class Swept:
    """What one sweep ended."""

    pictures: int
    records: int
    uploads: int = 0


class Retention:
    """Sweeps a server's pictures and records, at its start and then every hour."""

    def __init__(
        self,
        terms: Terms,
        storage: Storage,
        store: Store,
        uploads: Uploads,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._terms, self._storage, self._store, self._clock = terms, storage, store, clock
        self._uploads = uploads

    async def run(self) -> None:
        """Sweep until cancelled; what fails is tried again an hour later."""
        while True:
            try:
                swept = await self.sweep()
            except (UnavailableError, SQLAlchemyError) as error:
                log.error("retention: not everything could be ended (%s); the next try is in an hour", error)
            else:
                if swept != Swept(0, 0):
                    log.info(
                        "retention: ended %d pictures, %d records, %d uploads",
                        swept.pictures, swept.records, swept.uploads,
                    )  # fmt: skip
            await asyncio.sleep(SWEEP_S)

    async def sweep(self) -> Swept:
        """End what has had its time."""
        now, pictures = self._clock(), self._terms.pictures
        gone: list[str] = []
        if pictures != Term():
            gone = await asyncio.to_thread(
                retire, self._storage, now=now, keep_s=pictures.seconds, keep_bytes=pictures.size
            )
        forgotten = await self._forget(now)
        unneeded = await asyncio.to_thread(self._uploads.sweep, self._store.uploads_named, now)
        return Swept(len(gone), forgotten, len(unneeded))

    async def _forget(self, now: float) -> int:
        keep, forgotten = self._terms.records.seconds, 0
        if keep is None:
            return 0
        delete = partial(_delete, before=now - keep)
        while bite := await asyncio.wrap_future(self._store.write(delete)):
            forgotten += bite
        return forgotten


def _delete(connection: sa.Connection, before: float) -> int:
    """Forget the oldest jobs that ended before then, and the attempts at them; how many."""
    ended = jobs.c.state.in_([state.value for state in FINAL]) & (jobs.c.finished_at < before)
    found = sa.select(jobs.c.id).where(ended).order_by(jobs.c.finished_at).limit(LARGEST_BITE)
    ids = list(connection.execute(found).scalars())
    connection.execute(sa.delete(attempts).where(attempts.c.job_id.in_(ids)))
    connection.execute(sa.delete(webhooks).where(webhooks.c.job_id.in_(ids)))
    connection.execute(sa.delete(jobs).where(jobs.c.id.in_(ids)))
    return len(ids)
