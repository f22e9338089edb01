"""PSNR and SSIM against their definitions written out, and what a comparison makes of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sd35.compare.compare import measure
from sd35.compare.drawing import Drawing, is_drawing, read_drawing
from sd35.compare.metrics import SIGMA, psnr, ssim
from sd35.compare.sheet import contact_sheet
from sd35.errors import CheckpointError, OutputError


def pictures(seed: int, count: int = 2) -> Tensor:
    """Random pictures [B, 32, 32, 3]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)


def test_psnr() -> None:
    """A difference of 1 everywhere is 48.13 dB; equal pictures get the stand-in for infinity."""
    a = pictures(0).clamp(max=254)
    assert psnr(a, a + 1).tolist() == pytest.approx([48.1308] * 2, abs=1e-3)
    assert psnr(a, a).tolist() == [100.0, 100.0]
    assert float(psnr(torch.zeros_like(a), torch.full_like(a, 255))[0]) == pytest.approx(0.0)


def test_ssim_is_the_mean_over_windows() -> None:
    """Equal to the formula of Wang et al. taken window by window."""
    a, b = pictures(0, 1), pictures(1, 1)
    b = ((a.float() + b.float()) / 2).to(torch.uint8)
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * SIGMA**2))
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for top in range(22):
        for left in range(22):
            for colour in range(3):
                x, y = (t[0, top : top + 11, left : left + 11, colour].double().numpy() for t in (a, b))
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                cov = (window * (x - mx) * (y - my)).sum()
                values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert float(ssim(a, b)[0]) == pytest.approx(float(np.mean(values)), abs=1e-9)
    assert float(ssim(a, a)[0]) == pytest.approx(1.0)


def drawing(batch: Tensor) -> Drawing:
    """A drawing of these pictures."""
    images = [Image.fromarray(one.numpy()) for one in batch]
    prompts = [f"prompt {i}" for i in range(len(images))]
    return Drawing(images, prompts, "bfloat16", "demo", {"width": 32, "height": 32}, "here")


def test_figures_pair_the_pictures_and_find_the_worst() -> None:
    """Means are over pairs in order, and one bad pair among many shows in `worst`."""
    a = pictures(0, 40).clamp(max=254)
    b = a + 1
    b[17] = 255 - a[17]
    b[18] = 255 - a[18]
    b[19] = 255 - a[19]
    comparison = measure(drawing(a), drawing(b), judge=None, witness=lambda batch: batch.flatten(1).float())
    figures = {figure.name: figure for figure in comparison.figures}
    expected = psnr(a, b)
    assert figures["PSNR, dB"].mean == pytest.approx(float(expected.mean()))
    assert figures["PSNR, dB"].worst < 20
    assert figures["outside witness cosine"].mean < 1
    assert comparison.same_subject is None


def test_the_sheet_shows_the_difference() -> None:
    """Reference and candidate are pasted as they are; the third column is |a - b| x 8."""
    a, b = pictures(0, 1), pictures(1, 1)
    a[:] = 100
    b[:] = 104
    comparison = measure(drawing(a), drawing(b), None, None)
    sheet = contact_sheet(comparison)
    colours = [sheet.getpixel((8 + column * 40 + 16, 8 + 18 + 16)) for column in range(3)]
    assert colours == [(100,) * 3, (104,) * 3, (32,) * 3]


def test_a_kept_drawing_reads_back(tmp_path: Path) -> None:
    """Pictures, prompts and facts survive the folder; a picture that is gone is an error."""
    kept = drawing(pictures(0, 3))
    kept.keep(tmp_path / "d")
    assert is_drawing(tmp_path / "d")
    read = read_drawing(tmp_path / "d")
    assert (read.prompts, read.settings, read.machine) == (kept.prompts, kept.settings, kept.machine)
    assert torch.equal(read.tensor(slice(None)), kept.tensor(slice(None)))
    (tmp_path / "d" / "00001.png").unlink()
    with pytest.raises(CheckpointError, match="not a whole drawing"):
        read_drawing(tmp_path / "d")
    with pytest.raises(OutputError, match="does not exist yet"):
        kept.keep(tmp_path / "d")


def test_what_is_kept_has_to_be_as_its_facts_say(tmp_path: Path) -> None:
    """A drawing without pictures, or with one of another size, is refused before anything is compared."""
    drawing(pictures(0, 0)).keep(tmp_path / "none")
    with pytest.raises(CheckpointError, match="no pictures"):
        read_drawing(tmp_path / "none")
    drawing(pictures(0, 2)).keep(tmp_path / "d")
    Image.new("RGB", (16, 32)).save(tmp_path / "d" / "00001.png")
    with pytest.raises(CheckpointError, match=r"00001\.png is not of the size"):
        read_drawing(tmp_path / "d")
