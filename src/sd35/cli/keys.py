"""make, list and revoke the API keys of a server"""

import argparse
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sd35.cli.console import print_json

if TYPE_CHECKING:
    from sd35.serving.keys import Key, KeyStore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `sd35 keys` and of its three actions."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = _action(actions, "add", "make a key and show it, once")
    add.add_argument("name", help="whom or what the key is for")
    add.add_argument(
        "--scope",
        action="append",
        metavar="SCOPE",
        help="generate, read or admin; more than one may be given (default: generate and read)",
    )
    add.add_argument("--images-per-day", type=int, metavar="N")
    add.add_argument("--megapixel-steps-per-day", type=float, metavar="N")
    add.add_argument("--queued-jobs", type=int, metavar="N", help="how many of its jobs may wait at once")
    add.add_argument("--weight", type=float, default=1.0, metavar="W", help="its share of a busy server (1)")
    _action(actions, "list", "show all keys, without their secrets")
    revoke = _action(actions, "revoke", "end a key, at once and for good")
    revoke.add_argument("key_id", help="the id that `sd35 keys list` shows")


def _action(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, summary: str
) -> argparse.ArgumentParser:
    action = actions.add_parser(name, help=summary, description=summary)
    action.add_argument(
        "--data-dir", metavar="FOLDER", help="the server's data folder (default: SD35_HOME/serve)"
    )
    action.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else on stdout"
    )
    return action


def run(arguments: argparse.Namespace) -> None:
    """Do one of the three; a running server sees it at its next request."""
    from sd35.checkpoints.store import home
    from sd35.serving.keys import KeyStore

    folder = Path(os.path.expanduser(arguments.data_dir)) if arguments.data_dir else home() / "serve"
    store = KeyStore(folder)
    try:
        {"add": _add, "list": _list, "revoke": _revoke}[arguments.action](store, arguments)
    finally:
        store.close()


def _add(store: "KeyStore", arguments: argparse.Namespace) -> None:
    from sd35.serving.keys import Quotas

    quotas = Quotas(
        images_per_day=arguments.images_per_day,
        megapixel_steps_per_day=arguments.megapixel_steps_per_day,
        queued_jobs=arguments.queued_jobs,
        weight=arguments.weight,
    )
    key, text = store.add(arguments.name, arguments.scope or ("generate", "read"), quotas)
    if arguments.json:
        print_json({**asdict(key), "key": text})
        return
    print(text)
    print(
        "This is shown once: keep it now. From here on the server asks every request for a key.",
        file=sys.stderr,  # so that KEY=$(sd35 keys add NAME) is the key
    )


def _list(store: "KeyStore", arguments: argparse.Namespace) -> None:
    keys = store.keys()
    if arguments.json:
        print_json({"keys": [asdict(key) for key in keys]})
        return
    for key in keys:
        print(_line(key))
    if not keys:
        print(f"no keys in {store.path}: on this machine itself, anyone may use the server")


def _line(key: "Key") -> str:
    made = time.strftime("%Y-%m-%d", time.localtime(key.created))
    state = "revoked" if key.revoked else "works"
    limits = [f"{name}={value:g}" for name, value in asdict(key.quotas).items() if value is not None]
    return "  ".join([key.key_id, made, state, ",".join(key.scopes), " ".join(limits), key.name])


def _revoke(store: "KeyStore", arguments: argparse.Namespace) -> None:
    store.revoke(arguments.key_id)
    if arguments.json:
        print_json({"revoked": arguments.key_id})
    else:
        print(f"revoked   {arguments.key_id}")
