"""The end of a job, told to the address that the job named.

That a webhook is owed is written in the same transaction as the job's end, so no crash comes between them;
what is owed when a server starts is sent then. A receiver has ten tries over two hours, with pauses that grow
and vary, to answer with 2xx; 410 ends them at once. Receivers may get a webhook twice (we can be killed
between their answer and our note of it); its id is the same then.
"""

import asyncio
import json
import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from sd35.errors import NetworkError, RequestError
from sd35.serving.happenings import Ended, Happening, WebhookTried
from sd35.serving.jobs import Job, outcome
from sd35.serving.outbound import Outbound
from sd35.serving.settings import ServerSettings
from sd35.serving.signing import Signer
from sd35.serving.storage import Storage
from sd35.serving.store import Store, job_of
from sd35.serving.tables import jobs, webhooks

PAUSES_S = (5.0, 15.0, 60.0, 180.0, 480.0, 900.0, 1500.0, 1800.0, 2300.0)  # 7240 s: two hours
JITTER = 0.2
AT_ONCE = 50
LONGEST_REST_S = 30.0
GONE = 410

log = logging.getLogger(__name__)

Told = Callable[[Job], dict[str, Any]]


class Courier:
    """Sends what is owed."""

    def __init__(
        self,
        store: Store,
        outbound: Outbound,
        signer: Signer,
        told: Told,
        tell: Callable[[Happening], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._outbound, self._signer = store, outbound, signer
        self._told, self._tell, self._clock = told, tell, clock
        self._wake = asyncio.Event()

    def observe(self, happening: Happening) -> None:
        """A job that ended may owe one."""
        if isinstance(happening, Ended) and happening.job.webhook_url is not None:
            self._wake.set()

    async def run(self) -> None:
        """Send until cancelled; a database that does not answer is asked again."""
        while True:
            self._wake.clear()
            try:
                is_more = await self.send_due()
            except SQLAlchemyError as error:
                log.error("webhooks: the database does not say what is owed (%s)", error)
                is_more = False
            if not is_more:
                await self._rest()

    async def send_due(self) -> bool:
        """Try all that is due, together; whether there may be more."""
        due = await asyncio.to_thread(self._due)
        await asyncio.gather(*(self._try(row) for row in due))
        return len(due) == AT_ONCE

    async def _rest(self) -> None:
        """Until a job ends or the next try is due."""
        upcoming = await asyncio.to_thread(self._next_at)
        seconds = LONGEST_REST_S if upcoming is None else min(LONGEST_REST_S, upcoming - self._clock())
        try:
            await asyncio.wait_for(self._wake.wait(), max(0.0, seconds))
        except TimeoutError:
            return

    def _due(self) -> list[Any]:
        wanted = sa.select(webhooks).where(webhooks.c.next_at <= self._clock())
        return self._store.rows(wanted.order_by(webhooks.c.next_at).limit(AT_ONCE))

    def _next_at(self) -> float | None:
        rows = self._store.rows(sa.select(sa.func.min(webhooks.c.next_at).label("at")))
        at: float | None = rows[0]["at"]
        return at

    async def _try(self, row: Any) -> None:
        found = await asyncio.to_thread(self._store.rows, sa.select(jobs).where(jobs.c.id == row["job_id"]))
        if not found:  # retention was quicker
            await self._note(row, next_at=None, failure="the job is forgotten")
            return
        failure, is_final = await self._sent(row, job_of(found[0]))
        self._tell(WebhookTried(row["url"], failure))
        if failure is None:
            await self._note(row, next_at=None, taken_at=self._clock(), failure=None)
            return
        tries = row["tries"] + 1
        is_over = is_final or tries > len(PAUSES_S)
        log.warning("webhook of %s to %s, try %d: %s", row["job_id"], row["url"], tries, failure)
        next_at = None if is_over else self._clock() + _pause(tries)
        await self._note(row, next_at=next_at, failure=failure)

    async def _sent(self, row: Any, job: Job) -> tuple[str | None, bool]:
        """Why it was not taken, None if it was; and whether another try is useless."""
        body = json.dumps(
            {
                "type": f"job.{job.state.value}",
                "timestamp": datetime.fromtimestamp(job.finished_at or self._clock(), UTC).isoformat(),
                "data": self._told(job),
            }
        ).encode()
        headers = self._signer.headers(row["key_id"], f"msg_{job.id}", body, self._clock())
        try:
            status = await self._outbound.post(row["url"], body, headers)
        except RequestError as error:
            return str(error), True
        except NetworkError as error:
            return str(error), False
        return (None, True) if 200 <= status < 300 else (f"it answered {status}", status == GONE)

    async def _note(self, row: Any, **values: Any) -> None:
        tried = {**values, "tries": row["tries"] + 1}
        change = sa.update(webhooks).where(webhooks.c.job_id == row["job_id"]).values(tried)
        await asyncio.wrap_future(self._store.write(lambda connection: connection.execute(change)))


def told_of(settings: ServerSettings, storage: Storage) -> Told:
    """How jobs are told to webhooks of this server."""
    return partial(_told, settings, storage)


def _told(settings: ServerSettings, storage: Storage, job: Job) -> dict[str, Any]:
    """A job as its webhook has it. Addresses are whole where the server knows its own (`public_url`)."""
    return {
        "id": job.id,
        "client_id": job.client_id,
        "state": job.state.value,
        "model": job.spec.model,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        **outcome(job, lambda image: _whole(settings, storage.url(image.name, settings.url_life_s))),
    }


def _whole(settings: ServerSettings, address: str) -> str:
    return settings.public_url.rstrip("/") + address if address.startswith("/") else address


def _pause(tries: int) -> float:
    return PAUSES_S[tries - 1] * random.uniform(1 - JITTER, 1 + JITTER)
