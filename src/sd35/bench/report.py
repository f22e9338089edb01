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
_PEER_TITLES = {
    "diffusers-eager": "diffusers",
    "diffusers-compile": "diffusers, compiled",
    "torchao-compile": "torchao FP8, compiled",
}


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
    """The README's table, one line for each of our rows that has steps; empty while there are none.

    Runs with caps on memory have a table of their own.
    """
    free = [result for result in results if not any(row["cap_bytes"] for row in result["rows"])]
    ours = [(result, row) for result in free for row in result["rows"] if _is_for_readme(row)]
    if not ours:
        return ""
    ours.sort(key=lambda pair: _order(pair[1]))
    machines = list(dict.fromkeys(_machine(result) for result, _ in ours))
    head = ["work", f"**{OURS}**", *_PEER_TITLES.values(), "picture", "peak memory", "first call"]
    lines = [
        "## Speed",
        "",
        f"Milliseconds per denoising step for each engine; for {OURS} also the time for a whole picture,",
        "the peak memory and the time until the first step has finished. Each row is a run of `sd35 bench`:",
        "all engines do the same work with random weights at full size, on",
        f"{' or '.join(machines)} ([results](benchmarks/results)).",
        "",
        _line(head),
        _line(["---"] * len(head)),
    ]
    return "\n".join([*lines, *(_readme_line(result, row, machines) for result, row in ours)])


def memory_section(results: Iterable[Result]) -> str:
    """What our engine takes within each cap, beside the same run's row without one; else empty.

    Of one card: runs over several, which `docs/guides/memory.md` tells of, have a cap for each.
    """
    found = [(result, row) for result in results for row in result["rows"] if row["ms_per_step"]]
    capped = [(result, row) for result, row in found if row["cap_bytes"] and not row.get("devices")]
    if not capped:
        return ""
    capped.sort(key=lambda pair: (_order(pair[1]), -pair[1]["cap_bytes"]))
    machines = list(dict.fromkeys(_machine(result) for result, _ in capped))
    head = ["model", "limit", "plan", "peak", "ms/step", "loop", "new prompt", "kept prompt"]
    lines = [
        "## Memory",
        "",
        "From prompt to picture, T5 in 16 bits, with a limit on what PyTorch may allocate (7.2 GiB for a",
        f"card of 8 GB, 3.2 for 4 GB), beside a run without. Random weights, on {' or '.join(machines)}.",
        "Streamed plans are as fast as the bus to the card: [memory](docs/guides/memory.md#benchmark).",
        "",
        _line(head),
        _line(["---"] * len(head)),
    ]
    return "\n".join([*lines, *(_memory_line(result, row) for result, row in capped)])


def _memory_line(result: Result, row: Result) -> str:
    free = next(other for other in result["rows"] if other["engine"] == OURS and not other["cap_bytes"])
    loops = [one["stage_seconds"]["denoise"] for one in (row, free)]
    kept = [_kept(one) for one in (row, free)]
    return _line(
        [
            f"{VARIANTS[row['variant']].title}, {_work(row)}, attention {row['attention']}",
            _gib(row["cap_bytes"]),
            row["plan"],
            _gib(row["peak_bytes"]),
            _ms(row["ms_per_step"]),
            _beside(*loops),
            _beside(row["seconds"], free["seconds"]),
            _beside(*kept),
        ]
    )


def _kept(row: Result) -> float:
    """Seconds with a prompt whose embeds were kept; where that was not measured, without encoding."""
    measured: float | None = row.get("kept_seconds")
    return row["seconds"] - row["stage_seconds"]["encode"] if measured is None else measured


def _beside(seconds: float, other: float) -> str:
    return f"{seconds:.2f} s ({seconds / other:.2f}x)"


def _is_for_readme(row: Result) -> bool:
    return row["engine"] == OURS and row["ms_per_step"] is not None


def _order(row: Result) -> tuple[Any, ...]:
    return list(VARIANTS).index(row["variant"]), row["width"] * row["height"], row["images"], row["mode"]


def _readme_line(result: Result, ours: Result, machines: Sequence[str]) -> str:
    stage = f", {result['stage']} alone" if result.get("stage") else ""
    mode = f", {ours['mode']}" if ours["mode"] != "exact" else ""
    place = f", {_card(result)}" if len(machines) > 1 else ""
    how = f"{stage}{mode}, attention {ours['attention']}{place}"
    work = f"{VARIANTS[ours['variant']].title}, {_work(ours)}{how}"
    same = {row["engine"]: row["ms_per_step"] for row in result["rows"] if _work(row) == _work(ours)}
    peers = [_ms(same.get(engine)) for engine in _PEER_TITLES]
    picture = ours["seconds"] / ours["images"] if ours["seconds"] and not result.get("stage") else None
    rest = [_s(picture), _gib(ours["peak_bytes"]), _s(ours["first_call_seconds"])]
    return _line([work, f"**{_ms(ours['ms_per_step'])}**", *peers, *rest])


def _headline(result: Result) -> str:
    row = result["rows"][0]
    stage = f", {result['stage']} alone" if result.get("stage") else ""
    title = VARIANTS[row["variant"]].title
    weights = "a checkpoint" if row.get("load_seconds") else "random weights"
    return f"{title}, {_work(row)}{stage}, {weights}; {_machine(result)}"


def _work(row: Result) -> str:
    guidance = "guidance" if row["guidance"] else "no guidance"
    images = f", {row['images']} images" if row["images"] > 1 else ""
    return f"{row['width']} x {row['height']}{images}, {row['steps']} steps, {guidance}"


def _machine(result: Result) -> str:
    return f"{_card(result)}, torch {result['machine'].get('torch')}"


def _card(result: Result) -> str:
    machine = result["machine"]
    return machine.get("gpu") or f"{machine.get('cpu')}, {machine.get('threads')} threads"


def _engine_table(result: Result) -> list[str]:
    stages = [stage for stage in STAGES if any(stage in row["stage_seconds"] for row in result["rows"])]
    head = ["engine", "transformer", "attention", "ms/step", "spread", "TFLOP/s", "of limit", "picture"]
    head += [*stages, "peak", "first call"]
    rows = [(row, _engine_cells(row, stages)) for row in result["rows"] if not row["reason"]]
    if any(row.get("cap_bytes") for row, _ in rows):
        head += ["plan", "cap"]
        rows = [(row, [*cells, _plan(row), _gib(row["cap_bytes"])]) for row, cells in rows]
    return [_line(head), _line(["---"] * len(head)), *(_line(cells) for _, cells in rows)]


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


def _plan(row: Result) -> str:
    """The plan, and each card's peak where there are several."""
    devices = row.get("devices") or {}
    if not devices:
        return str(row["plan"])
    peaks = (f"{name} {_gib(device['peak_bytes'])}" for name, device in devices.items())
    return f"{row['plan']}: {', '.join(peaks)}"


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
    started = [row["first_picture_seconds"] for row in result["rows"] if row.get("first_picture_seconds")]
    if started:
        lines.append(f"from a process's start to its first picture: {', '.join(map(_s, started))}")
    return lines + list(result["notes"])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _s(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _gib(count: int | None) -> str:
    return "-" if count is None else f"{count / _GIB:.1f} GiB"
