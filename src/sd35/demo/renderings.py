"""From icon packages to one small file of pictures.

Three open icon families draw the same things in three manners: Noto (Apache-2.0), Fluent Emoji Flat and
Fluent Emoji (MIT). Each ships as a JSON of SVG bodies. They are rendered once, at 224 pixels with
transparency, and stored as WebP in a zip, about 10 MB, so that training needs neither the packages nor
an SVG renderer:

    npm pack @iconify-json/noto@1.2.9 @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/fluent-emoji@1.2.7
    python -m sd35.demo.renderings FOLDER_OF_TGZ_FILES renderings.zip
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .vocabulary import Style, Vocabulary, load_vocabulary

RENDER_SIZE = 224


def render_packages(archives: Path, target: Path) -> None:
    """Render every (subject, style) of the vocabulary from the packages in `archives` into `target`."""
    vocabulary = load_vocabulary()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as pack:
        for style in vocabulary.styles:
            icons = _read_package(archives, style)
            for subject in vocabulary.subjects:
                pack.writestr(_entry(subject.icon, style.name), _render(_svg(icons, subject.icon)))


def load_renderings(pack: Path, vocabulary: Vocabulary) -> NDArray[np.uint8]:
    """All renderings, [subjects * styles, size, size, RGBA], in the order of `vocabulary.pairs()`."""
    with zipfile.ZipFile(pack) as file:
        return np.stack(
            [
                _decode(file.read(_entry(vocabulary.subjects[subject].icon, vocabulary.styles[style].name)))
                for subject, style in vocabulary.pairs()
            ]
        )


def _entry(icon: str, style: str) -> str:
    return f"{style}/{icon}.webp"


def _read_package(archives: Path, style: Style) -> dict[str, Any]:
    """The icon table of a style's package, as `npm pack` names its archive."""
    name = style.package.removeprefix("@").replace("/", "-")
    with tarfile.open(archives / f"{name}-{style.version}.tgz") as archive:
        member = archive.extractfile("package/icons.json")
        assert member is not None, f"{name} holds no icons.json"
        icons: dict[str, Any] = json.load(member)
    return icons


def _svg(icons: dict[str, Any], name: str) -> str:
    """A whole, square SVG document of one icon; an alias points to its parent."""
    while name not in icons["icons"]:
        name = icons["aliases"][name]["parent"]
    icon = icons["icons"][name]
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{RENDER_SIZE}" height="{RENDER_SIZE}" '
        f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}">{icon["body"]}</svg>'
    )


def _render(svg: str) -> bytes:
    """WebP bytes of an SVG, the alpha channel exact, the colours nearly."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg))
    picture = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGBA").save(picture, "WEBP", quality=92, method=4)
    return picture.getvalue()


def _decode(webp: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(webp)).convert("RGBA"))


def main() -> None:
    """Render the packages named on the command line."""
    parser = argparse.ArgumentParser(description="Render the demo's subjects from its three icon packages.")
    parser.add_argument("archives", type=Path, help="folder with the three .tgz files of `npm pack`")
    parser.add_argument("target", type=Path, help="zip file to write")
    arguments = parser.parse_args()
    render_packages(arguments.archives, arguments.target)


if __name__ == "__main__":
    main()
