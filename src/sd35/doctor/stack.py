"""Driver, CUDA, PyTorch and card: do they belong together?

PyTorch brings its own CUDA libraries, so the driver alone has to be new enough. A build holds machine
code for the architectures in `torch.cuda.get_arch_list()`: `sm_80` runs on 8.0 and on later 8.x, and
`compute_90` (PTX) is compiled by the driver for cards from 9.0 on. A card that none of them covers fails at
its first kernel ("no kernel image is available"). Triton compiles
a launcher in C for each kernel, on this machine.
"""

import importlib.util
import os
import platform
import re
import shutil
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sd35.doctor.finding import Finding, well, wrong
from sd35.runtime.machine import ask_driver

_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)[a-z]?")
_TROUBLE = "card not used"


@dataclass(frozen=True)
class Stack:
    """What this process has; `driver_cards` are those that nvidia-smi lists, by name and driver version."""

    torch: str
    cuda: str | None
    hip: str | None
    architectures: Sequence[str]
    cards: Sequence[tuple[str, tuple[int, int]]]  # that PyTorch can use: name, capability
    driver_cards: Sequence[tuple[str, str]]
    triton_lacks: Sequence[str] = ()  # of what it compiles launchers with


def stack_here() -> Stack:
    """The stack of this machine."""
    cards = range(torch.cuda.device_count()) if torch.cuda.is_available() else range(0)
    listed = [line.partition(",") for line in ask_driver("name,driver_version")]
    return Stack(
        torch=torch.__version__,
        cuda=torch.version.cuda,
        hip=torch.version.hip,
        architectures=torch.cuda.get_arch_list(),
        cards=[(torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)) for i in cards],
        driver_cards=[(name.strip(), version.strip()) for name, _, version in listed],
        triton_lacks=list(_missing_build_tools()) if cards else [],
    )


def check_stack(stack: Stack) -> Iterator[Finding]:
    """The first link that is broken, or each card's architecture."""
    if stack.hip is not None:
        yield well("PyTorch", f"{stack.torch} for AMD cards, on which sd35 is not tested: use --device cpu")
    elif not stack.driver_cards and not stack.cards:
        yield well("card", "no NVIDIA driver answers here, so all is computed on the CPU")
    elif stack.cuda is None:
        name, driver = stack.driver_cards[0]
        yield wrong(
            "PyTorch", f"{stack.torch} is built without CUDA, and there is a card: {name}, driver {driver}",
            _reinstall(), _TROUBLE,
        )  # fmt: skip
    elif not stack.cards:
        name, driver = stack.driver_cards[0]
        yield wrong(
            "driver",
            f"driver {driver} shows {name}, and PyTorch with CUDA {stack.cuda} can use no card: the "
            "driver is too old for it, or CUDA_VISIBLE_DEVICES hides the card",
            "nvidia-smi  # says the newest CUDA that the driver knows; update the driver if it is older than "
            f"{stack.cuda}", _TROUBLE,
        )  # fmt: skip
    else:
        yield from (_check_card(stack, name, capability) for name, capability in stack.cards)
        if stack.triton_lacks:
            absent = " and no ".join(stack.triton_lacks)
            yield wrong(
                "Triton", f"it compiles launchers for its kernels, and finds no {absent}",
                "apt install gcc python3-dev  # or your system's packages of these", _TROUBLE,
            )  # fmt: skip


def covers(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for `sm_80` or `compute_90` runs on a card of this capability."""
    found = _ARCHITECTURE.fullmatch(architecture)
    if found is None:
        return False
    kind, major, minor = found[1], int(found[2]), int(found[3])
    return (major, minor) <= capability and (kind == "compute" or major == capability[0])


def _check_card(stack: Stack, name: str, capability: tuple[int, int]) -> Finding:
    has_code = any(covers(architecture, capability) for architecture in stack.architectures)
    card = f"{name}, sm_{capability[0]}{capability[1]}"
    if has_code:
        return well("card", f"{card}: PyTorch {stack.torch} with CUDA {stack.cuda} has code for it")
    built = ", ".join(stack.architectures)
    return wrong(
        "card", f"{card}: PyTorch {stack.torch} has no code for it, only for {built}",
        "pip install --upgrade torch  # for an old card: an older release that still lists its sm_", _TROUBLE,
    )  # fmt: skip


def _missing_build_tools() -> Iterator[str]:
    """What Triton looks for on Linux (`triton/runtime/build.py`) and does not find."""
    if platform.system() != "Linux" or importlib.util.find_spec("triton") is None:
        return  # triton-windows brings a compiler along
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        yield "C compiler"
    if not (Path(sysconfig.get_paths("posix_prefix")["include"]) / "Python.h").is_file():
        yield "Python.h"


def _reinstall() -> str:
    if platform.system() == "Linux":  # where the plain package is built with CUDA
        return "pip install --force-reinstall torch"
    return "install the CUDA build of torch that https://pytorch.org/get-started names"
