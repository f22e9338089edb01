"""How to run, in plain words that `load` resolves once. What to draw is `GenerationRequest`."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from sd35.errors import RequestError

ComputeDtype = Literal["auto", "bf16", "fp32"]
_UNITS = {None: 1, "MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30}
_MOST_BYTES = 2**50
Kernels = Literal["auto", "reference", "triton"]
Activations = Literal["auto", "fp8", "16bit"]
Attention = Literal["auto", "fa3", "fa3-fp8", "cudnn", "flash", "xformers", "sdpa"]


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Device, arithmetic and kernels; `auto` means the best that this machine declares to have.

    `device` is a torch device string. `compute_dtype` is the type of activations and of every weight that
    the checkpoint does not hold in FP8. `kernels` names the implementation of the MMDiT's operations:
    `reference` is plain PyTorch, `triton` our fused kernels beside the card's FP8 tensor cores. `attention`
    names the implementation of attention. `activations` is what FP8 layers multiply by: "fp8" as the
    checkpoint's scheme says, emulated exactly where no tensor core does it, or "16bit", with the weights
    restored layer by layer; `auto` is FP8 where the device has FP8 products. A name other than `auto` is a
    demand and never falls back. `cuda_graphs` lets a card replay a whole denoising step as one graph.
    `max_vram` is the memory that may be allocated on the device, "7.2GiB" or a number of bytes; without it,
    what is free on a card. What a driver takes comes on top, about 0.5 GiB: a card of 8 GB leaves 7.2 GiB.
    """

    device: str = "auto"
    compute_dtype: ComputeDtype = "auto"
    kernels: Kernels = "auto"
    attention: Attention = "auto"
    activations: Activations = "auto"
    cuda_graphs: bool = True
    max_vram: str | int | None = None

    def __post_init__(self) -> None:
        _one_of("compute_dtype", self.compute_dtype, get_args(ComputeDtype))
        _one_of("kernels", self.kernels, get_args(Kernels))
        _one_of("attention", self.attention, get_args(Attention))
        _one_of("activations", self.activations, get_args(Activations))
        self.vram_bytes  # noqa: B018 - it is checked when it is read

    @property
    def vram_bytes(self) -> int | None:
        """`max_vram` in bytes; None where nothing is said."""
        return None if self.max_vram is None else bytes_of(self.max_vram)


def bytes_of(amount: str | int, field: str = "max_vram") -> int:
    """`7.2GiB`, `800MB`, or bytes, as a number of bytes; RequestError for anything else, and for nothing."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([GM]i?B)?", str(amount).strip())
    count = round(float(found[1]) * _UNITS[found[2]]) if found else 0
    if isinstance(amount, bool) or not 0 < count < _MOST_BYTES:
        raise RequestError(f"{field} can't be {amount!r}: give an amount of memory such as 7.2GiB.")
    return count


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise RequestError(f"{field} can't be {value!r}: choose one of {', '.join(allowed)}.")
