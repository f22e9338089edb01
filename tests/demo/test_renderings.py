"""From SVG packages to a pack of pictures, on a package of two icons."""

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import pytest

from sd35.demo import renderings
from sd35.demo.vocabulary import load_vocabulary

BODY = '<rect width="32" height="32" fill="#f00"/>'


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three packages as `npm pack` leaves them: one square icon, one wide one under an alias."""
    whole = load_vocabulary()
    subjects = tuple(
        dataclasses.replace(subject, icon=icon)
        for subject, icon in zip(whole.subjects, ("square", "wide-alias"), strict=False)
    )
    small = dataclasses.replace(whole, subjects=subjects, held_out=frozenset())
    monkeypatch.setattr(renderings, "load_vocabulary", lambda: small)
    icons = {
        "icons": {"square": {"body": BODY}, "wide": {"body": BODY, "width": 64}},
        "aliases": {"wide-alias": {"parent": "wide"}},
        "width": 32,
        "height": 32,
    }
    text = json.dumps(icons).encode()
    for style in whole.styles:
        name = style.package.removeprefix("@").replace("/", "-")
        with tarfile.open(tmp_path / f"{name}-{style.version}.tgz", "w:gz") as archive:
            member = tarfile.TarInfo("package/icons.json")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    return tmp_path


def test_pack_and_load(archives: Path) -> None:
    """Every pair comes back as a square picture; a wide icon keeps its shape between clear margins."""
    renderings.render_packages(archives, archives / "pack.zip")
    pictures = renderings.load_renderings(archives / "pack.zip", renderings.load_vocabulary())
    assert pictures.shape == (6, 224, 224, 4)
    assert (pictures[0, 112, 112] > (240, -1, -1, 254)).all()
    assert pictures[0, 5, 5, 3] == 255
    assert pictures[3, 5, 112, 3] == 0
    assert pictures[3, 112, 50, 3] == 255
