"""What a key may ask for in 24 hours, held against what it has asked for."""

import asyncio
import time

from sd35.serving.jobs import Job
from sd35.serving.keys import Caller
from sd35.serving.problems import Problem, ServiceError
from sd35.serving.store import Store

DAY_S = 86_400.0


def has_quotas(caller: Caller) -> bool:
    """Whether there is anything to count."""
    quotas = caller.quotas
    limits = (quotas.images_per_day, quotas.megapixel_steps_per_day)
    return caller.key_id is not None and limits != (None, None)


async def hold_to_quotas(store: Store, job: Job, caller: Caller) -> None:
    """quota_exceeded where this job would go beyond what the key may ask for in 24 hours."""
    if caller.key_id is None or not has_quotas(caller):
        return
    limits = (caller.quotas.images_per_day, caller.quotas.megapixel_steps_per_day)
    used = await asyncio.to_thread(store.asked_since, caller.key_id, time.time() - DAY_S)
    asked = (job.spec.n, job.spec.cost)
    rows = zip(("pictures", "megapixel-steps"), limits, used, asked, strict=True)
    for what, limit, before, more in rows:
        if limit is not None and before + more > limit:
            raise ServiceError(
                Problem.QUOTA_EXCEEDED,
                f"This key may ask for {limit:g} {what} in 24 hours and has asked for {before:g}: "
                f"{more:g} more would be too many, so ask for less or later.",
            )
