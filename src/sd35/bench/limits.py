"""What this card can do, measured at the model's own shapes: the yardstick for everything that runs on it.

Data sheets are no yardstick: clocks fall under load, a product of 2,432 columns does not tile as one of
4,096, and at 64 channels a head attention is bound by exponentials, not by tensor cores. So the device copy,
the image tokens' four matrix products (in the compute dtype and in FP8, one scale a row) and attention by
each of PyTorch's implementations are timed alone, each with operands that fit no cache.
"""

from typing import Any, get_args

import torch
from torch.nn import functional as F

from sd35.bench.timing import median_seconds
from sd35.bench.work import Shapes, shapes_of
from sd35.bench.workload import Workload
from sd35.config import Attention
from sd35.kernels.api import FIRST_NATIVE_FP8
from sd35.kernels.attention import attend_with, attention_refuses, room_for_heads
from sd35.runtime.load import resolve
from sd35.variants import HEAD_DIM

_COPIED = {"cuda": 1 << 30, "cpu": 1 << 25}  # bytes: many times the caches of a card


def measure_limits(workload: Workload, device: torch.device) -> dict[str, Any]:
    """Copy in TB/s; products and attention in TFLOP/s, by name; None where the device has no such thing."""
    shapes, dtype = shapes_of(workload), resolve(workload.config()).dtype
    return {
        "copy_tb_per_second": _copy_rate(device),
        "dtype": str(dtype).removeprefix("torch."),
        "gemm_tflops": _gemm_rates(shapes, lambda m, k, n: _plain_product(m, k, n, device, dtype), device),
        "fp8_gemm_tflops": _fp8_rates(shapes, device),
        "attention_tflops": _attention_rates(shapes, device, dtype),
    }


def product_shapes(shapes: Shapes) -> dict[str, tuple[int, int, int]]:
    """M, K, N of the image tokens' products in one joint block."""
    rows, width = shapes.rows * shapes.image_tokens, shapes.size.channels
    return {
        "qkv": (rows, width, 3 * width),
        "out": (rows, width, width),
        "fc1": (rows, width, 4 * width),
        "fc2": (rows, 4 * width, width),
    }


def _copy_rate(device: torch.device) -> float:
    """Bytes read and written a second, in TB/s."""
    source = torch.randint(0, 255, (_COPIED[device.type],), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source), device)
    return 2 * source.nbytes / seconds / 1e12


def _gemm_rates(shapes: Shapes, product: Any, device: torch.device) -> dict[str, float]:
    """TFLOP/s of each product, and of `all` of them together."""
    rates, flop, seconds = {}, 0.0, 0.0
    for name, (m, k, n) in product_shapes(shapes).items():
        spent = median_seconds(product(m, k, n), device)
        rates[name] = 2 * m * k * n / spent / 1e12
        flop, seconds = flop + 2 * m * k * n, seconds + spent
    return {**rates, "all": flop / seconds / 1e12}


def _plain_product(m: int, k: int, n: int, device: torch.device, dtype: torch.dtype) -> Any:
    x = torch.randn(m, k, device=device, dtype=dtype)
    weight = torch.randn(n, k, device=device, dtype=dtype).mul_(k**-0.5)
    return lambda: F.linear(x, weight)


def _fp8_rates(shapes: Shapes, device: torch.device) -> dict[str, float] | None:
    """None without FP8 tensor cores: emulation is no limit."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FIRST_NATIVE_FP8:
        return None
    return _gemm_rates(shapes, lambda m, k, n: _fp8_product(m, k, n, device), device)


def _fp8_product(m: int, k: int, n: int, device: torch.device) -> Any:
    x = torch.randn(m, k, device=device).to(torch.float8_e4m3fn)
    weight = torch.randn(n, k, device=device).to(torch.float8_e4m3fn)
    one = torch.ones((), device=device)
    return lambda: torch._scaled_mm(
        x, weight.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def _attention_rates(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """TFLOP/s of joint attention by each implementation that can run here."""
    flop = 4 * shapes.tokens**2 * shapes.size.channels * shapes.rows
    names = [name for name in get_args(Attention) if name != "auto"]
    able = [name for name in names if attention_refuses(name, device, dtype) is None]
    return {name: flop / _attention_seconds(name, shapes, device, dtype) / 1e12 for name in able}


def _attention_seconds(name: Attention, shapes: Shapes, device: torch.device, dtype: torch.dtype) -> float:
    size = (shapes.rows, shapes.tokens, shapes.heads, HEAD_DIM)
    heads, attend = room_for_heads(name, size, dtype, device), attend_with(name)
    for part in (heads.q, heads.k, heads.v):
        part.copy_(torch.randn(part.shape, device=device).to(part.dtype))
    return median_seconds(lambda: attend(heads), device)
