"""What may come in: what a key may ask for in 24 hours, and what its model can do."""

import asyncio
import time
from collections.abc import Collection

from sd35.serving.jobs import Job
from sd35.serving.keys import Caller
from sd35.serving.problems import Problem, ServiceError
from sd35.serving.store import Store

DAY_S = 86_400.0


class Acceptance:
    """Brings jobs into the database; those of a key with quotas one by one, for they are counted there.

    `decoding` are the models whose VAE has no encoder, so that nothing of theirs can begin with an image.
    """

    def __init__(self, store: Store, decoding: Collection[str]) -> None:
        self._store, self._decoding = store, decoding
        self._turns: dict[str, asyncio.Lock] = {}  # by key

    async def accept(self, job: Job, caller: Caller) -> Job:
        """The job as the database has it; ServiceError where it is too much for its key or its model."""
        if job.spec.image is not None and job.spec.model in self._decoding:
            raise ServiceError(
                Problem.INVALID_REQUEST,
                f"The model {job.spec.model!r} can't begin with an image, for its VAE has no encoder: leave "
                "the image out, or choose another model.",
                param="image",
            )
        limits = (caller.quotas.images_per_day, caller.quotas.megapixel_steps_per_day)
        if caller.key_id is None or limits == (None, None):
            return await asyncio.wrap_future(self._store.accept(job))
        async with self._turns.setdefault(caller.key_id, asyncio.Lock()):
            used = await asyncio.to_thread(self._store.asked_since, caller.key_id, time.time() - DAY_S)
            _hold(job, limits, used)
            return await asyncio.wrap_future(self._store.accept(job))


def _hold(job: Job, limits: tuple[float | None, float | None], used: tuple[int, float]) -> None:
    """quota_exceeded where this job would go beyond what the key may ask for in 24 hours."""
    asked = (job.spec.n, job.spec.cost)
    rows = zip(("pictures", "megapixel-steps"), limits, used, asked, strict=True)
    for what, limit, before, more in rows:
        if limit is not None and before + more > limit:
            raise ServiceError(
                Problem.QUOTA_EXCEEDED,
                f"This key may ask for {limit:g} {what} in 24 hours and has asked for {before:g}: "
                f"{more:g} more would be too many, so ask for less or later.",
            )
