"""diagnose this machine or a checkpoint, and say how to fix what is wrong

Each finding is ok, or says what is wrong and the command that mends it. Exit code 4 if something is wrong
with the machine, 3 if it is a checkpoint alone.
"""

import argparse
from typing import TYPE_CHECKING, get_args

from sd35.cli.companions import add_companions
from sd35.cli.console import CountBar, megabytes, print_json
from sd35.config import Attention, RuntimeConfig
from sd35.errors import CheckpointError, UnavailableError

if TYPE_CHECKING:
    from sd35.doctor.choices import Operation
    from sd35.doctor.examine import Asked, Diagnosis
    from sd35.doctor.fits import Fit, Fits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `sd35 doctor`."""
    parser.add_argument(
        "checkpoint", nargs="?",
        help="a folder, a single file or a name: every byte of it is read; default: all that are here, by "
        "their headers",
    )  # fmt: skip
    add_companions(parser)
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; default: a card if there is one")
    parser.add_argument(
        "--max-vram",
        metavar="SIZE",
        help="ask what fits into this, such as 7.2GiB (default: what is free)",
    )
    parser.add_argument(
        "--size", type=int, metavar="PIXELS",
        help="ask whether a square of this side fits (default: what the checkpoint was trained for)",
    )  # fmt: skip
    parser.add_argument(
        "--attention", choices=get_args(Attention), default="auto", help="ask whether this one can run here"
    )
    parser.add_argument(
        "--online", action="store_true", help="ask the hub whether its checkpoints may be fetched"
    )
    parser.add_argument(
        "--fix", action="store_true",
        help="make the repairs that lose nothing: download damaged files again, remove damaged FP8 folders "
        "that sd35 made itself, close the token's file to others",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else on stdout"
    )


def run(arguments: argparse.Namespace) -> None:
    """Examine, mend if asked, print; an error if something is wrong and stays so."""
    from sd35.doctor.examine import Asked, mend

    asked = Asked(
        checkpoint=arguments.checkpoint,
        components=arguments.components,
        encoder_files=tuple(arguments.text_encoders),
        size=arguments.size,
        online=arguments.online,
    )
    diagnosis = _look(arguments, asked)
    done: list[str] = []
    if arguments.fix and diagnosis.wrong:
        done = mend(diagnosis, asked)
        diagnosis = _look(arguments, asked)
    if arguments.json:
        print_json({**diagnosis.as_dict(), "done": done})
    else:
        _print(diagnosis, done)
    _end(diagnosis)


def _look(arguments: argparse.Namespace, asked: "Asked") -> "Diagnosis":
    from sd35.doctor.examine import examine

    config = RuntimeConfig(
        device=arguments.device, max_vram=arguments.max_vram, attention=arguments.attention
    )
    with CountBar("verify", " MB", hidden=arguments.json) as bar:
        return examine(config, asked, lambda done, of: bar.show(done // 10**6, of // 10**6))


def _end(diagnosis: "Diagnosis") -> None:
    found = diagnosis.wrong
    if not found:
        return
    words = f"{len(found)} finding{'s' * (len(found) > 1)}: see above for what mends each."
    if all(finding.about == "checkpoint" for finding in found):
        raise CheckpointError(words)
    raise UnavailableError(words)


def _print(diagnosis: "Diagnosis", done: list[str]) -> None:
    _print_machine(diagnosis)
    for operation in diagnosis.operations:
        _print_operation(operation)
    _print_fits(diagnosis.fits, diagnosis.budget_bytes)
    print("\nfindings")
    for finding in diagnosis.findings:
        print(f"  {'ok   ' if finding.ok else 'WRONG'}  {finding.check}: {finding.what}")
        if finding.fix:
            print(f"         {'could' if finding.ok else 'mend'}: {finding.fix}")
    for sentence in done:
        print(f"done: {sentence}")
    if not diagnosis.wrong:
        print("nothing is wrong")


def _print_machine(diagnosis: "Diagnosis") -> None:
    machine = diagnosis.machine
    if machine.gpu is not None:
        memory = megabytes(machine.gpu_bytes or 0)
        print(f"card      {machine.gpu}, sm {machine.capability}, {memory}, driver {machine.driver}")
    else:
        print("card      none that is used here")
    print(f"cpu       {machine.cpu}, {machine.threads} threads")
    cuda = f" with CUDA {machine.cuda}" if machine.cuda else ""
    print(f"software  Python {machine.python}, torch {machine.torch}{cuda}, triton {machine.triton}")
    print(f"auto      device {diagnosis.device}, compute in {diagnosis.compute_dtype}")


def _print_operation(operation: "Operation") -> None:
    print(f"\n{operation.name}: {operation.chosen}")
    for candidate in operation.candidates:
        standing = "taken" if candidate.name == operation.chosen else "could run, and others come first"
        print(f"  {candidate.name:<18}{candidate.refusal or standing}")


def _print_fits(tables: "list[Fits]", budget: int | None) -> None:
    from sd35.runtime.budget import in_words

    within = "no bound" if budget is None else in_words(budget)
    print(f"\nwhat fits in {within}, in FP8: side in pixels, plan, peak")
    for fits in tables:
        print(f"  {fits.name}" + ("" if fits.is_here else " (by arithmetic)"))
        for fit in sorted({*fits.rows, fits.asked}, key=lambda fit: fit.side):
            print(f"    {fit.side:>5}  {_plan(fit):<50} {fit.bytes / 2**30:6.2f} GiB")


def _plan(fit: "Fit") -> str:
    return fit.plan or "none: the smallest plan needs more"
