"""A job while the server thinks of it: its row, its events, and whoever waits for it.

Events go to any number of listeners, each at its own pace: a listener asks for what comes after the last id
that it saw. So a stream that was cut goes on where it stopped (`Last-Event-ID`). The oldest events are
forgotten first.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from sd35.serving.jobs import Event, Job, State, next_event_id
from sd35.serving.settings import Model

REMEMBERED = 1024  # events a job


class EventLog:
    """What happened to one job, in order, for everyone who asks."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=REMEMBERED)
        self._news = asyncio.Event()
        self._last, self.is_closed = 0, False

    def append(self, name: str, data: dict[str, Any]) -> None:
        """Something happened."""
        self._last = next_event_id(self._last)
        self._events.append(Event(self._last, name, data))
        self._wake()

    def close(self) -> None:
        """Nothing will happen any more."""
        self.is_closed = True
        self._wake()

    def latest(self, name: str) -> Event | None:
        """The last of its kind so far."""
        return next((event for event in reversed(self._events) if event.name == name), None)

    async def after(self, last: int) -> AsyncIterator[Event]:
        """Events with higher ids, those that are to come as well, until the log is closed."""
        while True:
            news = self._news
            for event in [event for event in self._events if event.id > last]:
                last = event.id
                yield event
            if self.is_closed and (not self._events or self._events[-1].id <= last):
                return
            if news is self._news and not self.is_closed:
                await news.wait()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


@dataclass
class LiveJob:
    """A job in this server's memory."""

    job: Job
    model: Model
    weight: float = 1.0  # of its key, in the queue
    events: EventLog = field(default_factory=EventLog)
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # it has ended, or this server ends first
    is_ending: bool = False  # its end is being written: nothing may change it any more
    progress: tuple[int, int] = (0, 0)  # steps done, of
    watchers: int = 0  # requests that wait for it
    is_suspect: bool = False  # a worker died while it drew this, perhaps because of it: it is drawn alone
    passed_at: float | None = None  # when another job first went past it, time.monotonic

    def change(self, state: State) -> None:
        """Enter a state and say so."""
        self.job.state = state
        self.tell()

    def tell(self) -> None:
        """Say how the job stands; its end is the last thing that is said."""
        job = self.job
        data: dict[str, Any] = {"id": job.id, "state": job.state.value, "attempts": job.token}
        if job.error is not None:
            data["error"] = {"code": job.error.code, "message": job.error.message}
        self.events.append("state", data)
        if job.state.is_final:
            self.part()

    def part(self) -> None:
        """Let everyone go who waits for this job."""
        self.events.close()
        self.settled.set()
