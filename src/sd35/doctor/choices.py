"""Which implementations run here, and why `auto` chooses as it does.

Each operation of the model has several implementations. For each one the doctor asks the very function that
the choice is made by, and repeats its answer. Nothing is tried out, for the choice is not made by trial
either.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch

from sd35.config import Attention
from sd35.fp8 import ScaledTensor
from sd35.kernels import reference
from sd35.kernels.api import choose_operations, cublas_refuses, multiplies_natively, triton_refuses
from sd35.kernels.attention import attention_refuses, choose_attention
from sd35.runtime.weights import Placement
from sd35.variants import HEAD_DIM

_WIDTH = 38 * HEAD_DIM  # Large's, as an example of a layer


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


def operations(placement: Placement) -> list[Operation]:
    """Every operation; attention is the last."""
    return [fused_operations(placement), fp8_product(placement), attention(placement)]


def fused_operations(placement: Placement) -> Operation:
    """What happens between the matrix products."""
    device, dtype = placement.device, placement.dtype
    chosen = "reference" if choose_operations("auto", device, dtype) is reference else "triton"
    return Operation("fused operations", chosen, _or_reference("triton", triton_refuses(device, dtype)))


def fp8_product(placement: Placement) -> Operation:
    """The product of an FP8 linear layer."""
    # Never filled: a card for which PyTorch has no code can't even do that.
    data = torch.empty(_WIDTH, _WIDTH, dtype=torch.float8_e4m3fn, device=placement.device)
    weight = ScaledTensor(data, torch.empty(_WIDTH, 1, device=placement.device))
    chosen = "cublas" if multiplies_natively("auto", weight, placement.dtype) else "reference"
    return Operation("FP8 product", chosen, _or_reference("cublas", cublas_refuses(weight, placement.dtype)))


def attention(placement: Placement) -> Operation:
    """Joint attention, and dual attention."""
    device, dtype = placement.device, placement.dtype
    names = [name for name in get_args(Attention) if name != "auto"]
    candidates = [Candidate(name, attention_refuses(name, device, dtype)) for name in names]
    return Operation("attention", choose_attention("auto", device, dtype), candidates)


def _or_reference(name: str, refusal: str | None) -> list[Candidate]:
    """A fast implementation, and the definition, which runs anywhere."""
    return [Candidate(name, refusal), Candidate("reference", None)]
