"""Loops that press on something, without a server."""

import asyncio
import time

import pytest

from sd35.bench.load import AskFailed, closed_loop, open_loop, percentile
from sd35.bench.serve import Loop, row_of


class Clerk:
    """Serves one at a time, each for so long; every fifth request fails where `fails`."""

    def __init__(self, seconds: float, *, fails: bool = False) -> None:
        self.seconds, self.fails = seconds, fails
        self.asked = self.waiting = self.most = 0
        self._desk = asyncio.Lock()

    async def ask(self) -> None:
        """Wait for one's turn, then be served."""
        self.asked += 1
        number = self.asked
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        async with self._desk:
            await asyncio.sleep(self.seconds)
        self.waiting -= 1
        if self.fails and number % 5 == 0:
            raise AskFailed("status 429")


def test_closed_loop_has_so_many_at_once() -> None:
    """Three clients are three requests under way, never four, and each asks again."""

    async def press() -> None:
        clerk = Clerk(0.005)
        answers = await closed_loop(clerk.ask, 3, 0.1)
        assert clerk.most == 3
        assert len(answers.times) == clerk.asked > 3
        assert answers.per_second == pytest.approx(clerk.asked / answers.elapsed)

    asyncio.run(press())


def test_open_loop_does_not_wait_for_a_slow_server() -> None:
    """Ten requests, one each 10 ms, served in 40: the last is done 400 ms after the first was due."""

    async def press() -> None:
        clerk = Clerk(0.04)
        answers = await open_loop(clerk.ask, 100, 0.1)
        assert len(answers.times) == 10
        assert clerk.most > 5
        assert max(answers.times) >= 0.4 - 0.09  # from when it was due, not from when it was served

    asyncio.run(press())


def test_a_late_request_counts_from_when_it_was_due() -> None:
    """Where the client itself was kept from asking in time, the wait is no less of a wait."""

    async def blocking() -> None:
        time.sleep(0.04)

    answers = asyncio.run(open_loop(blocking, 100, 0.1))
    assert max(answers.times) >= 0.4 - 0.09


def test_failures_are_counted_and_have_no_time() -> None:
    """What failed is told by its reason and does not make the percentiles look better."""

    async def press() -> None:
        clerk = Clerk(0.001, fails=True)
        answers = await open_loop(clerk.ask, 200, 0.1)
        assert answers.failures == {"status 429": 4}
        assert len(answers.times) == 16

    asyncio.run(press())


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.95, 95), (0.99, 99), (0.0, 1), (1.0, 100)])
def test_percentiles_by_nearest_rank(share: float, value: int) -> None:
    """Of 1 to 100 the 95th percentile is 95; of nothing there is none."""
    assert percentile(range(100, 0, -1), share) == value
    assert percentile([], share) is None


def test_a_row_counts_pictures_and_processor_time() -> None:
    """Two pictures an answer, ten answers in two seconds: 600 a minute; 50 ms of processor: 5 each."""

    async def press() -> None:
        clerk = Clerk(0.0)
        answers = await open_loop(clerk.ask, 1000, 0.01)
        answers.elapsed = 2.0
        row = row_of("openai", Loop(rate=5.0), answers, (0.05, 0.02), 2)
        assert (row.succeeded, row.per_second, row.images_per_minute) == (10, 5.0, 600.0)
        assert row.images_per_day == 600 * 60 * 24
        assert (row.server_cpu_ms, row.worker_cpu_ms) == (pytest.approx(5.0), pytest.approx(2.0))
        assert row.p50_ms is not None
        assert row.p99_ms is not None
        assert 0 < row.p50_ms <= row.p99_ms

    asyncio.run(press())
