"""`sd35 bench --serve`: its flags, and its table."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd35.cli.console import print_json
from sd35.cli.output import write_whole
from sd35.config import RuntimeConfig
from sd35.errors import OutputError, RequestError

if TYPE_CHECKING:
    from sd35.bench.serve import ServePlan, ServeReport, ServeRow

# Flags of `sd35 bench` that say nothing about a server.
_STRANGERS = (
    *("variant", "quick", "peers", "also", "caps", "checkpoint", "guidance_scale", "stage", "rounds"),
    *("no_profile", "keep_caches", "chart"),
    *(field.name for field in fields(RuntimeConfig)),
)
_FIELDS = ("clients", "rate", "seconds", "models")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags beside --size, --steps, --images, --out and --json, which mean here what they mean there."""
    group = parser.add_argument_group("load test of a server")
    group.add_argument(
        "--serve", metavar="URL", help="address of the server to test; null starts one without a model"
    )
    group.add_argument("--clients", type=int, help="of the closed loops, at once (default: 16)")
    group.add_argument("--rate", type=float, help="of the open loops, requests a second (default: 20)")
    group.add_argument("--seconds", type=float, help="of each loop (default: 10)")
    group.add_argument("--models", help="of the server that null starts (default: demo)")
    group.add_argument(
        "--key-file", metavar="FILE", help="file with an API key, for a server that asks for one"
    )


def run(
    arguments: argparse.Namespace,
    size: tuple[int | None, int | None],
    machine: Callable[[str], dict[str, Any]],
) -> None:
    """Press, write after each loop, print a table line for each."""
    from sd35.bench.serve import bench_serve

    plan = _plan(arguments, size)
    print(HEAD, file=sys.stderr if arguments.json else sys.stdout)
    report = bench_serve(plan, machine("cpu"), lambda report, row: _keep(report, row, arguments))
    if arguments.json:
        print_json(report.as_dict())
        return
    loads = ", ".join(f"{when} {load[0]:.2f}" for when, load in report.load_average.items())
    disk = "" if report.commit_ms is None else f"; the disk keeps 4 KiB in {report.commit_ms:.2f} ms"
    print(f"{report.machine['cpu']}, {report.machine['threads']} threads; load average {loads}{disk}")


HEAD = (
    f"{'errand':12}{'load':>12}{'done':>8}{'failed':>8}{'a second':>10}"
    f"{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'CPU ms':>8}{'images/min':>12}{'images/day':>12}"
)


def line(row: "ServeRow") -> str:
    """A row of the table; CPU is the server's own for each success."""
    load = f"{row.rate:g} a second" if row.clients is None else f"{row.clients} at once"
    times = "".join(_number(value, 9, 2) for value in (row.p50_ms, row.p95_ms, row.p99_ms))
    return (
        f"{row.errand:12}{load:>12}{row.succeeded:>8}{sum(row.failed.values()):>8}{row.per_second:>10.1f}{times}"
        f"{_number(row.server_cpu_ms, 8, 2)}{_number(row.images_per_minute, 12, 0)}"
        f"{_number(row.images_per_day, 12, 0)}"
    )


def _plan(arguments: argparse.Namespace, size: tuple[int | None, int | None]) -> "ServePlan":
    from sd35.bench.serve import ServePlan

    for name in _STRANGERS:
        if getattr(arguments, name):
            flag = f"--{name.replace('_', '-')}"
            raise RequestError(f"{flag} says nothing about a server: leave it out, or leave out --serve.")
    asked = {
        "width": size[0],
        "height": size[1],
        "num_inference_steps": arguments.steps,
        "n": arguments.images,
    }
    given = {name: value for name in _FIELDS if (value := getattr(arguments, name)) is not None}
    return ServePlan(
        target=arguments.serve,
        key=_key(arguments.key_file),
        asked={name: value for name, value in asked.items() if value is not None},
        **given,
    )


def _key(path: str | None) -> str | None:
    """A file and not a flag: command lines are seen by everyone on the machine, and kept in results."""
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"The key can't be read from {path} ({error}): correct --key-file.") from error


def _keep(report: "ServeReport", row: "ServeRow", arguments: argparse.Namespace) -> None:
    print(line(row), file=sys.stderr if arguments.json else sys.stdout, flush=True)
    for reason, count in row.failed.items():
        print(f"{'':12}{count} x {reason}", file=sys.stderr)
    if arguments.out:
        content = json.dumps(report.as_dict(), indent=1, ensure_ascii=False) + "\n"
        write_whole(Path(arguments.out), content.encode())


def _number(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"
