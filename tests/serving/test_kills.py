"""What is acknowledged is done, whatever is killed in between."""

import os
import select
import signal
from collections import Counter
from pathlib import Path

import sqlalchemy as sa

from .conftest import Served, ServerFactory

JOBS = int(os.environ.get("SD35_KILL_JOBS", "20"))


def test_worker_killed_in_the_middle(start_server: ServerFactory, tmp_path: Path) -> None:
    """kill -9 of the worker costs an attempt: each job has one result, and the server stayed up."""
    served = start_server(rough=True)
    jobs: list[str] = []
    while len(jobs) < JOBS:
        # One kill for each five, so that no job is struck twice.
        five = [served.post(prompt="brief", seed=len(jobs) + i)["id"] for i in range(5)]
        served.until(five[0], lambda name, data: name == "progress")
        os.kill(served.worker_pid(), signal.SIGKILL)
        for job_id in five:
            served.end(job_id)
        jobs += five
    assert served.client.get("/api/v1/stats").json()["worker"]["restarts"] == JOBS // 5
    _assert_each_has_one_result(served, jobs, tmp_path)
    assert served.process.poll() is None


def test_server_killed_in_the_middle(start_server: ServerFactory, tmp_path: Path) -> None:
    """kill -9 of the server, then a restart on the same folder: nothing acknowledged is lost or doubled."""
    first = start_server(rough=True)
    jobs = _post_all(first, tmp_path)
    served = first
    for job_id in jobs[2::9]:
        served.until(job_id, lambda name, data: data.get("state") in ("running", "succeeded"))
        served.kill()
        served = start_server(rough=True)
    _assert_each_has_one_result(served, jobs, tmp_path)


def test_server_killed_while_drawing_blames_nobody(start_server: ServerFactory) -> None:
    """A job that was running when servers died, three times, is still a job."""
    served = start_server(rough=True)
    slow = served.post(prompt="slow")["id"]
    for _ in range(3):
        served.until(slow, lambda name, data: name == "progress" and data["done"] >= 2)
        served.kill()
        served = start_server(rough=True)
    assert served.job(slow)["state"] in ("queued", "loading", "running")
    served.client.delete(f"/api/v1/jobs/{slow}")
    assert served.job(slow)["attempts"] >= 3


def test_job_that_kills_workers_is_given_up(rough: Served) -> None:
    """Two deaths over one job end it with the reason; others go on."""
    poison, good = rough.post(prompt="die")["id"], rough.post()["id"]
    job = rough.end(poison)
    assert (job["state"], job["attempts"], job["error"]["code"]) == ("failed", 2, "worker_died")
    assert "SIGKILL" in job["error"]["message"]
    assert rough.end(good)["state"] == "succeeded"


def test_unexpected_error_replaces_the_worker(rough: Served) -> None:
    """A worker with a bug is not trusted with another job."""
    job = rough.end(rough.post(prompt="bug")["id"])
    assert "ZeroDivisionError: a planted bug" in job["error"]["message"]
    assert rough.end(rough.post()["id"])["state"] == "succeeded"


def test_stopped_worker_is_replaced(start_server: ServerFactory) -> None:
    """A process that can't run Python any more falls silent and is killed."""
    served = start_server(rough=True, silence_s=2)
    job = served.end(served.post(prompt="stop")["id"])
    assert "no sign of life" in job["error"]["message"]
    assert served.end(served.post()["id"])["state"] == "succeeded"


def test_worker_without_progress_is_replaced(start_server: ServerFactory) -> None:
    """A process that runs but makes no step is killed as well."""
    served = start_server(rough=True, step_s=0.5)
    job = served.end(served.post(prompt="hang")["id"])
    assert "no progress" in job["error"]["message"]


def test_no_room_fails_the_job_and_keeps_the_worker(rough: Served) -> None:
    """A job that is too large is told so at the first attempt."""
    job = rough.end(rough.post(prompt="memory")["id"])
    pid = rough.worker_pid()
    assert (job["state"], job["attempts"], job["error"]["code"]) == ("failed", 1, "out_of_memory")
    assert rough.end(rough.post()["id"])["state"] == "succeeded"
    assert rough.worker_pid() == pid


def test_worker_ends_with_its_server(start_server: ServerFactory) -> None:
    """No worker outlives a killed server."""
    served = start_server(rough=True)
    served.until(served.post(prompt="slow")["id"], lambda name, data: name == "progress")
    worker = os.pidfd_open(served.worker_pid())
    try:
        served.kill()
        assert select.select([worker], [], [], 20)[0], "it is still there"
    finally:
        os.close(worker)


def _post_all(served: Served, tmp_path: Path) -> list[str]:
    """As many jobs as are asked for; every fifth kills its worker once on its own account."""
    prompts = [f"die once {tmp_path / f'died-{i}'}" if i % 5 == 1 else f"brief {i}" for i in range(JOBS)]
    return [served.post(prompt=prompt, seed=i)["id"] for i, prompt in enumerate(prompts)]


def _assert_each_has_one_result(served: Served, jobs: list[str], tmp_path: Path) -> None:
    ended = [served.end(job_id) for job_id in jobs]
    assert Counter(job["state"] for job in ended) == {"succeeded": len(jobs)}
    assert [[image["seed"] for image in job["images"]] for job in ended] == [[i] for i in range(len(jobs))]
    stored = {path.name for path in (tmp_path / "data" / "pictures").iterdir()}
    assert {f"{job_id}-0.png" for job_id in jobs} <= stored
    assert len([name for name in stored if name.startswith(tuple(jobs))]) == len(jobs)
    database = sa.create_engine(f"sqlite:///{tmp_path / 'data' / 'jobs.sqlite3'}")
    with database.connect() as connection:
        done = connection.execute(
            sa.text("select job_id from attempts where outcome = 'succeeded'")
        ).scalars()
        assert all(count == 1 for count in Counter(done).values())
    database.dispose()
