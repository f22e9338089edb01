"""Results as tables in Markdown: the short one that a run prints last, and the one of the README.

Both take a result as `benchmarks/results/*.json` holds it, so a table can be made again from a file.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from sd35.bench.kernels import by_kind
from sd35.bench.workload import OURS, STAGES
from sd35.variants import VARIANTS

Result = dict[str, Any]
_GIB = 2**30


def short_table(result: Result) -> str:
    """All engines of one run, what the card can do, where our step's time goes, and who is missing."""
    parts = [
        _headline(result),
        "",
        *_engine_table(result),
        "",
        *_limit_lines(result),
        *_kernel_lines(result),
        *_closing_lines(result),
    ]
    return "\n".join(parts).rstrip()


def readme_section(results: Iterable[Result]) -> str:
    """The README's table of all measured rows, with its heading; empty while there are none."""
    measured = [(result, row) for result in results for row in result["rows"] if not row.get("reason")]
    if not measured:
        return ""
    measured.sort(key=lambda pair: (list(VARIANTS).index(pair[1]["variant"]), _order(pair[1])))
    machines = dict.fromkeys(_machine(result) for result, _ in measured)
    lines = [
        "## Speed",
        "",
        f"Measured side by side by `sd35 bench` on {' and '.join(machines)}, with random weights at full "
        "size ([results](benchmarks/results)). ms/step is the median; a picture is from prompt to pixels.",
        "",
        "| work | engine | ms/step | a picture | peak memory | first call |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_readme_row(result, row) for result, row in measured]
    return "\n".join(lines)


def _readme_row(result: Result, row: Result) -> str:
    stage = result.get("stage")
    work = f"{VARIANTS[row['variant']].title}, {_work(row)}" + (f", {stage} alone" if stage else "")
    name = f"**{row['engine']}**" if row["engine"] == OURS else row["engine"]
    if row.get("mode", "exact") != "exact":
        name += f" ({row['mode']})"
    seconds = row["seconds"] / row["images"] if row["seconds"] else None
    figures = (_ms(row["ms_per_step"]), _s(seconds), _gib(row["peak_bytes"]), _s(row["first_call_seconds"]))
    return "| " + " | ".join((work, name, *figures)) + " |"


def _order(row: Result) -> tuple[Any, ...]:
    return row["width"] * row["height"], row["images"], row["steps"], row["ms_per_step"] or 0.0


def _headline(result: Result) -> str:
    row = result["rows"][0]
    stage = f", {result['stage']} alone" if result.get("stage") else ""
    title = VARIANTS[row["variant"]].title
    return f"{title}, {_work(row)}{stage}, random weights; {_machine(result)}"


def _work(row: Result) -> str:
    guidance = "guidance" if row["guidance"] else "no guidance"
    images = f", {row['images']} images" if row["images"] > 1 else ""
    return f"{row['width']} x {row['height']}{images}, {row['steps']} steps, {guidance}"


def _machine(result: Result) -> str:
    machine = result["machine"]
    name = machine.get("gpu") or f"{machine.get('cpu')}, {machine.get('threads')} threads"
    return f"{name}, torch {machine.get('torch')}"


def _engine_table(result: Result) -> list[str]:
    stages = [stage for stage in STAGES if any(stage in row["stage_seconds"] for row in result["rows"])]
    head = ["engine", "transformer", "attention", "ms/step", "spread", "TFLOP/s", "of limit", "picture"]
    return [
        _line([*head, *stages, "peak", "first call"]),
        _line(["---"] * (len(head) + len(stages) + 2)),
        *(_line(_engine_cells(row, stages)) for row in result["rows"] if not row["reason"]),
    ]


def _engine_cells(row: Result, stages: Sequence[str]) -> list[str]:
    share = f"{row['share_of_limit']:.0%}" if row["share_of_limit"] else "-"
    tflops = f"{row['tflops']:.3g}" if row["tflops"] else "-"
    return [
        row["engine"],
        row["precision"],
        row["attention"],
        _ms(row["ms_per_step"]),
        _ms(row["spread"]),
        tflops,
        share,
        _s(row["seconds"]),
        *(_s(row["stage_seconds"].get(stage)) for stage in stages),
        _gib(row["peak_bytes"]),
        _s(row["first_call_seconds"]),
    ]


def _limit_lines(result: Result) -> list[str]:
    limits = result["limits"]
    if not limits:
        return []
    lines = [f"limits measured here: copy {limits['copy_tb_per_second']:.3g} TB/s"]
    for name, key in ((f"{limits['dtype']} products", "gemm_tflops"), ("FP8 products", "fp8_gemm_tflops")):
        if limits[key]:
            lines.append(f"{name} {limits[key]['all']:.4g} TFLOP/s")
    if limits["attention_tflops"]:
        each = ", ".join(f"{name} {rate:.3g}" for name, rate in limits["attention_tflops"].items())
        lines.append(f"attention {each} TFLOP/s")
    return ["; ".join(lines)]


def _kernel_lines(result: Result) -> list[str]:
    lines = []
    for engine, rows in result["kernels"].items():
        kinds = ", ".join(f"{kind} {ms:.1f}" for kind, ms in by_kind(rows).items())
        lines.append(f"one step of {engine}, ms by kind of kernel: {kinds}")
    return lines


def _closing_lines(result: Result) -> list[str]:
    lines = []
    if drift := result["drift"]:
        first, last = drift["first_ms_per_step"], drift["last_ms_per_step"]
        lines.append(f"drift: {OURS} took {first:.2f} ms/step at the start and {last:.2f} at the end")
    lines += [f"{row['engine']}: {row['reason']}" for row in result["rows"] if row["reason"]]
    return lines + list(result["notes"])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _s(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _gib(count: int | None) -> str:
    return "-" if count is None else f"{count / _GIB:.1f} GiB"
