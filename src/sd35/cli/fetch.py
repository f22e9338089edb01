"""download a checkpoint from a hub, a Git LFS remote or another folder

Whole and verified, or not at all; a fetch that was cut off goes on when the same command is run again.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sd35.checkpoints.findings import some_of
from sd35.cli.console import CountBar, megabytes, print_json

if TYPE_CHECKING:
    from sd35.checkpoints.fetch.fetch import FetchReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `sd35 fetch`."""
    parser.add_argument(
        "source", help="large, medium, large-turbo, large-fp8; a hub id (org/name); a git URL; /a/folder"
    )
    parser.add_argument("-o", "--output", help="the folder; default: one of its name under SD35_HOME")
    parser.add_argument("--revision", help="a branch, tag or commit; default: the newest, once")
    parser.add_argument("--file", action="append", default=[], dest="files", metavar="NAME",
                        help="this file instead of the diffusers folder; may be given again")  # fmt: skip
    parser.add_argument("--via", choices=("hub", "git", "folder"), help="default: by the source's form")
    parser.add_argument("--endpoint", help="the hub's address or a mirror's; default: HF_ENDPOINT")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="remove files in the folder that are under a name that is fetched and are something else",
    )
    parser.add_argument("--jobs", type=int, default=4, help="files at once (default: 4)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else on stdout"
    )


def run(arguments: argparse.Namespace) -> None:
    """Fetch and say what is there now."""
    from sd35.checkpoints.fetch.fetch import fetch

    with CountBar("fetch", "B", hidden=arguments.json, is_scaled=True) as bar:
        report = fetch(
            arguments.source,
            Path(arguments.output) if arguments.output else None,
            revision=arguments.revision,
            via=arguments.via,
            endpoint=arguments.endpoint,
            files=tuple(arguments.files),
            may_replace=arguments.replace,
            jobs=arguments.jobs,
            show=bar.show,
        )
    _print_json(report) if arguments.json else _print(report)


def _print_json(report: "FetchReport") -> None:
    files = report.manifest.files
    print_json(
        {
            "path": str(report.path),
            "variant": report.manifest.variant,
            "files": len(files),
            "bytes": sum(record.size for record in files.values()),
            "fetched_files": report.brought,
            "fetched_bytes": report.brought_bytes,
            "strangers": report.strangers,
            "origin": asdict(report.manifest.origin) if report.manifest.origin else None,
            "checkpoint_sha256": report.manifest.identity,
        }
    )


def _print(report: "FetchReport") -> None:
    files, origin = report.manifest.files, report.manifest.origin
    size = megabytes(sum(record.size for record in files.values()))
    kept = len(files) - report.brought
    done = f"{report.brought} fetched and verified" if report.brought else "complete already, nothing to do"
    and_kept = f", {kept} were here and are right" if report.brought and kept else ""
    print(f"{report.path}   {len(files)} files, {size}: {done}{and_kept}")
    if origin is not None:
        print(f"from {origin.place}" + (f" at commit {origin.commit}" if origin.commit else ""))
    if report.strangers:
        print(f"left alone, and no part of it: {some_of(report.strangers, most=8)}")
