"""Names of devices -> the devices that are there, and the memory that may be allocated on each.

One name may leave the choice (`auto`, or `cuda`, which is PyTorch's current card). Several are the cards of
one picture, and each has its number: `cuda` would be now this card and now that. The CPU may stand in
for all of them, as it does for one in `moving.py`: then bounds are kept by arithmetic alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sd35.config import RuntimeConfig
from sd35.errors import DeviceError


@dataclass(frozen=True)
class Card:
    """A device, and the bytes that may be allocated there (None: no bound)."""

    device: torch.device
    budget: int | None


def cards_of(config: RuntimeConfig) -> tuple[Card, ...]:
    """The devices of one picture and their bounds: what was said, else what is free on a card."""
    each = zip(devices_of(config), config.vram_bytes_each, strict=True)
    return tuple(Card(device, _free(device) if said is None else said) for device, said in each)


def devices_of(config: RuntimeConfig) -> tuple[torch.device, ...]:
    """The devices of one picture, the latents' first; DeviceError if one isn't there or can't be used."""
    names = config.device_names
    if len(names) == 1:
        return (_device(names[0]),)
    devices = tuple(_one_of_several(name) for name in names)
    _demand_likeness(devices)
    return devices


def _free(device: torch.device) -> int | None:
    """A CPU has no bound of ours."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise DeviceError(f"There is no kind of device {wanted!r}: try cpu, cuda or cuda:1.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"The device {wanted} is not there: this PyTorch sees {torch.cuda.device_count()} CUDA devices; "
            "check the driver with nvidia-smi, or run on cpu."
        )
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"sd35 runs on cpu and cuda, not on {wanted}.")
    return device


def _one_of_several(name: str) -> torch.device:
    if name == "auto":
        raise DeviceError("auto is one device: name each of several, such as cuda:0,cuda:1.")
    device = _device(name)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _demand_likeness(devices: Sequence[torch.device]) -> None:
    """Different cards of one generation: kernels are chosen once, for all of them."""
    if len({device.type for device in devices}) > 1:
        raise DeviceError("One picture is drawn by cards or by the CPU, not by both: name cards alone.")
    if devices[0].type == "cpu":
        return
    if len(set(devices)) < len(devices):
        raise DeviceError("A card is named twice: name each once, such as cuda:0,cuda:1.")
    generations = {torch.cuda.get_device_capability(device): device for device in devices}
    if len(generations) > 1:
        names = " and ".join(torch.cuda.get_device_name(device) for device in generations.values())
        raise DeviceError(f"{names} compute differently: name cards of one generation.")
