"""export the records of a server: one row for each generation"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd35.errors import LibraryError, MissingError, OutputError, RequestError

if TYPE_CHECKING:
    from sd35.serving.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `sd35 records` and of its action."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    summary = "write records as CSV, JSON or JSON lines, newest first; the server may run meanwhile"
    export = actions.add_parser("export", help=summary, description=summary)
    export.add_argument(
        "--format", choices=("jsonl", "json", "csv"), default="jsonl", help="(default: jsonl)"
    )
    export.add_argument("-o", "--output", metavar="FILE", help="write here (default: stdout)")
    export.add_argument("--since", metavar="TIME", help="2026-11-01, 2026-11-01T08:30Z or seconds since 1970")
    export.add_argument("--until", metavar="TIME", help="up to before this time")
    export.add_argument("--state", metavar="STATE", help="succeeded, failed, cancelled, expired, ...")
    export.add_argument("--model", metavar="NAME")
    export.add_argument("--key", metavar="KEY_ID", help="of this key alone")
    export.add_argument("--abnormal", action="store_true", help="only where a picture was abnormal")
    export.add_argument(
        "--data-dir", metavar="FOLDER", help="the server's data folder (default: SD35_HOME/serve)"
    )
    export.add_argument("--database", metavar="URL", help="the server's PostgreSQL database, if it has one")


def run(arguments: argparse.Namespace) -> None:
    """Write the records that were asked for."""
    try:
        from sd35.serving import records
    except ImportError as error:
        raise LibraryError(
            f"`sd35 records` needs {error.name}, which is not installed: pip install 'sd35-fp8[serve]'."
        ) from error
    which, store = _which(arguments), _open(arguments)
    try:
        pieces = records.written(records.every(store, which), arguments.format)
        if arguments.output is None:
            sys.stdout.writelines(pieces)
            return
        with Path(arguments.output).open("w", encoding="utf-8", newline="") as file:
            file.writelines(pieces)
    except OSError as error:
        raise OutputError(f"The records can't be written ({error.strerror}): see to the place.") from error
    finally:
        store.close()


def _which(arguments: argparse.Namespace) -> Any:
    from sd35.serving.jobs import State
    from sd35.serving.records import Which, moment

    try:
        state = None if arguments.state is None else State(arguments.state)
    except ValueError as error:
        raise RequestError(f"{arguments.state!r} is no state: choose one of {', '.join(State)}.") from error
    return Which(
        since=None if arguments.since is None else moment(arguments.since),
        until=None if arguments.until is None else moment(arguments.until),
        key_id=arguments.key,
        model=arguments.model,
        state=state,
        abnormal=True if arguments.abnormal else None,
    )


def _open(arguments: argparse.Namespace) -> "Store":
    from sd35.checkpoints.store import home
    from sd35.serving.server import DATABASE, open_store
    from sd35.serving.settings import ServerSettings

    folder = Path(os.path.expanduser(arguments.data_dir)) if arguments.data_dir else home() / "serve"
    if not arguments.database and not (folder / DATABASE).is_file():
        raise MissingError(f"There are no records in {folder}: give the server's --data-dir.")
    return open_store(ServerSettings(database=arguments.database or ""), folder)
