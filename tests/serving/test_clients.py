"""Programs that people have, by the requests that they send: each draws with nothing but another URL.

The requests follow the programs' own code: Open WebUI `backend/open_webui/routers/images.py`, LibreChat
`api/app/clients/tools/structured/{OpenAIImageTools,StableDiffusion}.js`, SillyTavern
`src/endpoints/stable-diffusion.js` and `public/scripts/extensions/stable-diffusion/index.js`. What a test
reads of an answer is what the program reads.
"""

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from sd35.serving.keys import KeyStore

from .conftest import Served, ServerFactory

LISTS = ("samplers", "schedulers", "upscalers", "latent-upscale-modes")


@pytest.fixture
def key_and_server(start_server: ServerFactory, tmp_path: Path) -> tuple[str, Served]:
    """A server that asks for a key, and a key."""
    _, key = KeyStore(tmp_path / "data").add("client")
    return key, start_server()


@contextmanager
def speaking(served: Served, authorization: str) -> Iterator[httpx2.Client]:
    """A client that sends this header with everything."""
    headers = {"Authorization": authorization}
    with httpx2.Client(base_url=served.url, headers=headers, timeout=60) as client:
        yield client


def basic(user_and_password: str) -> str:
    """As JavaScript's and Python's programs both make it."""
    return "Basic " + base64.b64encode(user_and_password.encode()).decode()


def size_of(encoded: str) -> tuple[int, int]:
    """Of a picture in base64."""
    return Image.open(io.BytesIO(base64.b64decode(encoded))).size


def test_open_webui_with_openais_engine(key_and_server: tuple[str, Served]) -> None:
    """It has a model list of its own, names an API version, and wants base64."""
    key, served = key_and_server
    body = {"model": "dall-e-2", "prompt": "a fox", "n": 2, "size": "512x512", "response_format": "b64_json"}
    with speaking(served, f"Bearer {key}") as client:
        answer = client.post("/v1/images/generations?api-version=2025-04-01-preview", json=body)
    rows = answer.raise_for_status().json()["data"]
    assert [row.get("url") for row in rows] == [None, None]
    assert [size_of(row["b64_json"]) for row in rows] == [(512, 512)] * 2


def test_open_webui_with_automatic1111s_engine(key_and_server: tuple[str, Served]) -> None:
    """It lists, sends the options back with another checkpoint, draws, and needs `info`."""
    key, served = key_and_server
    with speaking(served, basic(f"openwebui:{key}")) as client:
        options = client.get("/sdapi/v1/options").raise_for_status().json()
        models = client.get("/sdapi/v1/sd-models").raise_for_status().json()
        rows = [{"id": model["title"], "name": model["model_name"]} for model in models]
        assert rows == [{"id": options["sd_model_checkpoint"], "name": "demo"}]
        options["sd_model_checkpoint"] = rows[0]["id"]
        client.post("/sdapi/v1/options", json=options).raise_for_status()
        body = {
            "prompt": "a fox",
            "batch_size": 2,
            "width": 512,
            "height": 512,
            "steps": 50,
            "negative_prompt": "blur",
        }
        found = client.post("/sdapi/v1/txt2img", json=body).raise_for_status().json()
    assert [size_of(image) for image in found["images"]] == [(512, 512)] * 2
    info = json.loads(found["info"])
    assert (info["steps"], info["negative_prompt"]) == (50, "blur")


def test_librechat_with_openais_tool(key_and_server: tuple[str, Served]) -> None:
    """It knows one model of OpenAI's and sends fields that only that one has."""
    key, served = key_and_server
    body = {
        "model": "gpt-image-1", "prompt": "a fox", "n": 1, "background": "transparent",
        "output_format": "webp", "output_compression": 100, "quality": "auto", "size": "auto",
    }  # fmt: skip
    with speaking(served, f"Bearer {key}") as client:
        row = client.post("/v1/images/generations", json=body).raise_for_status().json()["data"][0]
    assert Image.open(io.BytesIO(base64.b64decode(row["b64_json"]))).format == "WEBP"


