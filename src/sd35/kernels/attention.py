"""Attention by whoever does it best here: chosen once, by declared capability.

All take `Heads` and give [B, S, C]. SD3.5's heads have 64 dimensions, which is where the implementations
differ most: on an H100, FlashAttention-3 does 1.2 times the work of cuDNN and twice that of FlashAttention-2.

`sd35-fp8`, our own, and `fa3-fp8` round q, k and v to E4M3, unscaled. They are a choice, never `auto`'s: they
change pictures a little. Ours wants its heads in tiles, and is 1.7 times as fast on an H200.
"""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sd35.config import Attention
from sd35.errors import DeviceError
from sd35.kernels.operands import Heads, TiledHeads

Attend = Callable[[Any], Tensor]  # of what `room_for_heads` gave

HOPPER = (9, 0)
LARGEST_SCORE = 8192  # float16 still shifts scores up to here to codes that are no NaN
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
    if name == "sd35-fp8":
        return _own_refuses(capability)
    if name == "xformers":
        return _missing("xformers", "pip install xformers")
    if capability < (8, 0):
        return "it needs Ampere or newer"
    if name == "cudnn" and capability < HOPPER:
        return "before Hopper, FlashAttention-2 is the faster"
    return None


def norms_refuse(norms_q: Sequence[Tensor], norms_k: Sequence[Tensor]) -> str | None:
    """Why `sd35-fp8` is too coarse for streams normed by these weights [D], None when it is not.

    A normed vector is no longer than sqrt(D) times its largest weight, and q k no more than both lengths.
    """
    q, k = (float(torch.stack([*norms]).abs().max()) for norms in (norms_q, norms_k))
    largest = len(norms_q[0]) * q * k
    if largest <= LARGEST_SCORE:
        return None
    return f"its scores can reach {largest:.0f}, and {LARGEST_SCORE} is what it takes"


def attend_with(name: Attention) -> Attend:
    """The function of an implementation that `choose_attention` gave."""
    if name in ("fa3", "fa3-fp8"):
        return _flash_attention_3
    if name == "sd35-fp8":
        return _own
    if name == "xformers":
        return _xformers
    return functools.partial(_sdpa, backend=_SDPA_BACKENDS.get(name))


def room_for_heads(
    name: Attention, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> Heads | TiledHeads:
    """Room for q, k and v [B, S, H, D], in the layout and dtype that this implementation wants."""
    if name == "sd35-fp8":
        return TiledHeads.empty(*shape, device)
    return Heads.empty(shape, torch.float8_e4m3fn if name == "fa3-fp8" else dtype, device)


def _fa3_refuses(capability: tuple[int, int]) -> str | None:
    if capability != HOPPER:
        return f"FlashAttention-3 is for Hopper (sm_90), not sm_{capability[0]}{capability[1]}"
    return _missing("fa3_fwd_interface", "pip install 'sd35-fp8[hopper]'")


def _own_refuses(capability: tuple[int, int]) -> str | None:
    if capability != HOPPER:
        return f"it is written for Hopper (sm_90), not sm_{capability[0]}{capability[1]}"
    return _missing("triton", "PyTorch brings it on Linux; on Windows it is triton-windows")


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


def _own(heads: TiledHeads) -> Tensor:
    attended: Tensor = _import("sd35.kernels.triton.attend").attend_tiles(heads)
    return attended


def _xformers(heads: Heads) -> Tensor:
    return _import("xformers.ops").memory_efficient_attention(heads.q, heads.k, heads.v).flatten(2)


@functools.cache
def _import(module: str) -> Any:
    return importlib.import_module(module)
