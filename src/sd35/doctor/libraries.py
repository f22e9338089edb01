"""Optional libraries: which are here, what each would add, and the one command that installs it."""

import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from sd35.config import Attention
from sd35.doctor.choices import Operation
from sd35.doctor.finding import Finding, well, wrong
from sd35.runtime.machine import installed_version

# The WAL-reset race (two connections that checkpoint at once) ended in 3.51.3: https://sqlite.org/wal.html
_SQLITE = (3, 51, 3)
_TRITON = "triton-windows" if sys.platform == "win32" else "triton"


@dataclass(frozen=True)
class Optional:
    """A package, what it is for, and how it is installed."""

    package: str
    purpose: str
    install: str


OPTIONAL = (
    Optional(
        _TRITON,
        "fused kernels on a card (PyTorch's CUDA builds for Linux bring it along)",
        f"pip install {_TRITON}",
    ),
    Optional(
        "fa3-fwd", "FlashAttention-3, the fastest attention on Hopper", "pip install 'sd35-fp8[hopper]'"
    ),
    Optional("xformers", "one more attention, for comparison", "pip install xformers"),
    Optional("fastapi", "sd35 serve", "pip install 'sd35-fp8[serve]'"),
    Optional("psycopg", "sd35 serve with PostgreSQL", "pip install 'sd35-fp8[serve,serve-postgresql]'"),
    Optional(
        "efficientnet-lite-pytorch", "the outside witness of sd35 compare", "pip install 'sd35-fp8[compare]'"
    ),
    Optional("resvg-py", "training the demo model", "pip install 'sd35-fp8[train]'"),
)


def check_libraries() -> Iterator[Finding]:
    """A line each; one that is missing is an offer, for nothing needs it until it is asked for."""
    for library in OPTIONAL:
        version = installed_version(library.package)
        found = version or "not installed"
        yield well(library.package, f"{found}: {library.purpose}", "" if version else library.install)
    version = sqlite3.sqlite_version
    is_new = sqlite3.sqlite_version_info >= _SQLITE
    advice = "" if is_new else " (before 3.51.3: let one server at a time use a data folder)"
    yield well("SQLite", f"{version}{advice}")


def check_attention(operation: Operation, wanted: Attention) -> Iterator[Finding]:
    """Who attends; wrong where somebody else was demanded; an offer where a package would be faster."""
    refusals = {one.name: one.refusal for one in operation.candidates}
    refusal = refusals.get(wanted)  # nobody refuses to be auto
    if refusal is not None:
        yield wrong(
            "attention", f"{wanted} can't run here: {refusal}", _install(refusal) or "leave out --attention",
            "attention library missing",
        )  # fmt: skip
        return
    chosen = operation.chosen if wanted == "auto" else wanted
    better = refusals.get("fa3")
    offer = _install(better) if better and chosen != "fa3" else ""
    said = [chosen, *([f"fa3 would be faster: {better}"] if offer else [])]
    if chosen != "sd35-fp8" and "sd35-fp8" in refusals and refusals["sd35-fp8"] is None:
        said.append("in FP8, --attention sd35-fp8 is the fastest here")
    yield well("attention", "; ".join(said), offer)


def _install(refusal: str) -> str:
    """The pip command in a refusal's brackets."""
    _, bracket, rest = refusal.partition("(pip ")
    return f"pip {rest.rstrip(')')}" if bracket else ""
