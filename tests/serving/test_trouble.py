"""Around a server that runs, things break: it says so in words, loses nothing and needs no restart."""

import hashlib
import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sd35.serving.store import LOCK_S

from .conftest import Served, ServerFactory
from .stores import ACCESS_KEY, SECRET_KEY, S3Server

AWAY_S = float(os.environ.get("SD35_STORE_AWAY_S", "0"))
JOB = {"prompt": "a fox", "width": 64, "height": 64, "num_inference_steps": 1}


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another process's write transaction, for as long as the block."""
    holder = sqlite3.connect(database, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        holder.execute("ROLLBACK")
        holder.close()


def refused(served: Served, words: str) -> None:
    """A job is refused with 503, these words and an invitation to come again."""
    answer = served.client.post("/api/v1/jobs", json=JOB)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (503, "store_failed"), answer.text
    assert words in error["message"]
    assert answer.headers["retry-after"] == "5"


def cancel(served: Served, job_id: str) -> threading.Thread:
    """A client that cancels; it is answered when the database has it."""
    thread = threading.Thread(target=served.client.delete, args=(f"/api/v1/jobs/{job_id}",))
    thread.start()
    return thread


def test_locked_database_is_told_and_passes(start_server: ServerFactory, tmp_path: Path) -> None:
    """Sixteen clients are refused together, not one after the other; reading works on; then all is well."""
    served = start_server()
    earlier = served.end(served.post()["id"])
    with locked(tmp_path / "data" / "jobs.sqlite3"):
        clients = [threading.Thread(target=refused, args=(served, "another process")) for _ in range(16)]
        for client in clients:
            client.start()
        assert served.job(earlier["id"]) == earlier
        for client in clients:
            client.join(30)
        assert not any(client.is_alive() for client in clients)
    assert served.end(served.post()["id"])["state"] == "succeeded"


def test_job_that_ends_while_the_database_is_locked(start_server: ServerFactory, tmp_path: Path) -> None:
    """Its end is not told while it can't be written; once the lock is gone it is, and a restart knows it."""
    served, database = start_server(rough=True), tmp_path / "data" / "jobs.sqlite3"
    slow = served.post(prompt="slow")["id"]
    served.until(slow, lambda name, data: name == "progress")
    job_id = served.post(prompt="brief")["id"]
    with locked(database):
        cancelling = cancel(served, slow)
        served.until(job_id, lambda name, data: data.get("state") == "saving")
        threading.Event().wait(2 * LOCK_S)
        assert served.job(job_id)["state"] == "saving"
    cancelling.join(30)
    ended = served.end(job_id)
    assert (ended["state"], served.job(slow)["state"]) == ("succeeded", "cancelled")
    served.kill()
    again = start_server(rough=True).job(job_id)
    assert (again["state"], again["images"][0]["sha256"]) == ("succeeded", ended["images"][0]["sha256"])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    disk = tmp_path / "data"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here, root or not")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_full_disk_is_told_and_passes(small_disk: Path, start_server: ServerFactory) -> None:
    """With the disk full, jobs are refused, and what is there is delivered; with room it goes on."""
    served = start_server()
    done = served.end(served.post()["id"])
    _fill(small_disk / "ballast")
    refused(served, "its disk is full")
    assert _delivered(served, done)
    (small_disk / "ballast").unlink()
    assert served.end(served.post()["id"])["state"] == "succeeded"


def test_picture_without_room_fails_in_words(small_disk: Path, start_server: ServerFactory) -> None:
    """A picture that the disk can't take is the end of its job, which says why; the next one is drawn."""
    served = start_server(rough=True)
    slow, brief = served.post(prompt="slow")["id"], served.post(prompt="brief")["id"]
    served.until(slow, lambda name, data: name == "progress")
    _fill(small_disk / "ballast")
    cancelling = cancel(served, slow)  # its end waits for room too
    served.until(brief, lambda name, data: data.get("state") == "saving")
    threading.Event().wait(0.5)  # while there is no room, it must find that out
    (small_disk / "ballast").unlink()
    job = served.end(brief)
    cancelling.join(30)
    assert (job["state"], job["error"]["code"], served.job(slow)["state"]) == (
        "failed", "storage_failed", "cancelled",
    )  # fmt: skip
    assert "No space left on device" in job["error"]["message"]
    assert served.end(served.post()["id"])["state"] == "succeeded"


def _fill(file: Path) -> None:
    """Write until nothing fits any more."""
    with file.open("wb", buffering=0) as ballast, suppress(OSError):
        while ballast.write(bytes(4096)):
            pass


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The flags of a server that stores there; its keys are in the environment, as a person's would be."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    return {"bucket": "s3://pictures", "s3_endpoint": f"http://127.0.0.1:{s3.port}"}


@pytest.mark.server
def test_store_away_for_a_while_loses_nothing(
    s3: S3Server, bucket: dict[str, Any], start_server: ServerFactory
) -> None:
    """Jobs succeed while the object store is stopped; their pictures are there, and in it when it is back."""
    served = start_server(**bucket)
    before = served.end(served.post()["id"])
    s3.stop()
    back_at, meanwhile = time.monotonic() + AWAY_S, []
    while len(meanwhile) < 8 or time.monotonic() < back_at:
        meanwhile.append(served.end(served.post(seed=len(meanwhile))["id"]))
        threading.Event().wait(AWAY_S / 200)
    assert all(_delivered(served, job) for job in meanwhile)
    s3.start()
    _await_all(s3, [before, *meanwhile])
    assert all(str(s3.port) in served.job(job["id"])["images"][0]["url"] for job in meanwhile)
    assert all(_delivered(served, served.job(job["id"])) for job in meanwhile)


@pytest.mark.server
def test_refused_keys_are_mended_without_a_restart(
    s3: S3Server, bucket: dict[str, Any], start_server: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that denies access costs no picture; once it knows the key, what waited is in it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody-else")
    served = start_server(**bucket)
    jobs = [served.end(served.post(seed=seed)["id"]) for seed in range(3)]
    assert [job["state"] for job in jobs] == ["succeeded"] * 3
    assert all(_delivered(served, job) for job in jobs)
    assert not list((s3.root / "pictures").iterdir())
    s3.stop()
    s3.start(access_key="somebody-else")
    _await_all(s3, jobs)


def _delivered(served: Served, job: dict[str, Any]) -> bool:
    """Whether the address in the job leads to the picture that its hash says."""
    (image,) = job["images"]
    content = httpx2.get(image["url"]).raise_for_status().content
    return hashlib.sha256(content).hexdigest() == image["sha256"]


def _await_all(s3: S3Server, jobs: list[dict[str, Any]]) -> None:
    wanted = {job["images"][0]["sha256"] for job in jobs}
    for _ in range(600):
        files = (s3.root / "pictures").iterdir()
        if wanted <= {hashlib.sha256(file.read_bytes()).hexdigest() for file in files}:
            return
        threading.Event().wait(0.1)
    raise AssertionError("pictures are missing in the store")
