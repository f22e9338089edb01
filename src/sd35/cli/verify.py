"""say whether a checkpoint is sound, and what is wrong with it"""

import argparse
from typing import TYPE_CHECKING

from sd35.cli.console import CountBar, megabytes, print_json
from sd35.errors import CheckpointError

if TYPE_CHECKING:
    from sd35.checkpoints.verify import VerifyReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `sd35 verify`."""
    parser.add_argument("path", help="a checkpoint folder, a .safetensors file, or a name such as demo")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else on stdout"
    )


def run(arguments: argparse.Namespace) -> None:
    """Look at everything, list all that is wrong; CheckpointError if anything is."""
    from sd35.checkpoints.store import locate
    from sd35.checkpoints.verify import verify

    with CountBar("verify", " MB", hidden=arguments.json) as bar:
        report = verify(locate(arguments.path), lambda done, of: bar.show(done // 10**6, of // 10**6))
    print_json(report.as_dict()) if arguments.json else _print(report)
    if not report.sound:
        count = len(report.findings)
        raise CheckpointError(f"{report.path} is not sound: {count} finding{'s' * (count > 1)}.")


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
