"""The pictures of the page in the docs, made only when SD35_SCREENSHOTS says where to."""

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from serving.conftest import Served

from .conftest import Visitor, until
from .test_living_with_it import PHONE, ask

FOLDER = os.environ.get("SD35_SCREENSHOTS", "")
pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not FOLDER, reason="SD35_SCREENSHOTS names no folder to write to"),
]

GALLERY = (
    ("a fox, cartoon style, on a green background", 304, 208),
    ("an icon of a penguin, flat style, on yellow", 208, 304),
    ("a cat on the left and a guitar on the right, glossy style, on a pink background", 256, 256),
    ("a strawberry, glossy style, on a purple background", 224, 288),
    ("a rocket, flat style, on a white background", 256, 256),
    ("a dolphin, glossy style, on an orange background", 288, 224),
    ("a pizza, cartoon style, on a blue background", 256, 256),
    ("an owl, flat style, on a gray background", 208, 304),
)


def test_pictures_for_the_docs(drawing: Served, visit: Visitor) -> None:
    """Gallery, a start, drawing in the dark, Chinese on a phone, operations: under 450 kB together."""
    for seed, (prompt, width, height) in enumerate(GALLERY, 40):
        drawing.end(drawing.post(prompt=prompt, width=width, height=height, seed=seed)["id"])
    page = visit(drawing.url, viewport={"width": 1280, "height": 920})
    ask(page, "a red apple, glossy style, on a blue background")
    until(page, "document.querySelector('.stage .frame img')?.naturalWidth === 256")
    page.mouse.move(0, 0)
    shoot(page, "web-light")
    page.click("text=Start from it")
    page.wait_for_selector("#start-picture:visible")
    ask(page, "a green apple, glossy style, on a yellow background")
    until(page, "document.querySelector('.stage .caption')?.textContent.startsWith('a green')")
    until(page, "document.querySelector('.stage .frame img')?.naturalWidth === 256")
    page.evaluate("document.getElementById('toast').classList.remove('is-shown')")
    page.set_viewport_size({"width": 1100, "height": 640})
    shoot(page, "web-start")
    page = visit(drawing.url, viewport={"width": 1100, "height": 720}, color_scheme="dark")
    page.click("#advanced > summary")
    ask(page, "a panda, glossy style, on a pink background")
    until(page, "/^Step 2\\d/.test(document.querySelector('.status')?.textContent)")
    shoot(page, "web-drawing")
    page.wait_for_selector(".stage .actions")
    page = visit(drawing.url, **PHONE, locale="zh-CN")
    until(page, "document.querySelector('.stage .frame img')?.naturalWidth === 256")
    shoot(page, "web-phone")
    page = visit(f"{drawing.url}/ops", viewport={"width": 1100, "height": 760})
    page.wait_for_selector(".chart")
    shoot(page, "web-ops")
    assert sum(path.stat().st_size for path in Path(FOLDER).glob("web-*.png")) < 450_000


def shoot(page: Any, name: str) -> None:
    """The window as a PNG of 256 colours, spread finely."""
    path = Path(FOLDER) / f"{name}.png"
    page.wait_for_timeout(700)  # what fades has faded
    page.screenshot(path=path)
    image = Image.open(path).convert("RGB")
    palette = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=4)
    image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
