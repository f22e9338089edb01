"""What a server does beside its jobs, from its start to its stop: retention, alerts, webhooks."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

AGAIN_S = 30.0

Chore = Callable[[], Coroutine[Any, Any, None]]

log = logging.getLogger(__name__)


class Chores:
    """Endless tasks; one that fails unexpectedly is begun again, and harms nothing else."""

    def __init__(self, chores: Sequence[Chore]) -> None:
        self._chores = chores
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin them all."""
        self._tasks = [asyncio.create_task(_go_on(chore)) for chore in self._chores]

    async def stop(self) -> None:
        """End them all."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _go_on(chore: Chore) -> None:
    while True:
        try:
            await chore()
        except Exception:
            log.exception("%r failed; it begins again in %g s", chore, AGAIN_S)
            await asyncio.sleep(AGAIN_S)
