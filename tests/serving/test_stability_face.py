"""Stability's face, asked the way that scripts ask it: a form, sent by `requests`."""

import base64
import io
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from .conftest import Served, ServerFactory

PATH = "/v2beta/stable-image/generate/sd3"
# How Stability's examples make `requests` send a form without a file.
NO_FILE = {"none": ""}


def ask(served: Served, accept: str = "image/*", **fields: Any) -> requests.Response:
    """Send the form."""
    return requests.post(
        served.url + PATH,
        headers={"authorization": "Bearer none", "accept": accept, "stability-client-id": "a-script"},
        files=NO_FILE,
        data={"prompt": "a fox", **fields},
        timeout=60,
    )


@pytest.mark.parametrize("output_format", ["png", "jpeg"])
def test_bytes_with_their_facts_in_headers(served: Served, output_format: str) -> None:
    """The picture is the body; seed, reason and request id stand in the headers."""
    answer = ask(served, output_format=output_format, seed=7)
    assert answer.status_code == 200, answer.text
    assert Image.open(io.BytesIO(answer.content)).format == output_format.upper()
    assert answer.headers["content-type"] == f"image/{output_format}"
    assert (answer.headers["finish-reason"], answer.headers["seed"]) == ("SUCCESS", "7")
    job = served.job(answer.headers["x-request-id"])
    assert (job["state"], job["request"]["seed"]) == ("succeeded", 7)


def test_json_for_who_accepts_it(served: Served) -> None:
    """The same facts in the body, and then not in the headers."""
    answer = ask(served, "application/json", seed=7)
    found = answer.json()
    assert (found["finish_reason"], found["seed"]) == ("SUCCESS", 7)
    assert base64.b64decode(found["image"]) == ask(served, seed=7).content
    assert not {"seed", "finish-reason"} & set(answer.headers)


def test_seed_zero_means_any(served: Served) -> None:
    """Two seeds are drawn, and both are told."""
    seeds = {ask(served, seed=0).headers["seed"] for _ in range(2)}
    assert len(seeds) == 2
    assert "0" not in seeds


@pytest.mark.parametrize(
    ("ratio", "size"),
    [
        ("21:9", (384, 160)),
        ("16:9", (336, 192)),
        ("1:1", (256, 256)),
        ("2:3", (208, 304)),
        ("9:21", (160, 384)),
    ],
)
def test_ratios_are_sizes_that_the_demo_draws(served: Served, ratio: str, size: tuple[int, int]) -> None:
    """About as many pixels as the model's own square."""
    assert Image.open(io.BytesIO(ask(served, aspect_ratio=ratio).content)).size == size


def test_fields_reach_the_job(served: Served) -> None:
    """Negative prompt and guidance are drawn with; fields that nobody knows are ignored."""
    answer = ask(served, negative_prompt="blur", cfg_scale=6.5, style_preset="anime")
    request = served.job(answer.headers["x-request-id"])["request"]
    assert (request["negative_prompt"], request["guidance_scale"], request["n"]) == ("blur", 6.5, 1)


def test_names_of_stability_mean_the_variant_that_is_served(start_server: ServerFactory) -> None:
    """Medium by its name, Large where no name is given, and a header that says what drew."""
    served = start_server(models="demo,large,mine@medium=medium")
    drew = {
        name: ask(served, **({"model": name} if name else {})).headers["x-sd35-model"]
        for name in ("", "sd3.5-medium", "sd3.5-large", "sd3.5-large-turbo", "demo")
    }
    assert drew == {
        "": "large",
        "sd3.5-medium": "mine",
        "sd3.5-large": "large",
        "sd3.5-large-turbo": "demo",
        "demo": "demo",
    }


