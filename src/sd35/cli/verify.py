"""check whether a checkpoint is complete and undamaged"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sd35 import __version__
from sd35.cli.console import CountBar, megabytes, print_json
from sd35.errors import CheckpointError

if TYPE_CHECKING:
    from sd35.checkpoints.verify import VerifyReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `sd35 verify`."""
    parser.add_argument("path", help="a checkpoint folder, a .safetensors file, or a name such as demo")
    parser.add_argument("--fix", action="store_true", help="fetch the damaged files again, and only those")
    parser.add_argument(
        "--record",
        action="store_true",
        help="if it is sound and has no manifest, write one (size and SHA-256 of each file): later damage "
        "anywhere is then found",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else on stdout"
    )


def run(arguments: argparse.Namespace) -> None:
    """Look at everything, list all that is wrong; CheckpointError if anything is and stays so."""
    from sd35.checkpoints.store import locate

    path = locate(arguments.path)
    report = _look(path, arguments)
    if arguments.fix and not report.sound:
        _fetch_again(path, report, hidden=arguments.json)
        report = _look(path, arguments)
    if arguments.json:
        print_json(report.as_dict())
    if not report.sound:
        count = len(report.findings)
        raise CheckpointError(f"{report.path} is not sound: {count} finding{'s' * (count > 1)}.")
    if arguments.record:
        _record(path, hidden=arguments.json)


def _look(path: Path, arguments: argparse.Namespace) -> "VerifyReport":
    from sd35.checkpoints.verify import verify

    with CountBar("verify", " MB", hidden=arguments.json) as bar:
        report = verify(path, lambda done, of: bar.show(done // 10**6, of // 10**6))
    if not arguments.json:
        _print(report)
    return report


def _fetch_again(path: Path, report: "VerifyReport", *, hidden: bool) -> None:
    """Bring the damaged files again, from where the manifest of the folder says they came from."""
    from sd35.checkpoints.fetch.mend import mend

    with CountBar("fetch", "B", hidden=hidden, is_scaled=True) as bar:
        mend(path, report.damaged, bar.show)


def _record(path: Path, *, hidden: bool) -> None:
    from sd35.checkpoints.manifest import manifest_place, record

    manifest = record(path, f"sd35-fp8 {__version__}")
    if not hidden:
        print(f"recorded   {len(manifest.files)} files in {manifest_place(path)}")


def _print(report: "VerifyReport") -> None:
    rate = megabytes(round(report.bytes / max(report.seconds, 1e-9)))
    print(
        f"{report.path}   {report.variant or 'no known variant'}, {report.files} files, "
        f"{megabytes(report.bytes)} in {report.seconds:.1f} s ({rate}/s)"
    )
    records = ", ".join(report.records) or "no record, so only what breaks a rule was found"
    print(f"compared with   {records} ({report.compared} of {report.files} files)")
    for note in report.notes:
        print(f"note   {note}")
    for finding in report.findings:
        print(f"wrong   {finding}")
    if report.sound:
        print("sound")
