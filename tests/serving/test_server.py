"""Starting and stopping."""

import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from sd35.errors import RequestError
from sd35.serving.app import STOP_S
from sd35.serving.server import CLOSING_S, SAVING_S, serve
from sd35.serving.settings import ServerSettings
from sd35.serving.store import LOCK_S

from .conftest import ServerFactory
from .test_trouble import locked


def test_second_server_on_the_same_folder_is_refused(start_server: ServerFactory, tmp_path: Path) -> None:
    """It names the holder, ends with 4 and leaves the first one alone."""
    first = start_server()
    command = [
        sys.executable,
        "-m",
        "sd35",
        "serve",
        "--engine=null",
        "--port=0",
        f"--data-dir={tmp_path / 'data'}",
    ]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 4
    assert f"process id {first.process.pid}" in second.stderr
    assert first.end(first.post()["id"])["state"] == "succeeded"


def test_taken_port_is_refused(start_server: ServerFactory, tmp_path: Path) -> None:
    """A port that another program has ends with 4."""
    port = start_server().url.rpartition(":")[2]
    command = [
        sys.executable,
        "-m",
        "sd35",
        "serve",
        "--engine=null",
        f"--port={port}",
        f"--data-dir={tmp_path / 'b'}",
    ]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 4
    assert port in second.stderr


def test_open_address_needs_keys(tmp_path: Path) -> None:
    """Without keys nobody but this machine is let in."""
    with pytest.raises(RequestError, match=r"Without keys .* 0\.0\.0\.0"):
        serve(ServerSettings(host="0.0.0.0", data_dir=str(tmp_path)), [], print)


def test_term_lets_the_running_job_end(start_server: ServerFactory) -> None:
    """After SIGTERM: exit code 0, the running job done, the waiting one done after the next start."""
    served = start_server(rough=True)
    running, waiting = served.post(prompt="brief 1")["id"], served.post(prompt="brief 2")["id"]
    served.until(running, lambda name, data: name == "progress")
    assert served.stop() == 0
    served = start_server(rough=True)
    assert served.job(running)["state"] == "succeeded"
    job = served.end(waiting)
    assert (job["state"], served.job(running)["attempts"]) == ("succeeded", 1)


def test_draining_takes_nothing_new_and_gives_up_in_time(start_server: ServerFactory) -> None:
    """While it drains: 503 with Retry-After; a job that takes too long is kept for the next start."""
    served = start_server(rough=True, drain_s=2)
    slow = served.post(prompt="slow")["id"]
    served.until(slow, lambda name, data: name == "progress")
    served.process.terminate()
    answer = _first_refusal(served.client)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    assert answer.headers["retry-after"] == "5"
    ready = served.client.get("/readyz")
    assert (ready.status_code, ready.json()["reason"]) == (503, "draining")
    assert served.client.get("/livez").status_code == 200
    assert served.process.wait(30) == 0
    again = start_server(rough=True)
    assert again.job(slow)["state"] in ("queued", "loading", "running")


def test_stopping_takes_less_than_half_a_minute() -> None:
    """What the phases of a stop may take by default fits into 30 s, with a locked database too."""
    assert ServerSettings().drain_s + SAVING_S + CLOSING_S + STOP_S + 2 * LOCK_S < 30


@pytest.mark.parametrize(("prompt", "event"), [("brief", "saving"), ("slow", "running")])
def test_term_with_a_database_that_does_not_answer(
    start_server: ServerFactory, tmp_path: Path, prompt: str, event: str
) -> None:
    """Neither a job's end nor its return can be written: the server ends, the next one takes the job up."""
    served = start_server(rough=True, drain_s=1)
    job_id = served.post(prompt=prompt, seed=3)["id"]
    served.until(job_id, lambda name, data: name == "progress")
    with locked(tmp_path / "data" / "jobs.sqlite3"):
        served.until(job_id, lambda name, data: data.get("state") == event)
        assert served.stop() == 0
    again = start_server(rough=True)
    if prompt == "slow":
        assert again.job(job_id)["state"] in ("queued", "loading", "running")
    else:
        assert again.end(job_id)["images"][0]["seed"] == 3


def _first_refusal(client: httpx2.Client) -> httpx2.Response:
    while (answer := client.post("/api/v1/jobs", json={"prompt": "a fox"})).status_code == 202:
        pass
    return answer
