"""A person draws with the bundled model: from the first word to the file on the disk."""

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sd35 import png
from serving.conftest import Served

from .conftest import Visitor, until

pytestmark = pytest.mark.server

FOX = "a fox, cartoon style, on a green background"


def draw(page: Any, prompt: str, steps: int = 6) -> dict[str, Any]:
    """Type, press Generate, wait for the picture; the job."""
    before = page.locator("#tiles li").count()
    set_steps(page, steps)
    page.fill("#prompt", prompt)
    page.click("#go")
    until(
        page,
        "count => document.querySelectorAll('#tiles .tile img[width]').length > count"
        " && document.querySelector('.stage .actions')",
        before,
    )
    return shown(page)


def set_steps(page: Any, steps: int) -> None:
    """Few steps: these tests look at the page, not at the model."""
    if page.locator("#advanced[open]").count() == 0:
        page.click("#advanced > summary")
    page.fill("#steps", str(steps))
    page.press("#steps", "Tab")


def shown(page: Any) -> dict[str, Any]:
    """The job on the stage, as the server has it."""
    job_id = page.url.partition("#")[2].partition("/")[0]
    return page.request.get(f"{page.url.partition('#')[0]}api/v1/jobs/{job_id}").json()


def png_bytes(served: Served, job: dict[str, Any], index: int = 0) -> bytes:
    """A picture's file."""
    return served.client.get(job["images"][index]["url"]).raise_for_status().content


def test_from_an_example_to_a_file(drawing: Served, visit: Visitor, tmp_path: Path) -> None:
    """Choose an example, watch the steps, see picture, seconds and seed, download the stored file."""
    page = visit(drawing.url)
    page.click(".welcome li:first-child button")
    assert page.input_value("#prompt") == "a red apple, glossy style, on a blue background"
    page.click("#go")
    page.wait_for_selector("#go.is-cancel")
    until(page, "/^Step \\d+ of 28/.test(document.querySelector('.status')?.textContent)")
    bar = page.locator(".stage [role=progressbar]")
    assert 0 < int(bar.get_attribute("aria-valuenow") or 0) <= 100
    page.wait_for_selector(".stage .actions")
    job = shown(page)
    until(page, "document.querySelector('.stage .frame img').naturalWidth === 256")
    assert f"seed {job['images'][0]['seed']}" in page.inner_text(".facts")
    drawn = sum(job["seconds"][phase] for phase in ("encode", "denoise", "decode"))
    assert page.inner_text(".fact-seconds") == (f"{drawn:.1f} s" if drawn < 9.95 else f"{drawn:.0f} s")
    assert page.inner_text("#precision") == "FP8"
    assert page.inner_text("#go-word") == "Generate"
    with page.expect_download() as download:
        page.click("text=Download")
    assert download.value.suggested_filename.startswith("a-red-apple-glossy-style-on-a-blue-background-")
    download.value.save_as(tmp_path / "apple.png")
    content = (tmp_path / "apple.png").read_bytes()
    assert hashlib.sha256(content).hexdigest() == job["images"][0]["sha256"]
    red, _, blue = Image.open(io.BytesIO(content)).convert("RGB").getpixel((4, 4))
    assert blue > red + 30, "the background is blue"


def test_a_dropped_picture_brings_its_settings_back(drawing: Served, visit: Visitor) -> None:
    """A file of the server's brings back its words from the gallery, and all numbers."""
    page = visit(drawing.url)
    page.click("#shapes label:nth-child(3)")
    job = draw(page, FOX)
    other = visit(drawing.url)
    other.fill("#prompt", "something else")
    drop(other, png_bytes(drawing, job))
    until(other, "document.getElementById('prompt').value.startsWith('a fox')")
    other.click("#advanced > summary")
    assert other.input_value("#seed") == str(job["images"][0]["seed"])
    assert other.input_value("#steps") == "6"
    assert other.get_attribute("#lock", "aria-pressed") == "true"
    assert other.is_checked("#shapes input[value='3:2']")
    assert "Settings taken" in other.inner_text("#toast")


def test_a_picture_of_another_server_brings_its_recipe(drawing: Served, visit: Visitor) -> None:
    """What the gallery does not know is read from the PNG itself: written with its words, and without."""
    page = visit(drawing.url)
    job = draw(page, FOX)
    recipe = json.loads(Image.open(io.BytesIO(png_bytes(drawing, job))).text["sd35"])
    assert "prompt" not in recipe
    texts = {"clip_l": "ein Fuchs, 狐狸", "clip_g": "", "t5": ""}
    recipe |= {"prompt": texts, "negative_prompt": {**texts, "clip_l": "blur"}, "seed": 2**60 + 1}
    drop(page, with_recipe(recipe))
    until(page, "document.getElementById('prompt').value === 'ein Fuchs, 狐狸'")
    assert page.input_value("#negative") == "blur"
    assert page.input_value("#seed") == str(2**60 + 1)
    del recipe["prompt"], recipe["negative_prompt"]
    page.fill("#prompt", "my own words")
    drop(page, with_recipe({**recipe, "seed": 3}))
    until(page, "document.getElementById('seed').value === '3'")
    assert page.input_value("#prompt") == "my own words"
    assert "does not hold its prompt" in page.inner_text("#toast")


