"""Every face draws from a picture, and the same job comes of it; with the clients that people use."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import openai
import pytest
import webuiapi
from PIL import Image

from sd35.pictures_in.source_picture import SourcePicture

from . import real_clients
from .conftest import Served, ServerFactory

SD3 = "/v2beta/stable-image/generate/sd3"


def picture(width: int = 96, height: int = 64, colour: str = "teal") -> Image.Image:
    """A picture to begin with."""
    return Image.new("RGB", (width, height), colour)


def png(image: Image.Image) -> bytes:
    """As a file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def name_of(image: Image.Image) -> str:
    """What an upload of it is called."""
    return SourcePicture(image.width, image.height, image.tobytes()).sha256


def last_request(served: Served) -> dict[str, Any]:
    """What the latest job was accepted as."""
    return served.client.get("/api/v1/jobs?limit=1").json()["data"][0]["request"]


def openai_client(served: Served) -> openai.OpenAI:
    """The package's client with nothing but another address."""
    return real_clients.openai_client(served.url)


def webui(served: Served) -> webuiapi.WebUIApi:
    """Of AUTOMATIC1111's API."""
    return real_clients.webui_client(served.url, steps=4)


def begun(served: Served, image: Image.Image) -> tuple[bool, float, int, int]:
    """Whether the latest job begins with this picture, its strength and size."""
    request = last_request(served)
    is_it = request["image"] == name_of(image)
    return is_it, request["strength"], request["width"], request["height"]


@pytest.mark.parametrize(
    ("more", "strength"),
    [
        ({}, 0.6),
        ({"input_fidelity": "high"}, 0.45),
        ({"input_fidelity": "low"}, 0.75),
        ({"input_fidelity": "low", "extra_body": {"strength": 0.3}}, 0.3),
    ],
)
def test_openai_edits(served: Served, more: dict[str, Any], strength: float) -> None:
    """`images.edit` begins with the picture, in its shape, and as near to it as was asked."""
    source = picture()
    answer = openai_client(served).images.edit(image=("in.png", png(source)), prompt="a fox", n=2, **more)
    assert answer.data is not None
    drawn = [Image.open(io.BytesIO(base64.b64decode(one.b64_json or ""))) for one in answer.data]
    assert begun(served, source) == (True, strength, *drawn[0].size)
    assert len(drawn) == 2
    assert drawn[0].width / drawn[0].height == pytest.approx(1.5, abs=0.1)
    tokens = drawn[0].width * drawn[0].height // 256
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (tokens, 2 * tokens)


def test_openai_edits_of_a_list_at_a_size(served: Served) -> None:
    """A list of one picture is one picture; a size that is given holds."""
    source = picture(colour="red")
    options: dict[str, Any] = {"prompt": "a fox", "size": "128x64", "output_format": "webp"}
    openai_client(served).images.edit(image=[("in.png", png(source))], **options)
    assert begun(served, source) == (True, 0.6, 128, 64)
    with pytest.raises(openai.BadRequestError, match="2 pictures came"):
        openai_client(served).images.edit(image=[("a.png", b"1"), ("b.png", b"2")], prompt="a fox")


def test_openai_edits_as_a_stream(served: Served) -> None:
    """The events are those of edits, and the last one has the picture."""
    stream = openai_client(served).images.edit(
        image=png(picture()), prompt="a fox", stream=True, partial_images=1
    )
    events = list(stream)
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert Image.open(io.BytesIO(base64.b64decode(events[-1].b64_json))).format == "PNG"


def test_a_mask_is_refused(served: Served) -> None:
    """By OpenAI's face and AUTOMATIC1111's: no part of a picture is kept, and nobody is to think so."""
    with pytest.raises(openai.BadRequestError, match="leave the mask out") as caught:
        openai_client(served).images.edit(image=png(picture()), mask=png(picture()), prompt="a fox")
    assert caught.value.param == "mask"
    with pytest.raises(RuntimeError, match="leave the mask out"):
        webui(served).img2img(images=[picture()], mask_image=picture(), prompt="a fox")


