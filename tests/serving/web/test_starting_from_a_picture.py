"""Pictures that begin with a picture, made on the page."""

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sd35.pictures_in.source_picture import SourcePicture
from serving.conftest import Served, servers

from .conftest import Visitor, until
from .test_drawing_pictures import drop
from .test_living_with_it import ask

pytestmark = pytest.mark.server


def png(width: int, height: int, colour: str) -> bytes:
    """A picture's file."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def name_of(content: bytes) -> str:
    """What the server calls it."""
    image = Image.open(io.BytesIO(content))
    return SourcePicture(image.width, image.height, image.convert("RGB").tobytes()).sha256


def choose(page: Any, content: bytes, kind: str = "image/png") -> None:
    """By the file dialogue."""
    page.set_input_files("#start-file", {"name": "mine.png", "mimeType": kind, "buffer": content})


def last(served: Served) -> dict[str, Any]:
    """What the latest job asks for."""
    return served.client.get("/api/v1/jobs?limit=1").json()["data"][0]["request"]


def test_a_chosen_picture_goes_along(obeying: Served, visit: Visitor) -> None:
    """It is shown, its strength has words, its shape is taken, and the job begins with it."""
    page, mine = visit(obeying.url), png(96, 48, "teal")
    choose(page, mine)
    page.wait_for_selector("#start-picture:visible")
    until(page, "document.getElementById('start-thumb').naturalWidth === 96")
    assert page.is_hidden("#start")
    assert page.inner_text("#strength-words") == "clearly"
    page.focus("#strength")
    for _ in range(6):
        page.keyboard.press("ArrowLeft")
    assert page.inner_text("#strength-words") == "a little"
    assert page.get_attribute("#strength", "aria-valuetext") == "30%, a little"
    ask(page, "a fox")
    page.wait_for_selector(".stage .actions")
    request = last(obeying)
    assert (request["image"], request["strength"]) == (name_of(mine), 0.3)
    assert request["width"] / request["height"] == pytest.approx(2, abs=0.15)
    assert "from a picture, 30% changed" in page.inner_text(".stage .facts")


def test_without_it_words_alone_draw(obeying: Served, visit: Visitor) -> None:
    """Removed, it is gone from the request too, and the shape is one of the model's again."""
    page = visit(obeying.url)
    choose(page, png(96, 48, "teal"))
    page.wait_for_selector("#start-picture:visible")
    page.focus("#start-remove")
    page.keyboard.press("Enter")
    assert page.is_hidden("#start-picture")
    assert page.evaluate("document.activeElement.id") == "start"
    ask(page, "a fox")
    page.wait_for_selector(".stage .actions")
    request = last(obeying)
    assert (request["image"], request["width"], request["height"]) == (None, 256, 256)


def test_a_strangers_picture_that_is_dropped_is_a_start(obeying: Served, visit: Visitor) -> None:
    """What tells no settings is something to begin with, and the words stay."""
    page = visit(obeying.url)
    page.fill("#prompt", "my own words")
    drop(page, png(64, 64, "olive"))
    page.wait_for_selector("#start-picture:visible")
    assert page.input_value("#prompt") == "my own words"
    assert "Starts from some.png" in page.inner_text("#toast")


def test_what_is_no_picture_is_not_taken(obeying: Served, visit: Visitor) -> None:
    """Neither bytes under a picture's name, nor a kind that the server does not read, nor too many."""
    page = visit(obeying.url)
    for content, kind in ((b"no picture", "image/png"), (png(8, 8, "red"), "image/gif")):
        choose(page, content, kind)
        until(page, "document.getElementById('toast').textContent.includes('choose a PNG, JPEG or WebP')")
        assert page.is_hidden("#start-picture")
        page.evaluate("document.getElementById('toast').textContent = ''")
    choose(page, bytes(17 << 20))
    until(page, "document.getElementById('toast').textContent.includes('up to 16 MB')")