def test_a_strangers_picture_has_no_settings(drawing: Served, visit: Visitor) -> None:
    """Chosen for its settings, it is said so, and the form stays."""
    page = visit(drawing.url)
    page.fill("#prompt", "my own words")
    plain = io.BytesIO()
    Image.new("RGB", (8, 8)).save(plain, "PNG")
    file = {"name": "some.png", "mimeType": "image/png", "buffer": plain.getvalue()}
    page.set_input_files("#recall-file", file)
    until(page, "document.getElementById('toast').textContent.includes('no picture of ours')")
    assert page.input_value("#prompt") == "my own words"
    assert page.is_hidden("#start-picture")


def test_copied_python_draws_the_same_picture(drawing: Served, visit: Visitor, tmp_path: Path) -> None:
    """The program on the clipboard, run as it is, gives the same file."""
    page = visit(drawing.url, permissions=["clipboard-read", "clipboard-write"])
    job = draw(page, 'a fox, cartoon style, on a "green" background')
    page.click("text=Code")
    page.click("text=Copy as Python")
    until(page, "document.getElementById('toast').textContent === 'Copied.'")
    program = page.evaluate("navigator.clipboard.readText()")
    run = [sys.executable, "-c", program]
    subprocess.run(run, cwd=tmp_path, check=True, env={**os.environ, "SD35_KEY": "none"}, timeout=120)
    assert (tmp_path / "picture.png").read_bytes() == png_bytes(drawing, job)


def test_copied_curl_asks_for_the_same_picture(drawing: Served, visit: Visitor) -> None:
    """What the shell would send is a request for that picture, apostrophes included."""
    page = visit(drawing.url, permissions=["clipboard-read", "clipboard-write"])
    job = draw(page, "a fox's den, flat style")
    page.click("text=Code")
    page.click("text=Copy as curl")
    until(page, "document.getElementById('toast').textContent === 'Copied.'")
    command = page.evaluate("navigator.clipboard.readText()").partition("\n  | jq")[0]
    listing = "import json, sys; print(json.dumps(sys.argv[1:]))"
    arguments = json.loads(
        subprocess.check_output(
            ["bash", "-c", f'curl() {{ "{sys.executable}" -c \'{listing}\' "$@"; }}\n{command}'],
            text=True,
            env={**os.environ, "SD35_KEY": "none"},
        )
    )
    address, body = arguments[1], json.loads(arguments[-1])
    answer = drawing.client.post(address.removeprefix(drawing.url), json=body).raise_for_status().json()
    assert base64.b64decode(answer["data"][0]["b64_json"]) == png_bytes(drawing, job)


def test_vary_keeps_all_but_the_seed(drawing: Served, visit: Visitor) -> None:
    """One press draws the same request again with another seed, and compare shows both."""
    page = visit(drawing.url)
    first = draw(page, FOX)
    page.click("text=Vary")
    until(page, "id => !location.hash.includes(id)", first["id"])
    page.wait_for_selector(".stage .actions")
    second = shown(page)
    same = {name: value for name, value in first["request"].items() if name != "seed"}
    assert {name: value for name, value in second["request"].items() if name != "seed"} == same
    assert second["request"]["seed"] != first["request"]["seed"]
    page.wait_for_timeout(1600)  # the server has been asked again by then, and told the same
    page.click("text=Compare")
    page.wait_for_selector(".comparison")
    seeds = [job["images"][0]["seed"] for job in (first, second)]
    sides = page.locator(".comparison .facts").all_inner_texts()
    assert [f"Seed {seed}" in side for seed, side in zip(seeds, sides, strict=True)] == [True, True]


def drop(page: Any, content: bytes) -> None:
    """Drop a file onto the page, as a file manager would."""
    transfer = page.evaluate_handle(
        """bytes => { const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], "some.png", {type: "image/png"}));
        return transfer; }""",
        list(content),
    )
    for kind in ("dragenter", "dragover", "drop"):
        page.dispatch_event("main", kind, {"dataTransfer": transfer})
    assert page.is_hidden("#drop")


def with_recipe(recipe: dict[str, Any]) -> bytes:
    """A PNG file that tells this recipe."""
    return png.png_bytes(Image.new("RGB", (16, 16)), recipe)