def test_webuiapi_img2img(served: Served) -> None:
    """`img2img` begins with the picture, at the size that the client says, and tells its strength."""
    source = picture(colour="olive")
    drawn = webui(served).img2img(
        images=[source], prompt="a fox", denoising_strength=0.5, width=96, height=96, seed=3
    )
    assert begun(served, source) == (True, 0.5, 96, 96)
    assert drawn.image.size == (96, 96)
    assert (drawn.info["denoising_strength"], drawn.info["seed"]) == (0.5, 3)
    assert "Denoising strength: 0.5" in drawn.info["infotexts"][0]
    assert drawn.parameters["init_images"] is None  # not sent back


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_img2img_without_a_size_keeps_the_shape(served: Served, prefix: str) -> None:
    """Base64 comes with and without its prefix; the size follows the picture."""
    source = picture(64, 128, "navy")
    encoded = prefix + base64.b64encode(png(source)).decode()
    body = {"prompt": "a fox", "init_images": [encoded], "denoising_strength": 0.9, "steps": 2}
    served.client.post("/sdapi/v1/img2img", json=body).raise_for_status()
    is_it, strength, width, height = begun(served, source)
    assert (is_it, strength, width < height) == (True, 0.9, True)


def test_stability_image_to_image(served: Served) -> None:
    """The mode with a picture and a strength; the shape is the picture's, whatever aspect_ratio says."""
    source = picture(64, 128, "purple")
    form = {"prompt": "a fox", "mode": "image-to-image", "strength": "0.25", "aspect_ratio": "16:9"}
    answer = served.client.post(
        SD3, data=form, files={"image": ("in.png", png(source), "image/png")}, headers={"accept": "image/*"}
    )
    assert answer.headers["finish-reason"] == "SUCCESS"
    width, height = Image.open(io.BytesIO(answer.content)).size
    assert begun(served, source) == (True, 0.25, width, height)
    assert width < height


@pytest.mark.parametrize(
    ("form", "files", "said"),
    [
        ({"mode": "image-to-image"}, {"none": b""}, "begins with a picture"),
        ({"mode": "text-to-image"}, {"image": ("a.png", b"1")}, "say image-to-image"),
        ({"mode": "image-to-image"}, {"image": ("a.png", b"no picture")}, "image: "),
        ({"mode": "image-to-image", "strength": "0"}, {"image": ("a.png", png(picture()))}, "strength"),
        ({"mode": "image-to-image", "strength": "2"}, {"image": ("a.png", png(picture()))}, "strength"),
    ],
)
def test_stability_says_what_is_wrong(
    served: Served, form: dict[str, str], files: dict[str, Any], said: str
) -> None:
    """In its shape of errors."""
    answer = served.client.post(SD3, data={"prompt": "a fox", **form}, files=files)
    assert (answer.status_code, answer.json()["name"]) == (400, "bad_request")
    assert said in answer.json()["errors"][0]


@pytest.mark.parametrize("path", ["/v1/images/edits", "/sdapi/v1/img2img"])
def test_what_is_no_picture_is_refused(served: Served, path: str) -> None:
    """One sentence in the face's shape, and no job."""
    before = last_request(served)
    if path.startswith("/v1"):
        answer = served.client.post(path, data={"prompt": "a fox"}, files={"image": ("a.png", b"GIF89a...")})
        said = answer.json()["error"]["message"]
    else:
        encoded = base64.b64encode(b"GIF89a...").decode()
        answer = served.client.post(path, json={"prompt": "a fox", "init_images": [encoded]})
        said = answer.json()["detail"]
    assert answer.status_code == 400
    assert "PNG, JPEG" in said
    assert last_request(served) == before


