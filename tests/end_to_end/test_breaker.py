"""Damaged FP8 weights are found out by what they draw, through the whole server."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sd35.quantization.ready import ready

TASK = {"prompt": "a red apple on a blue background", "width": 64, "height": 64, "num_inference_steps": 3}


def test_overflowing_fp8_weights_are_told_from_a_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One scale of the FP8 folder is far too large: its job fails, the witness draws in bf16, FP8 is accused.

    When the folder is mended, the next trial closes the breaker, and the job that waited is drawn.
    """
    monkeypatch.setenv("SD35_HOME", str(tmp_path / "home"))
    file = next((ready("demo", "fp8") / "transformer").glob("*.safetensors"))
    whole = file.read_bytes()
    _overflow(file)
    with _served(tmp_path / "data") as client:
        ruined = client.post("/api/v1/jobs", json={**TASK, "seed": 1}).json()["id"]
        job = _until(client, f"/api/v1/jobs/{ruined}", lambda row: row["state"] == "failed")
        assert (job["error"]["code"], job["images"]) == ("nan_output", [])
        waiting = client.post("/api/v1/jobs", json={**TASK, "seed": 1}).json()["id"]
        records = _until(client, "/api/v1/records", lambda page: page["data"][-1]["diagnosis"] is not None)
        told = records["data"][-1]["diagnosis"]
        assert told == (
            "FP8 is at fault: in 16 bits the same picture is well drawn; by a fresh worker: not_finite."
        )
        alerts = _until(client, "/api/v1/alerts", lambda page: page["up"])
        assert [(one["name"], told in one["text"]) for one in alerts["up"]] == [("abnormal_pictures", True)]
        assert client.get("/readyz").status_code == 503
        file.write_bytes(whole)
        _until(client, f"/api/v1/jobs/{waiting}", lambda row: row["state"] == "succeeded")
        _until(client, "/api/v1/alerts", lambda page: not page["up"])
        assert client.get("/readyz").status_code == 200


def _overflow(file: Path) -> None:
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    name = max(name for name in tensors if name.endswith("weight_scale"))
    tensors[name] = torch.full_like(tensors[name], 3e30)
    save_file(tensors, file, metadata)


@contextmanager
def _served(data_dir: Path) -> Iterator[httpx2.Client]:
    words = ["--device=cpu", "--port=0", f"--data-dir={data_dir}", "--abnormal-in-a-row=1"]
    server = subprocess.Popen(
        [sys.executable, "-m", "sd35", "serve", *words], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        with httpx2.Client(base_url=server.stdout.readline().split()[-1], timeout=60) as client:
            _await(client)
            yield client
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def _await(client: httpx2.Client) -> None:
    """The address is told before it is listened on."""
    deadline = time.monotonic() + 60
    while True:
        try:
            client.get("/livez")
        except httpx2.TransportError:
            assert time.monotonic() < deadline, "it does not answer"
            time.sleep(0.1)
        else:
            return


def _until(client: httpx2.Client, path: str, wanted: Any) -> Any:
    deadline = time.monotonic() + 200
    while not wanted(answer := client.get(path).json()):
        assert time.monotonic() < deadline, json.dumps(answer)[:2000]
        time.sleep(0.2)
    return answer