@pytest.mark.parametrize(
    ("fields", "status", "name", "said"),
    [
        ({"mode": "sideways"}, 400, "bad_request", "mode: Input should be"),
        ({"prompt": ""}, 400, "bad_request", "prompt: Field required"),
        ({"aspect_ratio": "4:3"}, 400, "bad_request", "aspect_ratio: '4:3' is none of 21:9"),
        ({"seed": "many"}, 400, "bad_request", "seed: Input should be a valid number"),
        ({"output_format": "tiff"}, 400, "bad_request", "output_format can't be 'tiff'"),
        ({"model": "dall-e-3"}, 404, "model_not_found", "model: There is no model 'dall-e-3' here"),
        ({"prompt": "x" * 300_000}, 400, "bad_request", "prompt"),
    ],
)
def test_errors_have_stabilitys_shape(
    served: Served, fields: dict[str, str], status: int, name: str, said: str
) -> None:
    """{id, name, errors}, and a sentence that says what is wrong."""
    answer = ask(served, **fields)
    found = answer.json()
    assert (answer.status_code, found["name"], set(found)) == (status, name, {"id", "name", "errors"})
    assert [said in error for error in found["errors"]] == [True]
    assert found["id"] == answer.headers["x-request-id"]


def test_a_body_beyond_the_limit_is_refused(served: Served) -> None:
    """More than the longest picture in a form is not read."""
    answer = requests.post(served.url + PATH, files={"image": ("in.png", bytes(25_000_000))}, timeout=60)
    assert (answer.status_code, answer.json()["name"]) == (413, "payload_too_large")
    assert "send a smaller picture" in answer.json()["errors"][0]


def test_a_job_that_fails_is_named_in_the_error(rough: Served) -> None:
    """The id is the job's, for whoever looks into it."""
    answer = ask(rough, prompt="memory")
    assert (answer.status_code, answer.json()["name"]) == (500, "internal_error")
    assert rough.job(answer.json()["id"])["error"]["code"] == "out_of_memory"


def test_a_refused_prompt_is_content_moderation(start_server: ServerFactory, tmp_path: Path) -> None:
    """403, as Stability answers it."""
    policy = tmp_path / "policy.yaml"
    policy.write_text("lists: {animals: {terms: [fox]}}", encoding="utf-8")
    answer = ask(start_server(policy=policy))
    assert (answer.status_code, answer.json()["name"]) == (403, "content_moderation")


def test_a_held_back_picture_is_an_empty_one(
    start_server: ServerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 with CONTENT_FILTERED, and nothing of the picture: one grey all over, of the right size."""
    package = tmp_path / "site"
    (package / "strict-1.0.dist-info").mkdir(parents=True)
    (package / "strict-1.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: strict\nVersion: 1.0\n"
    )
    (package / "strict-1.0.dist-info/entry_points.txt").write_text(
        "[sd35.output_checks]\nstrict = strict:Strict\n"
    )
    (package / "strict.py").write_text(
        "from sd35.serving.seams import Verdict\n"
        "class Strict:\n"
        "    def judge(self, picture, prompt):\n"
        "        return Verdict(False)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(package), prepend=":")
    answer = ask(start_server(output_check="strict"), aspect_ratio="16:9", output_format="jpeg", seed=3)
    assert (answer.status_code, answer.headers["finish-reason"]) == (200, "CONTENT_FILTERED")
    image = Image.open(io.BytesIO(answer.content))
    assert (image.format, image.size, len(image.getcolors() or [])) == ("JPEG", (336, 192), 1)
    assert answer.headers["seed"] == "3"


def test_keys_are_asked_for(start_server: ServerFactory, tmp_path: Path) -> None:
    """Without a key 401 in this face's shape."""
    from sd35.serving.keys import KeyStore

    _, key = KeyStore(tmp_path / "data").add("script")
    served = start_server()
    answer = ask(served)
    assert (answer.status_code, answer.json()["name"]) == (401, "unauthorized")
    drawn = requests.post(
        served.url + PATH, headers={"authorization": f"Bearer {key}"}, files=NO_FILE,
        data={"prompt": "a fox"}, timeout=60,
    )  # fmt: skip
    assert drawn.status_code == 200
