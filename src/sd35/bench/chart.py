"""One picture of a run: a bar for each engine, as long as its step takes.

Drawn at twice the size and scaled down, which is all the smoothing that rectangles and letters need.
"""

from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from sd35.bench.workload import OURS
from sd35.variants import VARIANTS

_SCALE = 2
_WIDTH, _MARGIN, _NAMES, _FIGURES = 960, 36, 170, 190
_HEAD, _BAR, _GAP, _FOOT = 92, 34, 16, 44
_INK, _PALE, _OURS, _THEIRS, _PAPER = "#1f2933", "#6b7785", "#e4572e", "#a9b4c0", "#ffffff"


@dataclass(frozen=True)
class Bar:
    """An engine, how long it takes in ms, and the words beside it; None for one without a figure."""

    name: str
    ms: float | None
    words: str


def chart(result: dict[str, Any]) -> Image.Image:
    """The bar chart of a result, as `benchmarks/results/*.json` holds it."""
    bars = [_bar(row, result["rows"]) for row in result["rows"]]
    height = _HEAD + len(bars) * (_BAR + _GAP) + _FOOT
    canvas = Image.new("RGB", (_WIDTH * _SCALE, height * _SCALE), _PAPER)
    pen = _Pen(ImageDraw.Draw(canvas))
    pen.text(_MARGIN, 24, _title(result), 24, _INK)
    pen.text(_MARGIN, 56, _subtitle(result), 14, _PALE)
    longest = max((bar.ms for bar in bars if bar.ms), default=1.0)
    for number, bar in enumerate(bars):
        _draw_bar(pen, bar, _HEAD + number * (_BAR + _GAP), longest)
    pen.text(_MARGIN, height - 32, _footer(result), 12, _PALE)
    return canvas.resize((_WIDTH, height), Image.Resampling.LANCZOS)


def _draw_bar(pen: "_Pen", bar: Bar, top: int, longest: float) -> None:
    left, color = _MARGIN + _NAMES, _OURS if bar.name == OURS else _THEIRS
    pen.text(_MARGIN, top + 8, bar.name, 16, _INK)
    if bar.ms is None:
        pen.text(left, top + 9, bar.words, 13, _PALE)
        return
    room = _WIDTH - left - _MARGIN - _FIGURES
    length = max(2, round(room * bar.ms / longest))
    pen.box(left, top, left + length, top + _BAR, color)
    pen.text(left + length + 10, top + 8, bar.words, 15, _INK)


class _Pen:
    """Draws in the chart's own units, whatever the canvas is scaled by."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self._draw = draw

    def text(self, x: int, y: int, words: str, size: int, color: str) -> None:
        font = ImageFont.load_default(size * _SCALE)
        self._draw.text((x * _SCALE, y * _SCALE), words, fill=color, font=font)

    def box(self, left: int, top: int, right: int, bottom: int, color: str) -> None:
        corners = [side * _SCALE for side in (left, top, right, bottom)]
        self._draw.rounded_rectangle(corners, radius=4 * _SCALE, fill=color)


def _bar(row: dict[str, Any], rows: list[dict[str, Any]]) -> Bar:
    ms = _milliseconds(row)
    if ms is None:
        return Bar(row["engine"], None, _shortened(row["reason"] or "not measured"))
    ours = next((_milliseconds(one) for one in rows if one["engine"] == OURS), None)
    times = f"  ({ms / ours:.2f}x)" if ours and row["engine"] != OURS else ""
    return Bar(row["engine"], ms, f"{ms:.1f} ms{times}")


def _milliseconds(row: dict[str, Any]) -> float | None:
    """Of a step, or of the stage where there are no steps."""
    if row["ms_per_step"] is not None:
        return float(row["ms_per_step"])
    return 1e3 * row["seconds"] if row["seconds"] else None


def _title(result: dict[str, Any]) -> str:
    what = "one denoising step" if result["stage"] in (None, "denoise") else f"{result['stage']} alone"
    return f"{VARIANTS[result['rows'][0]['variant']].title}: {what}"


def _subtitle(result: dict[str, Any]) -> str:
    row = result["rows"][0]
    guidance = "with guidance" if row["guidance"] else "without guidance"
    images = f", {row['images']} images at once" if row["images"] > 1 else ""
    return f"{row['width']} x {row['height']}{images}, {guidance}; milliseconds, less is better"


def _footer(result: dict[str, Any]) -> str:
    machine = result["machine"]
    facts = [machine.get("gpu") or machine.get("cpu"), f"torch {machine.get('torch')}", machine.get("date")]
    return ", ".join([*(str(fact) for fact in facts if fact), "random weights at full size"])


def _shortened(words: str, most: int = 88) -> str:
    return words if len(words) <= most else words[: most - 3].rstrip() + "..."
