"""One engine in a process of its own: a task comes on stdin, what is found goes out as lines of JSON.

Engines can't share a process: each would find the others' memory, compile caches and settings. A line is
written as soon as it is known (`row`, then `limits` and `kernels`), so an end half-way loses only what comes
after. Whatever libraries print goes to stderr; its last line is the reason of a failure.
"""

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import IO, Any

from sd35.bench.measure import Engine, measure
from sd35.bench.workload import OURS, Workload
from sd35.errors import Sd35Error


def main() -> int:
    """Do the task that stdin describes; exit code 1 for what the library refuses, in one sentence."""
    task, out = json.load(sys.stdin), sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            work(task, out)
    except Sd35Error as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def work(task: dict[str, Any], out: IO[str]) -> None:
    """Measure the engine; for our own the card's limits too, and what a step is made of."""
    from sd35.bench.kernels import profile_step
    from sd35.bench.limits import measure_limits

    workload = Workload(**task["workload"])
    engine = build(task["engine"], workload)
    _say(out, "row", vars(measure(engine, task["engine"], workload)))
    if task["limits"]:
        _say_extra(out, "limits", lambda: measure_limits(workload, engine.device))
    if task["profile"] and "denoise" in workload.stages:
        _say_extra(out, "kernels", lambda: profile_step(engine, workload))


def build(name: str, workload: Workload) -> Engine:
    """The engine of that name, loaded; libraries of the others stay out of ours."""
    if name == OURS:
        from sd35.bench.ours import Sd35Engine

        return Sd35Engine(workload)
    from sd35.bench.peers import BUILDERS

    return BUILDERS[name](workload)


def _say_extra(out: IO[str], kind: str, find: Callable[[], Any]) -> None:
    """What is worth less than the row: where it can't be found, say why and go on."""
    try:
        _say(out, kind, find())
    except (RuntimeError, ImportError, AttributeError, TypeError, ValueError) as error:
        _say(out, "note", f"no {kind}: {type(error).__name__}: {error}")


def _say(out: IO[str], kind: str, content: Any) -> None:
    out.write(json.dumps({kind: content}) + "\n")
    out.flush()


if __name__ == "__main__":
    sys.exit(main())
