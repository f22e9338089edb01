"""How to run, in plain words that `load` resolves once. What to draw is `GenerationRequest`."""

from dataclasses import dataclass
from typing import Literal, get_args

from sd35.errors import RequestError

ComputeDtype = Literal["auto", "bf16", "fp32"]
Kernels = Literal["auto", "reference", "triton"]
Attention = Literal["auto", "fa3", "fa3-fp8", "cudnn", "flash", "xformers", "sdpa"]


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Device, arithmetic and kernels; `auto` means the best that this machine declares to have.

    `device` is a torch device string. `compute_dtype` is the type of activations and of every weight that
    the checkpoint does not hold in FP8. `kernels` names the implementation of the MMDiT's operations:
    `reference` is plain PyTorch, `triton` our fused kernels beside the card's FP8 tensor cores. `attention`
    names the implementation of attention. A name other than `auto` is a demand and never falls back.
    `cuda_graphs` lets a card replay a whole denoising step as one recorded graph.
    """

    device: str = "auto"
    compute_dtype: ComputeDtype = "auto"
    kernels: Kernels = "auto"
    attention: Attention = "auto"
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        _one_of("compute_dtype", self.compute_dtype, get_args(ComputeDtype))
        _one_of("kernels", self.kernels, get_args(Kernels))
        _one_of("attention", self.attention, get_args(Attention))


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise RequestError(f"{field} can't be {value!r}: choose one of {', '.join(allowed)}.")
