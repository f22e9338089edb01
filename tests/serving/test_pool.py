"""Models from outside: where they are, loading and unloading, pausing, several workers."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Served, ServerFactory

TWO = "a@demo=demo,b@demo=demo"


def model(served: Served, name: str) -> dict[str, Any]:
    """A model's row."""
    rows = served.client.get("/api/v1/models").raise_for_status().json()["data"]
    return next(row for row in rows if row["id"] == name)


def until(condition: Callable[[], bool]) -> None:
    """Wait for it, ten seconds at most."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def test_models_are_loaded_and_unloaded_on_demand(start_server: ServerFactory) -> None:
    """On disk, ready after a load, away after an unload, and back with a job."""
    served = start_server(models=TWO)
    assert [model(served, name)["state"] for name in "ab"] == ["on_disk", "on_disk"]
    assert served.client.post("/api/v1/models/a/load").status_code == 202
    until(lambda: model(served, "a")["state"] == "vram")
    assert model(served, "a")["bytes"] > 0
    assert model(served, "a")["last_used_at"] == pytest.approx(time.time(), abs=10)
    assert model(served, "b")["state"] == "on_disk"
    served.client.post("/api/v1/models/a/unload").raise_for_status()
    until(lambda: model(served, "a")["state"] == "on_disk")
    assert served.end(served.post(model="a")["id"])["state"] == "succeeded"
    assert model(served, "a")["state"] == "vram"
    assert served.client.post("/api/v1/models/c/load").json()["error"]["code"] == "model_not_found"


def test_two_models_stay_side_by_side(start_server: ServerFactory) -> None:
    """Going to and fro loads each once: only the first job of each has seconds of loading."""
    served = start_server(models=TWO)
    jobs = [served.end(served.post(model=name)["id"]) for name in "abab"]
    assert ["load" in job["seconds"] for job in jobs] == [True, True, False, False]


def test_budget_has_the_older_one_rest(start_server: ServerFactory) -> None:
    """With room for one, the other is in host memory, and wakes for its job."""
    served = start_server(models=TWO, vram="1.5MB")
    for name, places in (("a", ("vram", "on_disk")), ("b", ("ram", "vram")), ("a", ("vram", "ram"))):
        served.end(served.post(model=name)["id"])
        until(lambda places=places: tuple(model(served, one)["state"] for one in "ab") == places)


def test_idle_models_are_put_away(start_server: ServerFactory) -> None:
    """After --rest-s in host memory, after --drop-s gone, with nobody asking; pinned ones stay."""
    served = start_server(models=TWO, rest_s=0.5, drop_s=1.5, pinned="b")
    for name in "ab":
        served.end(served.post(model=name)["id"])
    until(lambda: model(served, "a")["state"] == "ram")
    until(lambda: model(served, "a")["state"] == "on_disk")
    assert model(served, "b")["state"] == "vram"
    assert model(served, "b")["pinned"]


def test_loading_is_told_and_done_once(start_server: ServerFactory) -> None:
    """Percent and seconds left; asking again starts nothing, and a client that won't wait gets a 503."""
    served = start_server(rough=True, models="a@demo=demo,tardy@demo=demo")
    for _ in range(3):
        served.client.post("/api/v1/models/tardy/load").raise_for_status()
    until(lambda: (model(served, "tardy")["loading"] or {}).get("percent", 0) >= 30)
    row = model(served, "tardy")
    assert row["state"] == "loading"
    assert 0 < row["loading"]["eta_s"] < 3
    hasty = {"Prefer": "wait=0"}
    body = {"prompt": "a fox", "model": "tardy", "size": "64x64"}
    answer = served.client.post("/v1/images/generations", json=body, headers=hasty)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_loading")
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["loading"]["percent"] >= 30
    patient = served.client.post("/v1/images/generations", json=body)
    assert patient.status_code == 200
    assert served.client.post("/v1/images/generations", json=body, headers=hasty).status_code == 200
    assert served.client.get("/api/v1/stats").json()["worker"]["holds"] == {"tardy": "vram"}


def test_pause_holds_waiting_jobs(start_server: ServerFactory) -> None:
    """Paused, jobs are accepted and wait; resumed, they are drawn."""
    served = start_server()
    assert served.client.post("/api/v1/pause").json() == {"paused": True, "draining": False}
    job_id = served.post()["id"]
    time.sleep(0.3)
    assert served.job(job_id)["state"] == "queued"
    assert served.client.get("/api/v1/stats").json()["paused"]
    served.client.post("/api/v1/resume").raise_for_status()
    assert served.end(job_id)["state"] == "succeeded"


def test_drain_ends_the_server_and_keeps_what_waits(start_server: ServerFactory) -> None:
    """The running job is done, the waiting one is drawn by the next server."""
    served = start_server(rough=True)
    running, waiting = served.post(prompt="brief")["id"], served.post(width=128)["id"]
    served.until(running, lambda name, data: name == "progress")
    assert served.client.post("/api/v1/drain").status_code == 202
    assert served.process.wait(30) == 0
    following = start_server(rough=True)
    assert following.end(waiting)["state"] == "succeeded"
    assert following.job(running)["attempts"] == 1


def test_each_device_has_a_worker(start_server: ServerFactory, tmp_path: Path) -> None:
    """Two slow jobs run at once on two workers, and one worker's death does not touch the other's job."""
    served = start_server(rough=True, devices="cpu,cpu", max_batch=1)
    slow = [served.post(prompt="slow")["id"] for _ in range(2)]
    for job_id in slow:
        served.until(job_id, lambda name, data: name == "progress")
    workers = served.client.get("/api/v1/stats").json()["workers"]
    assert len({worker["pid"] for worker in workers}) == 2
    assert sorted(job for worker in workers for job in worker["running"]) == sorted(slow)
    served.client.delete(f"/api/v1/jobs/{slow[0]}")
    assert served.end(served.post(prompt=f"die once {tmp_path / 'died'}")["id"])["attempts"] == 2
    assert served.job(slow[1])["state"] == "running"
    served.client.delete(f"/api/v1/jobs/{slow[1]}")


def test_administration_needs_the_scope(start_server: ServerFactory, tmp_path: Path) -> None:
    """A key that draws may look at models, but not load, pause or drain."""
    from sd35.serving.keys import KeyStore

    served = start_server()
    store = KeyStore(tmp_path / "data")
    _, plain = store.add("drawer")
    _, admin = store.add("admin", ["admin"])
    store.close()
    routes = ("models/demo/load", "models/demo/unload", "pause", "resume")
    for key, status in ((plain, 403), (admin, (200, 202))):
        headers = {"Authorization": f"Bearer {key}"}
        for route in routes:
            code = served.client.post(f"/api/v1/{route}", headers=headers).status_code
            assert code in (status if isinstance(status, tuple) else (status,)), route
    plain_headers = {"Authorization": f"Bearer {plain}"}
    assert served.client.get("/api/v1/models", headers=plain_headers).status_code == 200
    assert served.client.post("/api/v1/pause").status_code == 401
