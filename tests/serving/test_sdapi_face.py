"""AUTOMATIC1111's face, with webuiapi as the client."""

import base64
import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests
import webuiapi
from PIL import Image

from sd35.serving.keys import KeyStore

from . import real_clients
from .conftest import Served, ServerFactory


def client_of(served: Served, **login: str) -> webuiapi.WebUIApi:
    """The package's client with nothing but another address."""
    return real_clients.webui_client(served.url, steps=3, **login)


@pytest.fixture
def client(served: Served) -> webuiapi.WebUIApi:
    """Of the server with the null engine."""
    return client_of(served)


def test_pictures_with_their_info(client: webuiapi.WebUIApi) -> None:
    """batch_size x n_iter pictures, and all that was drawn with."""
    drawn = client.txt2img(
        prompt="a fox, red",
        negative_prompt="blur",
        seed=7,
        width=64,
        height=32,
        batch_size=2,
        n_iter=2,
        cfg_scale=5,
    )
    assert [image.size for image in drawn.images] == [(64, 32)] * 4
    info = drawn.info
    assert (info["seed"], info["all_seeds"]) == (7, [7, 8, 9, 10])
    assert (info["width"], info["height"], info["steps"], info["cfg_scale"]) == (64, 32, 3, 5)
    assert (info["sampler_name"], info["sd_model_name"], info["batch_size"]) == ("Euler", "demo", 2)
    first, second = info["infotexts"][:2]
    prompt, negative, settings = first.split("\n")
    assert (prompt, negative) == ("a fox, red", "Negative prompt: blur")
    assert settings.startswith(
        "Steps: 3, Sampler: Euler, Schedule type: Automatic, CFG scale: 5, Seed: 7, Size: 64x32"
    )
    assert "Seed: 8" in second
    assert drawn.parameters["prompt"] == "a fox, red"


def test_info_is_a_string_of_json(served: Served) -> None:
    """Clients parse it themselves."""
    found = served.client.post("/sdapi/v1/txt2img", json={"prompt": "a fox"}).json()
    assert isinstance(found["info"], str)
    assert json.loads(found["info"])["width"] == 256


def test_seed_below_zero_means_any(client: webuiapi.WebUIApi) -> None:
    """Two seeds are drawn, and both are told."""
    seeds = {client.txt2img(prompt="a fox", width=64, height=64, seed=-1).info["seed"] for _ in range(2)}
    assert len(seeds) == 2


@pytest.mark.parametrize(
    ("asked", "drawn"),
    [((1024, 1024), (512, 512)), ((1344, 768), (512, 288)), ((70, 100), (64, 96)), ((8, 8), (16, 16))],
)
def test_sizes_become_those_that_the_model_draws(
    client: webuiapi.WebUIApi, asked: tuple[int, int], drawn: tuple[int, int]
) -> None:
    """Multiples of 16 within the demo's table, of the same shape; `info` tells."""
    answer = client.txt2img(prompt="a fox", width=asked[0], height=asked[1])
    assert answer.image.size == drawn
    assert (answer.info["width"], answer.info["height"]) == drawn


def test_what_clients_list_before_they_draw(client: webuiapi.WebUIApi) -> None:
    """Every list that the package knows is there, full or empty."""
    assert client.util_get_model_names() == ["demo"]
    assert client.util_get_sampler_names() == ["Euler"]
    assert client.util_get_scheduler_names() == ["automatic"]
    assert client.get_scripts() == {"txt2img": [], "img2img": []}
    assert client.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert client.get_cmd_flags() == {}
    for empty in (
        client.get_upscalers, client.get_latent_upscale_modes, client.get_sd_vae, client.get_loras,
        client.get_hypernetworks, client.get_face_restorers, client.get_realesrgan_models,
        client.get_prompt_styles,
    ):  # fmt: skip
        assert empty() == []
    assert client.refresh_checkpoints() is None


def test_checkpoint_is_chosen_by_options_and_for_one_request(start_server: ServerFactory) -> None:
    """POST options holds from then on, override_settings for its own request."""
    client = client_of(start_server(models="demo,other@demo=demo"))
    assert client.util_get_current_model() == "demo"
    client.util_set_model("other")
    assert client.util_get_current_model() == "other"
    size = {"width": 64, "height": 64}
    once = client.txt2img(prompt="a fox", override_settings={"sd_model_checkpoint": "demo"}, **size)
    after = client.txt2img(prompt="a fox", **size)
    assert [answer.info["sd_model_name"] for answer in (once, after)] == ["demo", "other"]


