"""measure speed and memory, also of diffusers and torchao; or load-test a server (--serve)

Random weights at the variant's full size, made on the device: speed does not need trained ones. Every engine
runs in a process of its own and does the same work.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from dataclasses import asdict, fields
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from sd35.bench.workload import OURS, PEERS, STAGES, Workload
from sd35.cli import bench_serve
from sd35.cli.console import print_json
from sd35.cli.output import write_whole
from sd35.config import Attention, Precision, RuntimeConfig
from sd35.errors import OutputError, RequestError
from sd35.variants import VARIANTS

if TYPE_CHECKING:
    from sd35.bench.bench import Plan
    from sd35.bench.results import Report

_QUICK = {"variant": "demo", "size": "128x128", "steps": 4, "rounds": 1}
_OUTPUT_FLAGS = ("--out", "--chart", "--key-file", "--json", "--verbose")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `sd35 bench`; how our engine runs is said in RuntimeConfig's own names."""
    parser.add_argument("--variant", choices=VARIANTS, help="whose sizes (default: large)")
    parser.add_argument(
        "--quick", action="store_true", help="the demo's sizes, few steps: seconds on any CPU"
    )
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, default=[], help="other engines to run (default: none)"
    )
    parser.add_argument(
        "--also", nargs="*", choices=get_args(Attention), default=[], metavar="ATTENTION",
        help="also run sd35 with these attention implementations",
    )  # fmt: skip
    parser.add_argument(
        "--caps", nargs="*", default=[], metavar="MEMORY",
        help="also run sd35 with these memory limits, such as 7.2GiB 5.2GiB",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint", help="a folder or single file for sd35 to read (default: random weights)"
    )
    parser.add_argument(
        "--precision", choices=get_args(Precision), default="fp8",
        help="of sd35's random weights in the transformer (default: fp8)",
    )  # fmt: skip
    parser.add_argument("--size", metavar="WxH", help="of the picture (default: the variant's)")
    parser.add_argument("--images", type=int, default=1, help="pictures at once (default: 1)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the variant's)")
    parser.add_argument("--guidance-scale", type=float, help="1 is off (default: the variant's)")
    parser.add_argument("--stage", choices=STAGES, help="this stage alone")
    parser.add_argument("--rounds", type=int, help="drawings measured after the warm-up (default: 3)")
    parser.add_argument(
        "--budget", type=float, default=480.0, metavar="SECONDS",
        help="for all engines together; what does not fit is skipped (default: 480)",
    )  # fmt: skip
    parser.add_argument(
        "--no-profile", action="store_true", help="leave out kernels and the card's limits: times alone"
    )
    parser.add_argument(
        "--keep-caches",
        action="store_true",
        help="use this machine's compile caches: first calls are then warm",
    )
    parser.add_argument(
        "--out", metavar="FILE.json", help="write the result, and write it anew after each engine"
    )
    parser.add_argument("--chart", metavar="FILE.png", help="draw the steps' times as bars")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else on stdout"
    )
    bench_serve.add_arguments(parser)
    _add_runtime_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure, write after each engine, print the short table last."""
    for path in (arguments.out, arguments.chart):
        if path and not Path(path).absolute().parent.is_dir():
            raise OutputError(f"{path} can't be written: its folder does not exist, so make that first.")
    if arguments.serve is not None:
        bench_serve.run(arguments, _size(arguments.size), _here)
        return
    from sd35.bench.bench import bench

    plan = _plan(arguments)
    report = bench(plan, _machine(plan), lambda report, words: _keep(report, words, arguments))
    result = asdict(report)
    if arguments.chart:
        _draw(result, Path(arguments.chart))
    if arguments.json:
        print_json(result)
        return
    from sd35.bench.report import short_table

    print(short_table(result))


def _add_runtime_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how sd35 runs (the device is that of all engines)")
    for field in fields(RuntimeConfig):
        is_switch = isinstance(field.default, bool)
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            action=argparse.BooleanOptionalAction if is_switch else "store",
            help=f"as in sd35.RuntimeConfig (default: {'none' if field.default == () else field.default})",
        )


def _plan(arguments: argparse.Namespace) -> "Plan":
    from sd35.bench.bench import Plan

    chosen = {name: getattr(arguments, name) for name in _QUICK}
    if arguments.quick:
        chosen = {name: _QUICK[name] if value is None else value for name, value in chosen.items()}
    width, height = _size(chosen.pop("size"))
    runtime = {field.name: getattr(arguments, field.name) for field in fields(RuntimeConfig)}
    workload = Workload(
        **{name: value for name, value in chosen.items() if value is not None},
        width=width,
        height=height,
        images=arguments.images,
        guidance_scale=arguments.guidance_scale,
        stage=arguments.stage,
        checkpoint=arguments.checkpoint,
        precision=arguments.precision,
        runtime={name: value for name, value in runtime.items() if value is not None},
    )
    if not arguments.budget > 0:
        raise RequestError(f"budget is {arguments.budget:g} s: give more than 0.")
    engines = (OURS, *dict.fromkeys(arguments.peers))
    return Plan(
        workload, engines, arguments.also, arguments.caps, arguments.budget,
        profiles=not arguments.no_profile, keeps_caches=arguments.keep_caches,
    )  # fmt: skip


def _size(text: str | None) -> tuple[int | None, int | None]:
    """`1024x768` as (1024, 768)."""
    if text is None:
        return None, None
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if found is None:
        raise RequestError(f"size is {text!r}: give width and height in pixels, such as 1024x1024.")
    return int(found[1]), int(found[2])


def _machine(plan: "Plan") -> dict[str, Any]:
    """The machine with the card that the plan runs on."""
    from sd35.runtime.load import resolve

    return _here(str(resolve(plan.workload.config()).device))


def _here(device: str) -> dict[str, Any]:
    """The machine, and what was measured on it: the commit, the command and the day."""
    import torch

    from sd35.runtime.machine import machine_of

    facts = machine_of(torch.device(device)).as_dict()
    return {**facts, "commit": _commit(), "command": _command(), "date": date.today().isoformat()}


def _commit() -> str | None:
    """The commit of the tree that this code is in, None for an installed package."""
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, encoding="ascii", check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _command() -> str:
    """The command line without the places of its output, which are this machine's own affair."""
    words = iter(sys.argv[1:])
    kept = []
    for word in words:
        if word.partition("=")[0] not in _OUTPUT_FLAGS:
            kept.append(word)
        elif word in ("--out", "--chart", "--key-file"):
            next(words, None)
    return shlex.join(["sd35", *kept])


def _keep(report: "Report", words: str, arguments: argparse.Namespace) -> None:
    """Write what is known so far, and say on stderr how the last engine did."""
    print(words, file=sys.stderr)
    if arguments.out:
        content = json.dumps(asdict(report), indent=1, ensure_ascii=False) + "\n"
        write_whole(Path(arguments.out), content.encode())


def _draw(result: dict[str, Any], path: Path) -> None:
    import io

    from sd35.bench.chart import chart

    buffer = io.BytesIO()
    chart(result).save(buffer, "PNG", optimize=True)
    write_whole(path, buffer.getvalue())
