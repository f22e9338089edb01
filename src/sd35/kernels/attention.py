"""Attention by whoever does it best here: chosen once, by declared capability.

All take `Heads` and give [B, S, C]. SD3.5's heads have 64 dimensions, which is where the implementations
differ most: on an H100, FlashAttention-3 does 1.2 times the work of cuDNN and twice that of FlashAttention-2.

`fa3-fp8` rounds q, k and v to E4M3, unscaled, and is a choice, never `auto`'s: it changes pictures a little.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sd35.config import Attention
from sd35.errors import DeviceError
from sd35.kernels.operands import Heads
from sd35.kernels.reference import score_step

Attend = Callable[[Heads], Tensor]

HOPPER = (9, 0)
FARTHEST_SHIFT = 2048  # up to here float16 holds every integer
_BEST_FIRST: tuple[Attention, ...] = ("fa3", "cudnn", "flash", "sdpa")
_SDPA_BACKENDS: dict[Attention, SDPBackend] = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
}


def choose_attention(wanted: Attention, device: torch.device, dtype: torch.dtype) -> Attention:
    """The implementation that will attend; DeviceError when the one demanded can't."""
    if wanted == "auto":
        return next(name for name in _BEST_FIRST if attention_refuses(name, device, dtype) is None)
    refusal = attention_refuses(wanted, device, dtype)
    if refusal is not None:
        raise DeviceError(f"The attention {wanted!r} can't run here: {refusal}; leave the choice at 'auto'.")
    return wanted


def attention_refuses(name: Attention, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this implementation can't (or under `auto` should not) run here, None when it can."""
    if name == "sdpa":
        return None
    if device.type != "cuda":
        return f"it needs a CUDA device, not {device.type}"
    if dtype != torch.bfloat16:
        return f"it computes in bf16, not {dtype}"
    capability = torch.cuda.get_device_capability(device)
    if name in ("fa3", "fa3-fp8"):
        return _fa3_refuses(capability)
    if name == "xformers":
        return _missing("xformers", "pip install xformers")
    if capability < (8, 0):
        return "it needs Ampere or newer"
    if name == "cudnn" and capability < HOPPER:
        return "before Hopper, FlashAttention-2 is the faster"
    return None


def norms_refuse(norm_q: Tensor, norm_k: Tensor) -> str | None:
    """Why `reference.attend_tiles` is too coarse for q, k normed by these weights [D], None when it is not.

    A normed vector is no longer than sqrt(D) times its largest weight, and q k no more than both lengths.
    """
    head_dim = len(norm_q)
    largest = head_dim * float(norm_q.abs().max()) * float(norm_k.abs().max())
    if largest * score_step(head_dim) <= FARTHEST_SHIFT:
        return None
    return f"its weights can't be shifted exactly in float16 where a score may reach {largest:.0f}"


def attend_with(name: Attention) -> Attend:
    """The function of an implementation that `choose_attention` gave."""
    if name in ("fa3", "fa3-fp8"):
        return _flash_attention_3
    if name == "xformers":
        return _xformers
    return functools.partial(_sdpa, backend=_SDPA_BACKENDS.get(name))


def heads_dtype(name: Attention, dtype: torch.dtype) -> torch.dtype:
    """What q, k and v have to be for this implementation."""
    return torch.float8_e4m3fn if name == "fa3-fp8" else dtype


def _fa3_refuses(capability: tuple[int, int]) -> str | None:
    if capability != HOPPER:
        return f"FlashAttention-3 is for Hopper (sm_90), not sm_{capability[0]}{capability[1]}"
    return _missing("fa3_fwd_interface", "pip install 'sd35-fp8[hopper]'")


def _missing(module: str, remedy: str) -> str | None:
    if importlib.util.find_spec(module) is None:
        return f"the package is not installed ({remedy})"
    return None


def _sdpa(heads: Heads, backend: SDPBackend | None) -> Tensor:
    q, k, v = (tensor.transpose(1, 2) for tensor in (heads.q, heads.k, heads.v))
    if backend is None:
        out = F.scaled_dot_product_attention(q, k, v)
    else:
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)


def _flash_attention_3(heads: Heads) -> Tensor:
    attended = _import("fa3_fwd_interface").flash_attn_func(heads.q, heads.k, heads.v)
    return attended.flatten(2)


def _xformers(heads: Heads) -> Tensor:
    return _import("xformers.ops").memory_efficient_attention(heads.q, heads.k, heads.v).flatten(2)


@functools.cache
def _import(module: str) -> Any:
    return importlib.import_module(module)