def test_a_model_without_an_encoder_is_told_beforehand(start_server: ServerFactory, decoding: Path) -> None:
    """Clients see which models can begin with a picture, and those that can't refuse one at once."""
    served = start_server(models=f"demo,half@demo={decoding},away@demo=/no/such/place")
    models = served.client.get("/api/v1/capabilities").json()["models"]
    assert {model["id"]: model["image_to_image"] for model in models} == {
        "demo": True, "half": False, "away": True,
    }  # fmt: skip
    body = {"prompt": "a fox", "model": "half", "image": base64.b64encode(png(picture())).decode()}
    answer = served.client.post("/api/v1/jobs", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image")
    assert "no encoder" in answer.json()["error"]["message"]
    served.client.post("/api/v1/jobs", json={"prompt": "a fox", "model": "half"}).raise_for_status()


def test_a_large_picture_passes_where_pictures_may_come(served: Served) -> None:
    """A body of a megabyte is a picture here, and too long where only text is expected."""
    source = Image.effect_noise((1200, 1200), 90).convert("RGB")
    data = png(source)
    assert len(data) > 1_000_000
    openai_client(served).images.edit(image=data, prompt="a fox", size="64x64")
    assert begun(served, source)[0]
    encoded = base64.b64encode(data).decode()
    answer = served.client.post("/sdapi/v1/txt2img", json={"prompt": "a fox", "init_images": [encoded]})
    assert answer.status_code == 413


def test_a_side_that_no_float_holds_is_refused(served: Served) -> None:
    """The other side would follow it; it is told in a sentence that it is too large."""
    body = {"prompt": "a fox", "width": 16 * 10**400, "image": base64.b64encode(png(picture())).decode()}
    answer = served.client.post("/api/v1/jobs", json=body)
    assert answer.status_code == 400
    assert "outside its range" in answer.json()["error"]["message"]


def test_open_webui_edits(served: Served) -> None:
    """Its request: `image` for one picture, `image[]` for several, everything as text in a form."""
    source = picture(colour="gold")
    form = {
        "model": "gpt-image-1",
        "prompt": "a fox",
        "n": "1",
        "size": "64x64",
        "response_format": "b64_json",
    }
    answer = served.client.post(
        "/v1/images/edits", data=form, files=[("image", ("image.png", png(source), "image/png"))]
    )
    row = answer.raise_for_status().json()["data"][0]
    assert Image.open(io.BytesIO(base64.b64decode(row["b64_json"]))).size == (64, 64)
    assert begun(served, source)[0]


def test_librechat_edits(served: Served) -> None:
    """Its editing tool sends `image[]`, and fields of a model that is not here."""
    source = picture(colour="pink")
    form = {
        "model": "gpt-image-1", "prompt": "a fox", "quality": "auto", "size": "auto",
        "background": "transparent", "output_format": "png",
    }  # fmt: skip
    answer = served.client.post(
        "/v1/images/edits", data=form, files=[("image[]", ("image_1.png", png(source), "image/png"))]
    )
    assert answer.raise_for_status().json()["data"][0]["b64_json"]
    assert begun(served, source)[0]


def test_png_info_of_our_picture(start_server: ServerFactory) -> None:
    """Read by webuiapi from the file: words and settings, as they were drawn with."""
    served = start_server(prompt_in_pictures=True)
    client = webui(served)
    drawn = client.txt2img(prompt="a fox, red", negative_prompt="blur", seed=7, width=64, height=32)
    found = client.png_info(drawn.image)
    assert found.info == drawn.info["infotexts"][0].replace("Model: demo", "Model hash: null")
    assert (found.parameters["Seed"], found.parameters["Size"]) == (7, "64x32")


def test_png_info_of_strangers(served: Served) -> None:
    """A file without our recipe, or with something else under its name, is answered with nothing."""
    foreign = picture()
    odd = picture()
    odd.info["sd35"] = json.dumps({"seed": "many"})
    for image in (foreign, odd):
        found = webui(served).png_info(image)
        assert (found.info, found.parameters) == ("", {})


def test_memory(served: Served) -> None:
    """The machine's is told in bytes; a card's only where there is one."""
    found = webui(served).get_memory()
    assert 0 < found["ram"]["free"] < found["ram"]["total"]
    assert found["ram"]["used"] + found["ram"]["free"] == found["ram"]["total"]
    assert set(found["cuda"]) == {"error"}


def test_the_bundled_model_keeps_of_it_what_it_may(start_server: ServerFactory) -> None:
    """Real pictures by each face: the less may change, the nearer to what it begins with."""
    served = start_server(engine="sd35")
    apple = {"prompt": "a red apple, flat style, on a blue background", "seed": 1}
    drawn = served.client.post("/v1/images/generations", json=apple).raise_for_status().json()
    source = base64.b64decode(drawn["data"][0]["b64_json"])
    words = "a green apple, flat style, on a yellow background"
    more: dict[str, Any] = {"seed": 3, "strength": 0.3}
    edited = openai_client(served).images.edit(image=source, prompt=words, extra_body=more)
    assert edited.data is not None
    near = base64.b64decode(edited.data[0].b64_json or "")
    form = {"prompt": words, "seed": "3", "mode": "image-to-image", "strength": "0.9"}
    far = served.client.post(SD3, data=form, files={"image": source}, headers={"accept": "image/*"})
    body = {"prompt": words, "seed": 3, "denoising_strength": 0.9}
    body["init_images"] = [base64.b64encode(source).decode()]
    same = served.client.post("/sdapi/v1/img2img", json=body).raise_for_status().json()
    assert pixels(base64.b64decode(same["images"][0])) == pixels(far.content)
    assert distance(source, near) < 0.7 * distance(source, far.content)


def pixels(content: bytes) -> bytes:
    """Of a picture's file."""
    return Image.open(io.BytesIO(content)).convert("RGB").tobytes()


def distance(one: bytes, other: bytes) -> float:
    """Mean difference of two pictures' values, of 255."""
    pairs = zip(pixels(one), pixels(other), strict=True)
    differences = [abs(first - second) for first, second in pairs]
    return sum(differences) / len(differences)
