"""Servers for tests, as processes of their own that can be killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from . import real_clients
from .stores import S3Server
from .test_store import url as url  # an empty database of each kind, for other files too

ROUGH_WORKER = Path(__file__).with_name("rough_worker.py")
START_S = 60.0


@dataclass
class Served:
    """A server in a process of its own."""

    process: "subprocess.Popen[str]"
    url: str
    client: httpx2.Client

    def post(self, **body: Any) -> dict[str, Any]:
        """Send a job; its acknowledgement."""
        answer = self.client.post("/api/v1/jobs", json={"prompt": "a fox", "width": 64, "height": 64, **body})
        assert answer.status_code == 202, answer.text
        return answer.json()

    def job(self, job_id: str) -> dict[str, Any]:
        """A job as it stands."""
        return self.client.get(f"/api/v1/jobs/{job_id}").raise_for_status().json()

    def events(self, job_id: str, last: str = "0") -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(id, name, data) of a job's events as they come, until it has ended."""
        headers, event = {"Last-Event-ID": last}, {"id": "", "event": "", "data": ""}
        with self.client.stream("GET", f"/api/v1/jobs/{job_id}/events", headers=headers) as answer:
            for line in answer.iter_lines():
                if line:
                    name, _, value = line.partition(": ")
                    event[name] = value
                else:
                    yield event["id"], event["event"], json.loads(event["data"])

    def end(self, job_id: str) -> dict[str, Any]:
        """The job after its end."""
        for _ in self.events(job_id):
            pass
        return self.job(job_id)

    def until(self, job_id: str, wanted: Callable[[str, dict[str, Any]], bool]) -> None:
        """Wait for an event."""
        assert any(wanted(name, data) for _, name, data in self.events(job_id)), "it never came"

    def worker_pid(self) -> int:
        """The process that draws."""
        return self.client.get("/api/v1/stats").json()["worker"]["pid"]

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(START_S)


ServerFactory = Callable[..., Served]


@pytest.fixture(autouse=True)
def closed_clients() -> Iterator[None]:
    """What a test opens it closes."""
    yield
    real_clients.close_all()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[ServerFactory]:
    """Starts servers on one data folder; flags as keywords."""
    with servers(tmp_path / "data") as start:
        yield start


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with the null engine that the tests of a file share."""
    with servers(tmp_path_factory.mktemp("shared")) as start:
        yield start()


@pytest.fixture(scope="module")
def rough(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose worker obeys prompts (`rough_worker.py`), shared by the tests of a file."""
    with servers(tmp_path_factory.mktemp("rough")) as start:
        yield start(rough=True)


@pytest.fixture
def decoding(demo_copy: Path, edit_tensors: Callable[..., None]) -> Path:
    """A checkpoint whose VAE can only decode."""

    def cut(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.startswith("encoder.")]:
            del tensors[name]

    edit_tensors(demo_copy / "vae" / "diffusion_pytorch_model.safetensors", cut)
    return demo_copy


@contextmanager
def servers(data_dir: Path) -> Iterator[ServerFactory]:
    started: list[Served] = []

    def start(*, rough: bool = False, **flags: Any) -> Served:
        flags = {"engine": "null", "port": 0, "data_dir": data_dir, **flags}
        named = {f"--{name.replace('_', '-')}": value for name, value in flags.items()}
        words = [name if value is True else f"{name}={value}" for name, value in named.items()]
        program = [str(ROUGH_WORKER)] if rough else ["-m", "sd35", "serve"]
        process = subprocess.Popen(
            [sys.executable, *program, *words], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("sd35 serves on "), line
        url = line.split()[-1]
        served = Served(process, url, httpx2.Client(base_url=url, timeout=60))
        started.append(served)
        _await_ready(served)
        return served

    yield start
    for served in started:
        served.client.close()
        served.process.kill()
        served.process.wait()
        if served.process.stdout is not None:
            served.process.stdout.close()


def _await_ready(served: Served) -> None:
    """A bound socket queues connections, so the first request waits for the server by itself."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            if served.client.get("/readyz").status_code == 200:
                return
        except httpx2.TransportError:
            assert served.process.poll() is None, "the server died"
    raise AssertionError("the server is not ready")


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Server]:
    """A running S3 server with one bucket, `pictures`."""
    (tmp_path / "s3" / "pictures").mkdir(parents=True)
    server = S3Server(tmp_path / "s3")
    server.start()
    yield server
    server.stop()
