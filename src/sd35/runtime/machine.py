"""What a machine is: the facts without which a figure of speed or of quality says nothing."""

import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_DRIVER_SECONDS = 20  # nvidia-smi answers in one or two, or hangs with its driver


@dataclass(frozen=True)
class Machine:
    """Card, driver, libraries, processor; None for what is not there."""

    gpu: str | None
    capability: str | None
    gpu_bytes: int | None
    driver: str | None
    torch: str
    cuda: str | None
    triton: str | None
    python: str
    cpu: str
    threads: int  # that PyTorch computes with, which may be fewer than the processor has

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def machine_of(device: torch.device) -> Machine:
    """The machine as this process sees it, with the card that `device` is."""
    card = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return Machine(
        gpu=card.name if card else None,
        capability=f"{card.major}.{card.minor}" if card else None,
        gpu_bytes=card.total_memory if card else None,
        driver=_driver() if card else None,
        torch=torch.__version__,
        cuda=torch.version.cuda,
        triton=installed_version("triton") or installed_version("triton-windows"),
        python=platform.python_version(),
        cpu=_cpu(),
        threads=torch.get_num_threads(),
    )


def installed_version(package: str) -> str | None:
    """The version of an installed package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def ask_driver(field: str) -> list[str]:
    """nvidia-smi's answer, a line a card; nothing where there is no driver."""
    query = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, timeout=_DRIVER_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    lines = answer.stdout.decode(errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _driver() -> str | None:
    return next(iter(ask_driver("driver_version")), None)


def _cpu() -> str:
    """The processor's name as Linux gives it, else Python's word for it."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8", errors="replace").splitlines() if table.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
