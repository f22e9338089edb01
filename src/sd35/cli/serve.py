"""serve pictures over HTTP: a web page and APIs

Two faces on one queue that survives whatever is killed: jobs under /api/v1, and OpenAI's Images API under
/v1. Every flag is also an environment variable, SD35_SERVE_ and its name, and a line of the --config file.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import fields, replace

from sd35.checkpoints.store import home, locate
from sd35.checkpoints.vae_halves import lacks_encoder
from sd35.errors import LibraryError, MissingError, RequestError, Sd35Error, UnavailableError
from sd35.serving.settings import Model, ServerSettings
from sd35.serving.sources import Resolved, flag_of, resolve

NULL_WORKER = (sys.executable, "-m", "sd35.serving.null_worker")
DRAW_WORKER = (sys.executable, "-m", "sd35.cli.draw_worker")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag for each setting, with the setting's own help and default; and the file's."""
    parser.add_argument("--config", metavar="FILE", help="TOML file of settings: max_queued = 50")
    for setting in fields(ServerSettings):
        flag, text = flag_of(setting.name), setting.metadata["help"]
        if isinstance(setting.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
            continue
        if setting.default != "":
            text += f" (default: {setting.default})"
        parser.add_argument(flag, type=type(setting.default), help=text)


def run(arguments: argparse.Namespace) -> None:
    """Serve until a signal says stop."""
    refuse_windows(sys.platform)
    settings = resolved(arguments).settings
    try:
        from sd35.serving import logs
        from sd35.serving.breaker import Commands
        from sd35.serving.server import serve
    except ImportError as error:
        raise LibraryError(
            f"`sd35 serve` needs {error.name}, which is not installed: pip install 'sd35-fp8[serve]'."
        ) from error
    logs.configure(settings.log_format)
    for sentence in missing_checkpoints(settings):
        print(f"sd35 serve: {sentence} Until then its jobs fail.", file=sys.stderr)
    serve(
        settings,
        Commands(_worker_command(settings), _witness_command(settings)),
        lambda url: print(f"sd35 serves on {url}", flush=True),
        frozenset(name for name, model in settings.catalogue().items() if _can_only_decode(model)),
    )


def refuse_windows(platform: str) -> None:
    """UnavailableError there: the server's locks, durable renames and workers' pipes are POSIX's."""
    if platform == "win32":
        raise UnavailableError(
            "`sd35 serve` runs on Linux and macOS, and Windows' locks and pipes are others: run it inside "
            "WSL 2, or on another machine, and open its page from here."
        )


def resolved(arguments: argparse.Namespace) -> Resolved:
    """What the server would run with, its data folder named, and where each value is from."""
    found = resolve(vars(arguments))
    if found.settings.data_dir:
        return found
    return replace(found, settings=replace(found.settings, data_dir=str(home() / "serve")))


def missing_checkpoints(settings: ServerSettings) -> Iterator[str]:
    """A sentence for each served model that is not here; it may be fetched while the server runs."""
    if settings.engine == "null":
        return
    for model in settings.catalogue().values():
        try:
            locate(model.checkpoint)
        except MissingError as error:
            yield f"{error}"


def _can_only_decode(model: Model) -> bool:
    """Whether no picture of this model can begin with an image.

    Of a checkpoint that can't be read nothing is known: what is wrong with it, the worker says.
    """
    try:
        return lacks_encoder(locate(model.checkpoint))
    except (Sd35Error, OSError):
        return False


def _worker_command(settings: ServerSettings) -> tuple[str, ...]:
    if settings.engine == "null":
        return NULL_WORKER
    if settings.precision not in ("fp8", "bf16"):
        raise RequestError(f"precision can't be {settings.precision!r}: choose one of fp8, bf16.")
    return (*DRAW_WORKER, settings.precision)


def _witness_command(settings: ServerSettings) -> tuple[str, ...] | None:
    """Who draws in 16 bits what came out wrong in FP8."""
    is_fp8 = settings.engine == "sd35" and settings.precision == "fp8"
    return (*DRAW_WORKER, "16-bit") if is_fp8 else None
