"""Who is next."""

import pytest

from sd35.serving.fair_queue import FairQueue, ServiceRate
from sd35.serving.jobs import Job, Priority, Spec
from sd35.serving.problems import Problem, ServiceError


def job(key: str | None = None, priority: Priority = Priority.NORMAL, steps: int = 10) -> Job:
    """A job of one megapixel."""
    spec = Spec(
        prompt="a fox", negative_prompt="", model="demo", width=1000, height=1000,
        num_inference_steps=steps, guidance_scale=4.0, seed=0, n=1,
    )  # fmt: skip
    return Job(spec=spec, key_id=key, priority=priority)


def drained(queue: FairQueue) -> list[Job]:
    """All jobs in the order in which they come out."""
    return list(iter(queue.take, None))


def test_one_key_is_first_come_first_served() -> None:
    """Without other keys the order is that of arrival."""
    queue, jobs = FairQueue(100, 100), [job("a", steps=steps) for steps in (50, 1, 20)]
    for one in jobs:
        queue.put(one)
    assert drained(queue) == jobs


def test_a_flood_delays_a_stranger_by_one_job() -> None:
    """A key with one job waits for one of the flood's, not for all."""
    queue = FairQueue(100, 100)
    for _ in range(20):
        queue.put(job("flood"))
    single = job("single")
    queue.put(single)
    assert queue.position(single) == 1
    assert [one.key_id for one in drained(queue)].index("single") == 1


def test_weights_share_by_cost() -> None:
    """With a weight of three and jobs of twice the cost, a key gets three jobs for two of the other's."""
    queue = FairQueue(100, 100)
    for _ in range(30):
        queue.put(job("heavy", steps=20), 3.0)
        queue.put(job("light", steps=10), 1.0)
    first = [one.key_id for one in drained(queue)[:25]]
    assert first.count("heavy") == pytest.approx(15, abs=1)


def test_priorities_go_before_shares() -> None:
    """High before normal before low, whoever came first."""
    queue = FairQueue(100, 100)
    for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH):
        queue.put(job(priority=priority))
    assert [one.priority for one in drained(queue)] == list(Priority)


def test_job_given_back_goes_first() -> None:
    """What had waited once does not wait again behind others."""
    queue, back = FairQueue(100, 100), job("b")
    queue.put(job("a"))
    queue.put(back, is_first=True)
    assert queue.take() is back


def test_bounds_hold_and_count_promised_places() -> None:
    """The whole queue's bound, with places on their way into the database; then one key's."""
    queue = FairQueue(2, 1)
    queue.put(job("a"))
    queue.admit("b")
    for key, reserved in (("b", 1), ("a", 0)):
        with pytest.raises(ServiceError) as caught:
            queue.admit(key, reserved)
        assert caught.value.problem is Problem.QUEUE_FULL


def test_discarded_job_is_gone() -> None:
    """It has no position, comes up no more and frees its place."""
    queue, one, two = FairQueue(2, 2), job("a"), job("a")
    queue.put(one)
    queue.put(two)
    assert queue.discard(one)
    assert (queue.position(one), queue.position(two), len(queue)) == (None, 0, 1)
    assert drained(queue) == [two]
    assert not queue.discard(one)


def test_retry_after_follows_the_measured_rate() -> None:
    """As long as a job lately took, a second at least, two minutes at most."""
    rate = ServiceRate()
    assert rate.retry_after_s() == 1
    rate.finished(10.0, 7.5)
    assert (rate.retry_after_s(), rate.wait_s(40.0)) == (8, 30.0)
    rate.finished(10.0, 5000.0)
    assert rate.retry_after_s() == 120


def test_workers_share_the_wait() -> None:
    """Three workers free a place three times as often, and empty a queue in a third of the time."""
    rate = ServiceRate(workers=3)
    rate.finished(10.0, 7.5)
    assert (rate.retry_after_s(), rate.wait_s(40.0)) == (3, 10.0)


def test_the_longest_wait_is_known() -> None:
    """Whatever the order in which jobs will be taken, it is the oldest one's; an empty queue has none."""
    queue = FairQueue(100, 100)
    assert queue.oldest_at() is None
    for at, priority in ((20.0, Priority.HIGH), (10.0, Priority.LOW), (30.0, Priority.NORMAL)):
        one = job(priority=priority)
        one.created_at = at
        queue.put(one)
    assert queue.oldest_at() == 10.0
