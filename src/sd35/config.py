"""How to run, in plain words that `load` resolves once. What to draw is `GenerationRequest`."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from sd35.errors import RequestError

ComputeDtype = Literal["auto", "bf16", "fp32"]
_UNITS = {None: 1, "MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30}
_MOST_BYTES = 2**50
Precision = Literal["fp8", "bf16"]  # of the transformer's weights
Kernels = Literal["auto", "reference", "triton"]
Activations = Literal["auto", "fp8", "16bit"]
Attention = Literal["auto", "fa3", "cudnn", "flash", "xformers", "sdpa", "sd35-fp8", "fa3-fp8"]


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Device, arithmetic and kernels; `auto` means the best that this machine declares to have.

    `device` is a torch device string; `devices` are several cards for one picture, "cuda:0,cuda:1" or a
    tuple, the latents' card first. `compute_dtype` is the type of activations and of every weight that the
    checkpoint does not hold in FP8. `kernels` names the implementation of the MMDiT's operations:
    `reference` is plain PyTorch, `triton` our fused kernels beside the card's FP8 tensor cores. `attention`
    names the implementation of attention. `activations` is what FP8 layers multiply by: "fp8" as the
    checkpoint's scheme says, emulated exactly where no tensor core does it, or "16bit", with the weights
    restored layer by layer; `auto` is FP8 where the device has FP8 products. A name other than `auto` is a
    demand and never falls back. `cuda_graphs` lets a card replay a whole denoising step as one graph.
    `max_vram` is the memory that may be allocated on the device, "7.2GiB" or a number of bytes; without it,
    what is free on a card. What a driver takes comes on top, about 0.5 GiB: a card of 8 GB leaves 7.2 GiB.
    Plans leave 5% of it to the allocator's gaps.
    With several devices it is for each of them, or as many amounts as devices, "7.2GiB,11GiB".
    """

    device: str = "auto"
    devices: str | tuple[str, ...] = ()
    compute_dtype: ComputeDtype = "auto"
    kernels: Kernels = "auto"
    attention: Attention = "auto"
    activations: Activations = "auto"
    cuda_graphs: bool = True
    max_vram: str | int | tuple[str | int, ...] | None = None

    def __post_init__(self) -> None:
        _one_of("compute_dtype", self.compute_dtype, get_args(ComputeDtype))
        _one_of("kernels", self.kernels, get_args(Kernels))
        _one_of("attention", self.attention, get_args(Attention))
        _one_of("activations", self.activations, get_args(Activations))
        if self.devices and self.device != "auto":
            raise RequestError("device and devices say the same thing twice: give one of them.")
        if self.devices and not all(self.device_names):
            raise RequestError(f"devices can't be {self.devices!r}: give names such as cuda:0,cuda:1.")
        self.vram_bytes_each  # noqa: B018 - it is checked when it is read

    @property
    def device_names(self) -> tuple[str, ...]:
        """The devices of one picture, the first of which has its latents; mostly one."""
        if not self.devices:
            return (self.device,)
        return _words(self.devices) if isinstance(self.devices, str) else self.devices

    @property
    def vram_bytes(self) -> int | None:
        """`max_vram` of the first device in bytes; None where nothing is said."""
        return self.vram_bytes_each[0]

    @property
    def vram_bytes_each(self) -> tuple[int | None, ...]:
        """`max_vram` in bytes, for each of the devices."""
        devices, said = len(self.device_names), self.max_vram
        if said is None:
            return (None,) * devices
        amounts = _words(said) if isinstance(said, str) else said if isinstance(said, tuple) else (said,)
        if len(amounts) not in (1, devices):
            raise RequestError(
                f"max_vram has {len(amounts)} amounts and there are {devices} devices: give one amount for "
                "all of them, or one for each."
            )
        each = tuple(bytes_of(amount) for amount in amounts)
        return each if len(each) == devices else each * devices


def bytes_of(amount: str | int, field: str = "max_vram") -> int:
    """`7.2GiB`, `800MB`, or bytes, as a number of bytes; RequestError for anything else, and for nothing."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([GM]i?B)?", str(amount).strip())
    count = round(float(found[1]) * _UNITS[found[2]]) if found else 0
    if isinstance(amount, bool) or not 0 < count < _MOST_BYTES:
        raise RequestError(f"{field} can't be {amount!r}: give an amount of memory such as 7.2GiB.")
    return count


def _words(text: str) -> tuple[str, ...]:
    """What stands between the commas."""
    return tuple(word.strip() for word in text.split(","))


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise RequestError(f"{field} can't be {value!r}: choose one of {', '.join(allowed)}.")
