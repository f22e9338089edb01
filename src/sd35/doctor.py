"""What this machine can do, and why `auto` chooses as it does.

Each operation of the model has several implementations. For each one the doctor asks the very function that
the choice is made by, and prints its answer: the first that has no reason against it is what `auto` takes.
Nothing is tried out, for the choice is not made by trial either.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.backends.cuda import (
    SDPAParams,
    can_use_cudnn_attention,
    can_use_efficient_attention,
    can_use_flash_attention,
)
from torch.nn.attention import SDPBackend

from sd35.config import RuntimeConfig
from sd35.fp8 import ScaledTensor
from sd35.kernels.api import choose_kernels, cublas_refuses
from sd35.runtime.load import resolve
from sd35.runtime.machine import Machine, machine_of
from sd35.runtime.weights import Placement
from sd35.variants import HEAD_DIM

_WIDTH = 38 * HEAD_DIM  # Large's: what an example has to fit
_HEADS, _TOKENS = 38, 64


@dataclass(frozen=True)
class Candidate:
    """One implementation and what speaks against it here, None for nothing."""

    name: str
    refusal: str | None


@dataclass(frozen=True)
class Operation:
    """An operation, what `auto` takes for it, and everyone who was considered."""

    name: str
    chosen: str
    candidates: Sequence[Candidate]


@dataclass(frozen=True)
class Diagnosis:
    """The machine, the device and dtype that `auto` comes to, and each operation's choice."""

    machine: Machine
    device: str
    compute_dtype: str
    operations: Sequence[Operation]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def examine(config: RuntimeConfig) -> Diagnosis:
    """Look at the machine as this config would use it; DeviceError where its device is not there."""
    placement = resolve(config)
    return Diagnosis(
        machine=machine_of(placement.device),
        device=str(placement.device),
        compute_dtype=str(placement.dtype).removeprefix("torch."),
        operations=[operation(placement) for operation in OPERATIONS],
    )


def fp8_product(placement: Placement) -> Operation:
    """The product of an FP8 linear layer of Large."""
    data = torch.zeros(_WIDTH, _WIDTH, dtype=torch.uint8, device=placement.device).view(torch.float8_e4m3fn)
    weight = ScaledTensor(data, torch.ones(_WIDTH, 1, device=placement.device))
    candidates = [Candidate("cublas", cublas_refuses(weight, placement.dtype)), Candidate("reference", None)]
    return Operation("FP8 product", choose_kernels("auto", weight, placement.dtype), candidates)


def attention(placement: Placement) -> Operation:
    """Joint attention of Large: PyTorch's implementations, and the one that PyTorch takes."""
    shape = (2, _HEADS, _TOKENS, HEAD_DIM)
    q = torch.zeros(shape, device=placement.device, dtype=placement.dtype)
    chosen = _SDPA_NAMES[SDPBackend(torch._fused_sdp_choice(q, q, q))]
    candidates = [Candidate(name, _sdpa_refusal(name, q)) for name in _SDPA]
    return Operation("attention", chosen, [*candidates, Candidate("math", None)])


OPERATIONS: tuple[Callable[[Placement], Operation], ...] = (fp8_product, attention)

_SDPA: dict[str, Callable[[SDPAParams, bool], bool]] = {
    "cudnn": can_use_cudnn_attention,
    "flash": can_use_flash_attention,
    "memory-efficient": can_use_efficient_attention,
}
_SDPA_NAMES = {
    SDPBackend.CUDNN_ATTENTION: "cudnn",
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "memory-efficient",
    SDPBackend.MATH: "math",
}


def _sdpa_refusal(name: str, q: Tensor) -> str | None:
    """PyTorch tells its reasons as warnings when it is asked to debug; it has one fast way on a CPU."""
    if q.device.type != "cuda":
        return None if name == "flash" else f"it needs a CUDA device, not {q.device.type}"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if _SDPA[name](SDPAParams(q, q, q, None, 0.0, False, False), True):
            return None
    return (
        "; ".join(str(one.message).partition(" (Triggered")[0] for one in said) or "PyTorch gives no reason"
    )
