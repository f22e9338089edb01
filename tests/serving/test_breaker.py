"""Abnormal pictures in a row stop a worker, and a second opinion says what was at fault."""

import time
from pathlib import Path
from typing import Any

import pytest

from sd35.serving import breaker as breaker_module
from sd35.serving.breaker import Breaker, Commands
from sd35.serving.happenings import Happening
from sd35.serving.jobs import Job, Spec
from sd35.serving.live import LiveJob
from sd35.serving.settings import Model, ServerSettings

from .conftest import Served, ServerFactory

LOOKED_AT = {"rough": True, "engine": "sd35", "abnormal_in_a_row": 2}


def drawn(served: Served, prompt: str, seed: int = 1) -> dict[str, Any]:
    """A job after its end."""
    return served.end(served.post(prompt=prompt, seed=seed)["id"])


def record(served: Served, job_id: str) -> dict[str, Any]:
    """Its record."""
    rows = served.client.get("/api/v1/records").json()["data"]
    return next(row for row in rows if row["id"] == job_id)


def diagnosis(served: Served, job_id: str) -> str:
    """What was found out, once it was."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (text := record(served, job_id)["diagnosis"]) is not None:
            return text
        time.sleep(0.05)
    raise AssertionError("nothing was found out")


def alerts(served: Served) -> dict[str, list[dict[str, Any]]]:
    """Those that are up, and those that are over."""
    return served.client.get("/api/v1/alerts").json()


def await_alert(served: Served, state: str) -> dict[str, Any]:
    """The alert about abnormal pictures, once it is `up` or `over`."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = [one for one in alerts(served)[state] if one["name"] == "abnormal_pictures"]
        if found:
            assert len(found) == 1
            return found[0]
        time.sleep(0.1)
    raise AssertionError(f"no alert is {state}")


def test_a_fault_of_fp8_is_told(start_server: ServerFactory) -> None:
    """Black in FP8 and well in 16 bits: the alert says so, no job is drawn, and /readyz is not ready."""
    served = start_server(**LOOKED_AT)
    drawn(served, "faulty", 1)
    last = drawn(served, "faulty", 2)
    waiting = served.post(prompt="well")["id"]
    assert "FP8 is at fault: in 16 bits the same picture is well drawn" in diagnosis(served, last["id"])
    assert "FP8 is at fault" in await_alert(served, "up")["text"]
    assert served.job(waiting)["state"] == "queued"
    assert served.client.get("/readyz").status_code == 503
    assert [record(served, last["id"])["abnormal"], last["state"]] == ["black", "succeeded"]


def test_a_fresh_worker_may_cure_it(start_server: ServerFactory, tmp_path: Path) -> None:
    """What only the first process does is over with it: the jobs go on, and the alert recovers."""
    served = start_server(**LOOKED_AT)
    first = served.worker_pid() if drawn(served, "well") else None
    prompt = f"faulty once {tmp_path / 'pid'}"
    drawn(served, prompt, 1)
    last = drawn(served, prompt, 2)
    after = drawn(served, "well", 3)
    assert "by a fresh worker: well drawn" in diagnosis(served, last["id"])
    assert (after["state"], record(served, after["id"])["abnormal"]) == ("succeeded", None)
    assert served.worker_pid() != first
    assert "well drawn" in await_alert(served, "over")["text"]
    assert not alerts(served)["up"]


def test_a_prompt_that_is_black_accuses_nobody(start_server: ServerFactory) -> None:
    """Black in 16 bits too: the worker goes on, and more of the same cause no second opinion for a while."""
    served = start_server(**LOOKED_AT)
    drawn(served, "black", 1)
    last = drawn(served, "black", 2)
    assert drawn(served, "well", 3)["state"] == "succeeded"
    assert "FP8 is not at fault: in 16 bits the same picture is black too" in diagnosis(served, last["id"])
    pid = served.worker_pid()
    for seed in (4, 5, 6):
        assert drawn(served, "black", seed)["state"] == "succeeded"
    drawn(served, "well", 7)
    assert served.worker_pid() == pid


def test_good_pictures_between_are_no_row(start_server: ServerFactory) -> None:
    """One abnormal picture after the other counts only without a normal one between."""
    served = start_server(**LOOKED_AT)
    drawn(served, "black", 0)
    pid = served.worker_pid()
    for seed, prompt in enumerate(("well", "black", "well", "black", "well"), start=1):
        drawn(served, prompt, seed)
    assert served.worker_pid() == pid
    assert not alerts(served)["up"]


def test_a_picture_that_is_not_finite_is_not_delivered(start_server: ServerFactory) -> None:
    """The job fails with its reason; nothing is stored, and the record says why."""
    served = start_server(**LOOKED_AT)
    job = drawn(served, "nan")
    assert (job["state"], job["error"]["code"], job["images"]) == ("failed", "nan_output", [])
    assert "try another seed" in job["error"]["message"]
    assert record(served, job["id"])["abnormal"] == "not_finite"
    shown = served.client.get("/metrics").text
    assert 'sd35_abnormal_images_total{reason="not_finite"} 1.0' in shown


def test_without_a_witness_nobody_can_tell(start_server: ServerFactory) -> None:
    """A server that draws in bf16 anyway says that it can't tell, and what a fresh worker drew."""
    served = start_server(**LOOKED_AT, precision="bf16")
    drawn(served, "black", 1)
    last = drawn(served, "black", 2)
    drawn(served, "well", 3)
    text = diagnosis(served, last["id"])
    assert "can't be told whether FP8 is at fault, for there is no 16-bit witness" in text
    assert "by a fresh worker: black" in text


def test_pictures_of_the_null_engine_are_not_looked_at(served: Served) -> None:
    """They are flat on purpose."""
    for seed in range(5):
        assert record(served, drawn(served, "a fox", seed)["id"])["abnormal"] is None


@pytest.mark.parametrize(("exit_code", "said"), [("3", "exit code 3")])
def test_a_witness_that_dies_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, exit_code: str, said: str
) -> None:
    """Its last words are told, the trial of a fresh worker decides, and the next trials come with pauses."""
    import asyncio
    import sys

    told: list[Happening] = []
    dead = (sys.executable, "-c", f"import sys; sys.exit({exit_code})")
    settings = ServerSettings(abnormal_in_a_row=1)
    breaker = Breaker("worker", settings, Commands(dead, dead), told.append)
    model = Model.parse("demo")
    spec = Spec(
        prompt="a fox", negative_prompt="", model="demo", width=64, height=64, num_inference_steps=1,
        guidance_scale=1.0, seed=1, n=1,
    )  # fmt: skip
    retired: list[str] = []

    async def retire() -> None:
        retired.append("yes")

    async def go() -> None:
        live = LiveJob(Job(spec=spec), model)
        breaker._count(live, ["black"])
        assert breaker.is_open
        await breaker.closed(retire)
        assert not breaker.is_open

    asyncio.run(asyncio.wait_for(go(), 60))
    assert retired == ["yes"]
    assert len(told) == 1
    assert f"the 16-bit witness failed: it ended with {said}" in told[0].text  # type: ignore[union-attr]
    assert breaker._calm_until > time.monotonic() + breaker_module.CALM_S / 2
