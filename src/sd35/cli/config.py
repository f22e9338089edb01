"""show the settings of a server, and where each value comes from

It takes the flags of `sd35 serve`, reads the same environment and file, and starts nothing.
"""

import argparse
import json
from dataclasses import asdict
from typing import Any

from sd35.cli import serve
from sd35.cli.console import print_json
from sd35.serving.sources import DEFAULT, shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `sd35 config` and of its action."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    summary = "print settings as lines for a --config file, secrets left out"
    show = actions.add_parser("show", help=summary, description=summary)
    show.add_argument(
        "--resolved", action="store_true", help="all settings, not only those that someone has chosen"
    )
    show.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    serve.add_arguments(show)


def run(arguments: argparse.Namespace) -> None:
    """Print; RequestError where `sd35 serve` would not start with this."""
    found = serve.resolved(arguments)
    rows = {
        name: {"value": shown(name, value), "from": found.sources[name]}
        for name, value in asdict(found.settings).items()
        if arguments.resolved or found.sources[name] != DEFAULT
    }
    if arguments.json:
        print_json(rows)
        return
    lines = {name: f"{name} = {_toml(row['value'])}" for name, row in rows.items()}
    width = max(map(len, lines.values()), default=0)
    for name, line in lines.items():
        print(f"{line:{width}}  # {rows[name]['from']}")
    if not rows:
        print("# nothing is set: all defaults, which --resolved shows")


def _toml(value: Any) -> str:
    """A string, number or truth value of TOML, which writes them as JSON does (without escaping ü)."""
    return json.dumps(value, ensure_ascii=False)
