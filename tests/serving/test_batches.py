"""Jobs that are drawn together stay jobs of their own."""

import time

from .conftest import Served, ServerFactory
from .test_metrics import samples


def together(served: Served, *prompts: str, **body: object) -> list[str]:
    """Jobs with these prompts, all waiting before the first of them is drawn."""
    blocker = served.post(prompt="slow", width=32)["id"]
    served.until(blocker, lambda name, data: name == "progress")
    jobs = [served.post(prompt=prompt, seed=place, **body)["id"] for place, prompt in enumerate(prompts)]
    served.client.delete(f"/api/v1/jobs/{blocker}")
    return jobs


def test_waiting_jobs_of_a_kind_are_one_batch(rough: Served) -> None:
    """They begin at once, and each has its own seed, pictures, progress and end."""
    jobs = [rough.end(job_id) for job_id in together(rough, "brief", "brief 2", "a cat", n=1)]
    begun = [job["started_at"] for job in jobs]
    assert max(begun) - min(begun) < 0.05  # one by one, a tenth of a second lies between
    assert [job["images"][0]["seed"] for job in jobs] == [0, 1, 2]
    assert len({job["images"][0]["sha256"] for job in jobs}) == 3
    assert all(job["progress"]["done"] == job["progress"]["of"] == 28 for job in jobs)
    assert [job["attempts"] for job in jobs] == [1, 1, 1]


def test_a_batch_is_counted_once(start_server: ServerFactory) -> None:
    """Three jobs that are drawn together are one batch of three, for the metrics."""
    served = start_server(rough=True)
    for job_id in together(served, "brief", "brief 2", "a cat", n=1):
        served.end(job_id)
    found = samples(served.client.get("/metrics").text)
    assert (found["sd35_batch_size_count"], found["sd35_batch_size_sum"]) == (1, 3)


def test_cancelled_member_stops_nobody_else(rough: Served) -> None:
    """The others go on and are done; when all are cancelled, the worker goes on with the next job."""
    first, second = together(rough, "slow", "a cat")
    rough.until(second, lambda name, data: name == "progress")
    pid = rough.worker_pid()
    assert rough.client.delete(f"/api/v1/jobs/{first}").json()["state"] == "cancelled"
    done = rough.job(second)["progress"]["done"]
    rough.until(second, lambda name, data: name == "progress" and data["done"] > done + 5)
    assert rough.job(first)["progress"]["done"] <= done + 1
    rough.client.delete(f"/api/v1/jobs/{second}")
    begin = time.monotonic()
    assert rough.end(rough.post()["id"])["state"] == "succeeded"
    assert time.monotonic() - begin < 10  # the batch would have taken half a minute
    assert rough.worker_pid() == pid


def test_death_over_a_batch_is_cleared_up_alone(rough: Served) -> None:
    """The innocent are drawn at their second attempt; the one that kills alone twice fails."""
    good, poison, other = together(rough, "a cat", "die", "a dog")
    assert [(rough.end(job)["state"], rough.job(job)["attempts"]) for job in (good, other)] == [
        ("succeeded", 2)
    ] * 2
    job = rough.end(poison)
    assert (job["state"], job["attempts"], job["error"]["code"]) == ("failed", 3, "worker_died")


def test_member_without_room_fails_alone(rough: Served) -> None:
    """An error over a batch is no answer for its members: each is tried by itself at once."""
    good, greedy = together(rough, "a cat", "memory")
    assert (rough.end(good)["state"], rough.job(good)["attempts"]) == ("succeeded", 1)
    assert rough.end(greedy)["error"]["code"] == "out_of_memory"


def test_cancelled_member_is_not_tried_again(rough: Served) -> None:
    """Where a batch fails after one of it was cancelled, only the others are drawn by themselves."""
    steady, greedy, good = together(rough, "steady", "memory", "a cat")
    rough.until(steady, lambda name, data: name == "progress")
    pid = rough.worker_pid()
    rough.client.delete(f"/api/v1/jobs/{steady}")
    assert rough.end(greedy)["error"]["code"] == "out_of_memory"
    assert rough.end(good)["state"] == "succeeded"
    assert rough.end(rough.post()["id"])["state"] == "succeeded"
    assert (rough.job(steady)["state"], rough.worker_pid()) == ("cancelled", pid)


def test_batch_of_one_is_a_setting(start_server: ServerFactory) -> None:
    """With --max-batch 1 jobs are drawn one by one."""
    served = start_server(rough=True, max_batch=1)
    jobs = [served.end(job_id) for job_id in together(served, "brief", "brief")]
    assert jobs[1]["started_at"] - jobs[0]["started_at"] > 0.05