def test_checkpoint_is_unloaded_and_loaded(start_server: ServerFactory, tmp_path: Path) -> None:
    """Its memory is given back and taken again, by a key that may do so."""
    store = KeyStore(tmp_path / "data")
    admin, plain = (
        {"Authorization": f"Bearer {store.add('key', scopes)[1]}"} for scopes in (["admin"], ["generate"])
    )
    served = start_server()

    def place(wanted: bool) -> str:
        """Where the model is, once it is held, or no longer held."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            (row,) = served.client.get("/api/v1/models", headers=admin).json()["data"]
            if (row["state"] in ("ram", "vram")) is wanted:
                break
            time.sleep(0.05)
        return str(row["state"])

    assert served.client.post("/sdapi/v1/reload-checkpoint", headers=plain).status_code == 403
    assert served.client.post("/sdapi/v1/reload-checkpoint", headers=admin).json() == {}
    assert place(True) in ("ram", "vram")
    assert served.client.post("/sdapi/v1/unload-checkpoint", headers=admin).json() == {}
    assert place(False) == "on_disk"


def test_progress_rises_and_interrupt_ends(rough: Served) -> None:
    """While a picture is drawn progress tells how far; interrupted, it ends and nothing is in hand."""
    client, ending = client_of(rough), []

    def draw() -> None:
        with pytest.raises(RuntimeError) as caught:
            client_of(rough).txt2img(prompt="slow", width=64, height=64)
        ending.append(caught.value.args)

    waiting = threading.Thread(target=draw)
    waiting.start()
    first = _progress(client, lambda found: found["progress"] > 0)
    later = _progress(client, lambda found: found["progress"] > first["progress"])
    assert 0 < first["progress"] < later["progress"] < 1
    assert later["state"]["job_count"] == 1
    assert later["state"]["sampling_step"] > first["state"]["sampling_step"]
    assert later["eta_relative"] > 0
    unfinished = Image.open(io.BytesIO(base64.b64decode(later["current_image"])))
    assert max(unfinished.size) <= 64
    bare = rough.client.get("/sdapi/v1/progress?skip_current_image=true").json()
    assert (bare["current_image"], bare["textinfo"]) == (None, "running")
    client.interrupt()
    waiting.join(5)
    assert [status for status, _ in ending] == [499]
    client.util_wait_for_ready(0.1)
    assert client.get_progress()["progress"] == 0


def test_interrupt_after_hanging_up(rough: Served) -> None:
    """A client that first drops its request and then interrupts ends its job, and at once."""
    with pytest.raises(requests.ReadTimeout):
        requests.post(f"{rough.url}/sdapi/v1/txt2img", json={"prompt": "slow"}, timeout=0.5)
    client = client_of(rough)
    job = _progress(client, lambda found: found["state"]["job_count"] == 1)["state"]["job"]
    client.interrupt()
    assert rough.job(job)["state"] == "cancelled"


def test_interrupt_spares_other_faces(rough: Served) -> None:
    """A job that came by the native face is none of this one's."""
    job = rough.post(prompt="slow")["id"]
    assert client_of(rough).get_progress()["state"]["job_count"] == 0
    client_of(rough).interrupt()
    assert rough.job(job)["state"] in ("queued", "loading", "running")
    rough.client.delete(f"/api/v1/jobs/{job}")


def _progress(client: webuiapi.WebUIApi, wanted: Any) -> dict[str, Any]:
    """The first progress that is as wanted."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if wanted(found := client.get_progress()):
            return found
        time.sleep(0.05)
    raise AssertionError("it never came")


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"steps": 0}, 400, "num_inference_steps is 0"),
        ({"seed": "many"}, 400, "seed: Input should be a valid number"),
        ({"width": -64}, 400, "can't be -64x256"),
        ({"batch_size": 100}, 400, "n can't be 100"),
        (
            {"override_settings": {"sd_model_checkpoint": "larger"}},
            404,
            "no model 'larger' here",
        ),
    ],
)
def test_errors_have_their_shape(served: Served, body: dict[str, Any], status: int, said: str) -> None:
    """{error, detail, body, errors}."""
    answer = served.client.post("/sdapi/v1/txt2img", json={"prompt": "a fox", **body})
    found = answer.json()
    assert (answer.status_code, set(found)) == (status, {"error", "detail", "body", "errors"})
    assert said in found["detail"]


def test_unknown_list_is_not_found(served: Served) -> None:
    """What is not known is not an empty list."""
    answer = served.client.get("/sdapi/v1/controlnets")
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


def test_a_key_opens_as_password_and_as_bearer(start_server: ServerFactory, tmp_path: Path) -> None:
    """Basic with any user's name, Bearer, and without either a 401 that asks for Basic."""
    _, key = KeyStore(tmp_path / "data").add("webui")
    served = start_server()
    drawn = client_of(served, username="anyone", password=key).txt2img(prompt="a fox", width=64, height=64)
    assert drawn.image.size == (64, 64)
    bearer = {"Authorization": f"Bearer {key}"}
    assert served.client.get("/sdapi/v1/options", headers=bearer).status_code == 200
    refused = served.client.get("/sdapi/v1/options")
    assert (refused.status_code, refused.json()["error"]) == (401, "unauthorized")
    assert refused.headers["www-authenticate"].startswith("Basic")


def test_each_key_has_its_own_checkpoint_and_jobs(start_server: ServerFactory, tmp_path: Path) -> None:
    """What one key chooses and draws is nothing to another."""
    store = KeyStore(tmp_path / "data")
    keys = [store.add(name)[1] for name in ("one", "two")]
    served = start_server(rough=True, models="demo,other@demo=demo")
    one, two = (client_of(served, username="x", password=key) for key in keys)
    one.set_options({"sd_model_checkpoint": "other"})
    assert [client.util_get_current_model() for client in (one, two)] == ["other", "demo"]

    def draw() -> None:
        with pytest.raises(RuntimeError):
            one.txt2img(prompt="slow", width=64, height=64)

    waiting = threading.Thread(target=draw)
    waiting.start()
    asking = client_of(served, username="x", password=keys[0])
    _progress(asking, lambda found: found["progress"] > 0)
    two.interrupt()
    assert two.get_progress()["state"]["job_count"] == 0
    assert asking.get_progress()["state"]["job_count"] == 1
    asking.interrupt()
    waiting.join(5)
    assert not waiting.is_alive()


def test_head_works_where_get_does(served: Served) -> None:
    """HEAD has GET's status and headers, and no body."""
    for name in ("options", "progress", "sd-models", "samplers", "schedulers", "upscalers", "scripts"):
        head, get = (served.client.request(method, f"/sdapi/v1/{name}") for method in ("HEAD", "GET"))
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
