"""One shape for every result of speed: a machine and rows, as `benchmarks/results/*.json` holds them.

A row is one engine at one work. A row without numbers says why in `reason`: an engine that is not installed,
ran out of memory or out of time is part of the result. `mode` is "exact", or "cached" where steps reuse
results of others; the two are never one row. `ms_per_step` is the median over all steps of all rounds but
each drawing's first, `spread` the distance between the 10th and the 90th percentile, both in milliseconds;
`seconds` and `stage_seconds` are medians over the rounds, `kept_seconds` those of a drawing more, of a prompt
whose embeds were kept (None in results from before it was measured); `first_call_seconds` is from loaded
weights to the end of the first step. With a checkpoint from the disk `load_seconds` is until its weights were
where the plan wants them, and `host_peak_bytes` the most memory that the whole process ever had, mapped files
included. On several cards `peak_bytes` and `cap_bytes` are of the card with the most; `devices` has each.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sd35.bench.work import Shapes, attention_flop, linear_flop
from sd35.bench.workload import Workload
from sd35.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Row:
    """One engine's figures at one work; all figures None where there is a `reason`."""

    engine: str
    variant: str
    precision: str | None = None
    attention: str | None = None
    plan: str = "resident"
    guidance: bool
    mode: str = "exact"
    width: int
    height: int
    images: int
    steps: int
    ms_per_step: float | None = None
    spread: float | None = None
    seconds: float | None = None
    stage_seconds: dict[str, float] = field(default_factory=dict)
    kept_seconds: float | None = None
    peak_bytes: int | None = None
    devices: dict[str, dict[str, int | None]] = field(default_factory=dict)
    cap_bytes: int | None = None
    first_call_seconds: float | None = None
    first_picture_seconds: float | None = None  # from its process's start, of a checkpoint on the disk
    load_seconds: float | None = None
    host_peak_bytes: int | None = None
    tflops: float | None = None  # TFLOP/s achieved in a step
    share_of_limit: float | None = None  # of what products and attention alone would take on this card
    reason: str | None = None


@dataclass
class Report:
    """All that a run found out; `kernels` by engine, `drift` our own ms/step first and last."""

    machine: dict[str, Any]
    stage: str | None
    work: dict[str, float]
    rows: list[Row] = field(default_factory=list)
    limits: dict[str, Any] = field(default_factory=dict)
    kernels: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    drift: dict[str, float] | None = None
    notes: list[str] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """A further row, judged by the limits where they are known."""
        self.rows.append(judged(row, self.work, self.limits))

    def as_json(self) -> str:
        """The file's text."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def empty_row(engine: str, workload: Workload, reason: str | None = None) -> Row:
    """The row of an engine that has no figures yet, or never will."""
    settings = workload.pictures(0)[0].settings
    return Row(
        engine=engine,
        variant=workload.variant,
        guidance=settings.guided,
        width=settings.width,
        height=settings.height,
        images=workload.images,
        steps=settings.num_inference_steps,
        reason=reason,
    )


def work_of(shapes: Shapes) -> dict[str, float]:
    """TFLOP of one step."""
    return {
        "linear_tflop_per_step": linear_flop(shapes) / 1e12,
        "attention_tflop_per_step": attention_flop(shapes) / 1e12,
    }


def judged(row: Row, work: dict[str, float], limits: dict[str, Any]) -> Row:
    """The row with its TFLOP/s, and its share of the card's measured limits where those are there."""
    if row.ms_per_step is None:
        return row
    tflops = sum(work.values()) / row.ms_per_step * 1e3
    floor = floor_ms(work, limits, row)
    return replace(row, tflops=tflops, share_of_limit=floor / row.ms_per_step if floor else None)


def floor_ms(work: dict[str, float], limits: dict[str, Any], row: Row) -> float | None:
    """What a step's products and attention alone would take at the rates that this card has shown.

    The products' rate is that of the row's precision, attention's that of the best implementation; one that
    rounds to FP8 is no yardstick for those that don't.
    """
    is_fp8 = "float8" in (row.precision or "")
    gemm = (limits.get("fp8_gemm_tflops") if is_fp8 else None) or limits.get("gemm_tflops")
    rates = limits.get("attention_tflops") or {}
    fair = [rate for name, rate in rates.items() if name == row.attention or not name.endswith("fp8")]
    if not gemm or not fair:
        return None
    seconds = work["linear_tflop_per_step"] / gemm["all"] + work["attention_tflop_per_step"] / max(fair)
    return 1e3 * seconds


def read_results(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Those of the JSON files that are results of speed, as they are; CheckpointError for a damaged one."""
    results = []
    for path in paths:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{path} is not readable JSON ({error}): measure again.") from error
        rows = content.get("rows") if isinstance(content, dict) else None
        if isinstance(rows, list) and rows and all("ms_per_step" in row for row in rows):
            results.append(content)
    return results
