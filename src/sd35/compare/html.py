"""The comparison as a page to read and pass on: one HTML file that needs nothing beside itself.

Style and pictures are inside the file and there is no script, which its content security policy states to
the browser too: a prompt that tries to be markup stays text twice over. The same comparison gives the same
bytes: no clock is read.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from PIL import Image

from sd35 import __version__
from sd35.compare.compare import Comparison
from sd35.compare.layers import LayerFigure, mean_by_kind, worst_first
from sd35.compare.sheet import AMPLIFY, amplified

SHOWN = 4  # worst pictures, and as many ordinary ones
SIDE = 512  # longer sides are shown smaller; every figure and difference is of the full size
LAYERS = 10  # worst layers that are not folded away

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(comparison: Comparison, reference: str, candidate: str, layers: Sequence[LayerFigure] = ()) -> str:
    """The whole report; `reference` and `candidate` are the names that people know the two by."""
    style = files("sd35.compare").joinpath("report.css").read_text(encoding="utf-8")
    title = f"{candidate} against {reference}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{len(comparison.psnr)} pictures of the same prompts and seeds, drawn by both.</p>",
        _figures(comparison),
        _pictures(comparison),
        _layers(layers),
        _conditions(comparison, reference, candidate),
        f"<footer>Written by sd35 {escape(__version__)}</footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def worst_and_ordinary(psnr: Sequence[float]) -> tuple[list[int], list[int]]:
    """Numbers of the pictures to show: the lowest PSNR first, then those around the median; none twice."""
    order = sorted(range(len(psnr)), key=lambda number: psnr[number])
    begin = max(SHOWN, len(order) // 2 - SHOWN // 2)
    return order[:SHOWN], order[begin : begin + SHOWN]


def _figures(comparison: Comparison) -> str:
    rows = [
        [escape(figure.name), f"{figure.mean:.4g}", f"{figure.worst:.4g}"] for figure in comparison.figures
    ]
    if comparison.same_subject is not None:
        rows.append(["same subject, by the evaluator", f"{comparison.same_subject:.1%}", ""])
    return _table(["figure", "mean", "worst 5%"], rows)


def _pictures(comparison: Comparison) -> str:
    worst, ordinary = worst_and_ordinary(comparison.psnr)
    legend = f"Reference, candidate, and their difference, {AMPLIFY} times amplified."
    parts = ["<h2>The least alike</h2>", f"<p>{legend}</p>", *(_trio(comparison, i) for i in worst)]
    if ordinary:
        parts += [
            "<h2>Ordinary ones</h2>",
            "<p>Those around the median.</p>",
            *(_trio(comparison, i) for i in ordinary),
        ]
    return "\n".join(parts)


def _trio(comparison: Comparison, number: int) -> str:
    reference, candidate = comparison.reference.images[number], comparison.candidate.images[number]
    prompt = escape(comparison.reference.prompts[number])
    shown = {
        "reference": reference,
        "candidate": candidate,
        "difference": amplified(reference, candidate),
    }
    images = "".join(f'<img src="{_data_uri(one)}" alt="{name}: {prompt}">' for name, one in shown.items())
    caption = f"<span>{prompt}</span><b>{comparison.psnr[number]:.2f} dB</b>"
    return f"<figure><figcaption>{caption}</figcaption><div>{images}</div></figure>"


def _layers(layers: Sequence[LayerFigure]) -> str:
    if not layers:
        return ""
    most = max(max(one.sqnr_db for one in layers), 1.0)
    kinds = [[escape(kind), f"{mean:.1f}", _bar(mean, most)] for kind, mean in mean_by_kind(layers).items()]
    worst = worst_first(layers)[:LAYERS]
    lowest = {one.name for one in worst}
    whole = [_layer_row(one, most, is_low=one.name in lowest) for one in layers]
    head = ["layer", "SQNR, dB", "", "stored as"]
    return "\n".join(
        [
            "<h2>Layers</h2>",
            "<p>Output SQNR: each layer of both was given the same inputs, met while the reference drew. "
            "The longer the bar, the more faithful; 100 dB is equality.</p>",
            _table(["kind of layer", "mean SQNR, dB", ""], kinds),
            f"<h2>The {len(worst)} worst layers</h2>",
            _table(head, [_layer_row(one, most, is_low=True) for one in worst]),
            f"<details><summary>All {len(layers)} layers, in the model's order</summary>",
            _table(head, whole),
            "</details>",
        ]
    )


def _layer_row(layer: LayerFigure, most: float, *, is_low: bool) -> list[str]:
    return [
        escape(layer.name),
        f"{layer.sqnr_db:.1f}",
        _bar(layer.sqnr_db, most, is_low=is_low),
        escape(layer.stored),
    ]


def _conditions(comparison: Comparison, reference: str, candidate: str) -> str:
    sides = [
        [escape(role), escape(name), escape(drawing.precision), escape(drawing.machine)]
        for role, name, drawing in (
            ("reference", reference, comparison.reference),
            ("candidate", candidate, comparison.candidate),
        )
    ]
    settings = [[escape(name), escape(str(value))] for name, value in comparison.reference.settings.items()]
    return "\n".join(
        [
            "<h2>What was compared</h2>",
            _table(["", "checkpoint", "transformer", "machine"], sides),
            "<h2>Settings</h2>",
            _table(["setting", "value"], settings),
        ]
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are markup already; figures stand at the right."""
    kinds = [_column(name) for name in head]
    top = "".join(f"<th{kind}>{name}</th>" for name, kind in zip(head, kinds, strict=True))
    lines = [
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    ]
    return f"<table><thead><tr>{top}</tr></thead><tbody>\n" + "\n".join(lines) + "\n</tbody></table>"


def _column(name: str) -> str:
    return ' class="number"' if name.startswith(("mean", "worst", "SQNR")) else ""


def _bar(value: float, most: float, *, is_low: bool = False) -> str:
    share = 100 * max(0.0, value) / most
    return f'<span class="bar{" low" if is_low else ""}"><i style="width:{share:.1f}%"></i></span>'


def _data_uri(image: Image.Image) -> str:
    shown = image.copy()
    shown.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    shown.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
