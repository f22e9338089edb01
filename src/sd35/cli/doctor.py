"""say what this machine can do, and which implementations it would use

For each operation: what `auto` takes, and why it does not take the others.
"""

import argparse
from typing import TYPE_CHECKING

from sd35.cli.console import megabytes, print_json
from sd35.config import RuntimeConfig

if TYPE_CHECKING:
    from sd35.doctor import Diagnosis, Operation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `sd35 doctor`."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; default: a card if there is one")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else on stdout"
    )


def run(arguments: argparse.Namespace) -> None:
    """Examine and print."""
    from sd35.doctor import examine

    diagnosis = examine(RuntimeConfig(device=arguments.device))
    print_json(diagnosis.as_dict()) if arguments.json else _print(diagnosis)


def _print(diagnosis: "Diagnosis") -> None:
    machine = diagnosis.machine
    if machine.gpu is not None:
        memory = megabytes(machine.gpu_bytes or 0)
        print(f"card      {machine.gpu}, sm {machine.capability}, {memory}, driver {machine.driver}")
    else:
        print("card      none that this PyTorch can use")
    print(f"cpu       {machine.cpu}, {machine.threads} threads")
    cuda = f" with CUDA {machine.cuda}" if machine.cuda else ""
    print(f"software  Python {machine.python}, torch {machine.torch}{cuda}, triton {machine.triton}")
    print(f"auto      device {diagnosis.device}, compute in {diagnosis.compute_dtype}")
    for operation in diagnosis.operations:
        _print_operation(operation)


def _print_operation(operation: "Operation") -> None:
    print(f"\n{operation.name}: {operation.chosen}")
    for candidate in operation.candidates:
        standing = "taken" if candidate.name == operation.chosen else "could run, and others come first"
        print(f"  {candidate.name:<18}{candidate.refusal or standing}")