def test_a_drawn_picture_is_started_from_and_used_again(obeying: Served, visit: Visitor) -> None:
    """ "Start from it" takes the stage's picture; "Use again" of either brings back what it began with."""
    page = visit(obeying.url)
    ask(page, "a fox")
    page.wait_for_selector(".stage .actions")
    drawn = obeying.client.get("/api/v1/jobs?limit=1").json()["data"][0]
    content = obeying.client.get(drawn["images"][0]["url"]).content
    page.click("text=Start from it")
    page.wait_for_selector("#start-picture:visible")
    ask(page, "a wolf")
    until(page, "document.querySelector('.stage .caption')?.textContent === 'a wolf'")
    page.wait_for_selector(".stage .actions")
    assert last(obeying)["image"] == name_of(content)
    page.click(".tile:last-child button")
    until(page, "document.querySelector('.stage .caption').textContent === 'a fox'")
    page.click("text=Use again")
    assert page.is_hidden("#start-picture")
    page.click(".tile:first-child button")
    until(page, "document.querySelector('.stage .caption').textContent === 'a wolf'")
    page.click("text=Use again")
    page.wait_for_selector("#start-picture:visible")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    page.click("text=Use again")  # the tab has forgotten it
    until(page, "document.getElementById('toast').textContent.includes('choose that picture')")


def test_copied_programs_begin_with_it_too(drawing: Served, visit: Visitor, tmp_path: Path) -> None:
    """Python and curl, run as they are beside the picture, give the same file."""
    page = visit(drawing.url, permissions=["clipboard-read", "clipboard-write"])
    mine = png(64, 64, "orange")
    (tmp_path / "start.png").write_bytes(mine)
    choose(page, mine)
    page.wait_for_selector("#start-picture:visible")
    page.click("#qualities label:nth-child(1)")
    ask(page, "a fox's den, flat style")
    page.wait_for_selector(".stage .actions")
    job = drawing.client.get("/api/v1/jobs?limit=1").json()["data"][0]
    wanted = drawing.client.get(job["images"][0]["url"]).content
    for words, program in (("Copy as Python", [sys.executable, "-c"]), ("Copy as curl", ["bash", "-c"])):
        page.evaluate("document.getElementById('toast').textContent = ''")
        page.click("text=Code")
        page.click(f"text={words}")
        until(page, "document.getElementById('toast').textContent === 'Copied.'")
        text = page.evaluate("navigator.clipboard.readText()")
        if program[0] == "bash":  # jq need not be there
            text = text.partition("\n  | jq")[0].removesuffix(" \\") + " -o answer.json"
        subprocess.run([*program, text], cwd=tmp_path, check=True, env={**_PLAIN, "SD35_KEY": "none"})
    assert (tmp_path / "picture.png").read_bytes() == wanted
    assert _picture_in(tmp_path / "answer.json") == wanted


def test_in_chinese(obeying: Served, visit: Visitor) -> None:
    """The words of the part are the language's own."""
    page = visit(obeying.url, locale="zh-CN")
    assert page.inner_text("#start") == "以一张图片为起点……"
    choose(page, png(8, 8, "red"))
    page.wait_for_selector("#start-picture:visible")
    assert page.inner_text("#strength-words") == "明显"


_PLAIN = dict(os.environ)


def _picture_in(path: Path) -> bytes:
    return base64.b64decode(json.loads(path.read_text())["data"][0]["b64_json"])


def test_a_model_that_cannot_start_from_a_picture(tmp_path: Path, decoding: Path, visit: Visitor) -> None:
    """The page doesn't offer it; changing to such a model lets go of the picture, and says why."""
    with servers(tmp_path / "data") as start:
        page = visit(start(models=f"demo,half@demo={decoding}").url)
        choose(page, png(96, 48, "teal"))
        page.wait_for_selector("#start-picture:visible")
        page.click("#advanced summary")
        page.select_option("#model", "half")
        page.wait_for_selector("#toast.is-shown")
        assert "half can't start" in page.inner_text("#toast")
        assert page.is_hidden("#start")
        assert page.is_hidden("#start-picture")
        choose(page, png(96, 48, "teal"))
        assert page.is_hidden("#start-picture")
        page.select_option("#model", "demo")
        assert page.is_visible("#start")