def test_librechat_with_stable_diffusion(served: Served) -> None:
    """It always asks for 1024 x 1024, and reads seed, width, height and the infotext's last line."""
    body = {
        "prompt": "a fox, red fur", "negative_prompt": "blurry, grey", "cfg_scale": 4.5, "steps": 22,
        "width": 1024, "height": 1024,
    }  # fmt: skip
    found = served.client.post("/sdapi/v1/txt2img", json=body).raise_for_status().json()
    info = json.loads(found["info"])
    assert size_of(found["images"][0].split(",", 1)[0]) == (info["width"], info["height"])
    last = info["infotexts"][0].split("\n")[-1]
    assert last.startswith("Steps: 22, ")
    assert f"Seed: {info['seed']}" in last


def test_sillytavern(key_and_server: tuple[str, Served]) -> None:
    """It fills its lists, sets the model, waits for idleness, and sends its own URL and password along."""
    key, served = key_and_server
    auth = f"sillytavern:{key}"
    with speaking(served, basic(auth)) as client:

        def listed(name: str) -> Any:
            return client.get(f"/sdapi/v1/{name}").raise_for_status().json()

        assert "forge_preset" not in listed("options")
        lists = {name: [row["name"] for row in listed(name)] for name in LISTS}
        assert lists["samplers"] == ["Euler"]
        assert [row["model_name"] for row in listed("sd-vae")] == []
        model = next(row["title"] for row in listed("sd-models"))
        client.post("/sdapi/v1/options", json={"sd_model_checkpoint": model}).raise_for_status()
        idle = listed("progress")
        assert (idle["progress"], idle["state"]["job_count"]) == (0, 0)
        body = {
            "url": served.url, "auth": auth, "prompt": "a fox", "negative_prompt": "blur",
            "sampler_name": "Euler a", "scheduler": "karras", "steps": 20, "cfg_scale": 7,
            "width": 512, "height": 512, "restore_faces": False, "clip_skip": 1,
            "enable_hr": True, "hr_upscaler": "Latent", "hr_scale": 1.5, "hr_additional_modules": [],
            "denoising_strength": 0.7, "hr_second_pass_steps": 0,
            "override_settings": {"CLIP_stop_at_last_layers": 1},
            "override_settings_restore_afterwards": True, "save_images": True, "send_images": True,
            "do_not_save_grid": False, "do_not_save_samples": False,
        }  # fmt: skip
        found = client.post("/sdapi/v1/txt2img", json=body).raise_for_status().json()
        assert client.post("/sdapi/v1/interrupt").raise_for_status().json() == {}
    assert size_of(found["images"][0]) == (512, 512)
    assert key not in json.dumps(found)


def test_the_bundled_model_draws_for_them(start_server: ServerFactory) -> None:
    """Real pictures by both foreign faces, the same one for the same seed."""
    served = start_server(engine="sd35")
    body = {"prompt": "a red apple", "seed": 5, "steps": 2, "width": 64, "height": 64, "cfg_scale": 4}
    first, again = (
        served.client.post("/sdapi/v1/txt2img", json=body).raise_for_status().json() for _ in range(2)
    )
    assert first["images"] == again["images"]
    picture = Image.open(io.BytesIO(base64.b64decode(first["images"][0])))
    assert len(picture.getcolors(64 * 64) or []) > 100
    form = {"prompt": "a red apple", "aspect_ratio": "16:9", "seed": "5"}
    answer = served.client.post(
        "/v2beta/stable-image/generate/sd3", data=form, files={"none": b""}, headers={"accept": "image/*"}
    )
    assert answer.status_code == 200, answer.text
    assert Image.open(io.BytesIO(answer.content)).size == (336, 192)
    counted = served.client.get("/metrics").text
    assert 'sd35_requests_total{face="sdapi",model="demo",outcome="succeeded"} 2.0' in counted
    assert 'sd35_requests_total{face="stability",model="demo",outcome="succeeded"} 1.0' in counted
