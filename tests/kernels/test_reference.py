"""The reference operations against formulas written out in float64."""

import pytest
import torch
from torch import Tensor

from sd35.errors import DeviceError
from sd35.fp8 import ScaledTensor, quantize
from sd35.kernels import api, reference

WIDTHS = [64, 256, 1536, 2432]  # the demo's, Medium's and Large's channels among them


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(out: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is right."""
    return float((out.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaled_mm_is_the_product_of_what_the_operands_mean(width: int, dtype: torch.dtype) -> None:
    """(data * scale) @ (data * scale).T + bias, for ragged rows."""
    x, weight, bias = quantize(random(3, 7, width)), quantize(random(48, width, seed=1)), random(48, seed=2)
    out = reference.scaled_mm(x, weight, bias, dtype)
    expected = x.dequantize(torch.float64) @ weight.dequantize(torch.float64).T + bias.double()
    assert out.dtype == dtype
    assert relative_error(out, expected) < (1e-6 if dtype == torch.float32 else 4e-3)


def test_scaled_mm_with_scales_along_k() -> None:
    """A weight with one scale a row and 128 columns multiplies as its restored values do."""
    blocks = quantize(random(48, 300, seed=1) * torch.logspace(-2, 2, 300), "e4m3fn", "blockwise")
    weight = ScaledTensor(blocks.data, blocks.scale.repeat_interleave(128, dim=0)[:48])
    x = quantize(random(5, 300))
    expected = x.dequantize(torch.float64) @ blocks.dequantize(torch.float64).T
    assert relative_error(reference.scaled_mm(x, weight, None, torch.float32), expected) < 1e-6


def test_quantize_rowwise_is_per_token() -> None:
    """Every token has its own scale, also those of zeros."""
    x = random(2, 3, 64)
    x[1, 2] = 0
    scaled = reference.quantize_rowwise(x)
    assert scaled.scale.shape == (2, 3, 1)
    assert torch.allclose(scaled.scale[..., 0], torch.where(x.abs().amax(-1) == 0, 1, x.abs().amax(-1) / 448))
    assert relative_error(scaled.dequantize(), x) < 0.03


@pytest.mark.parametrize("width", WIDTHS)
def test_adaln_modulate(width: int) -> None:
    """(x - mean) / std * (1 + scale) + shift, each batch row by its own shift and scale."""
    x, shift, scale = random(2, 5, width), random(2, width, seed=1), random(2, width, seed=2)
    x64 = x.double()
    normed = (x64 - x64.mean(-1, keepdim=True)) / (x64.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    expected = normed * (1 + scale.double()[:, None]) + shift.double()[:, None]
    assert relative_error(reference.adaln_modulate(x, shift, scale), expected) < 1e-6


def test_qk_rms_norm() -> None:
    """x / sqrt(mean(x^2) + eps) * weight over the head dim alone."""
    x, weight = random(2, 5, 3, 64), random(64, seed=1)
    expected = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    assert relative_error(reference.qk_rms_norm(x, weight), expected) < 1e-6


def test_joint_attention() -> None:
    """softmax(q k / 8) v for every head apart, heads side by side in the result."""
    q, k, v = (random(2, 11, 3, 64, seed=seed) for seed in range(3))
    out = reference.joint_attention(q, k, v)
    for head in range(3):
        a, b, c = (tensor[:, :, head].double() for tensor in (q, k, v))
        expected = torch.softmax(a @ b.transpose(1, 2) / 8, dim=-1) @ c
        assert relative_error(out[..., 64 * head : 64 * (head + 1)], expected) < 1e-6


def test_cpu_gets_the_reference_and_says_why() -> None:
    """`auto` falls to the reference on a CPU, and a demand for cublas is refused with the reason."""
    weight = quantize(random(32, 32))
    assert api.choose_kernels("auto", weight, torch.bfloat16) == "reference"
    with pytest.raises(DeviceError, match="needs a CUDA device"):
        api.choose_kernels("cublas", weight, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize(("n", "k"), [(256, 256), (7296, 2432), (2432, 9728), (1536, 6144)])
@pytest.mark.parametrize("rows", [1, 77, 666, 4096])
def test_cublas_equals_the_reference(n: int, k: int, rows: int) -> None:
    """On a card the tensor cores give the reference's product, to bf16's rounding and fast accumulation."""
    x = reference.quantize_rowwise(torch.randn(2, rows, k, device="cuda"))
    weight, bias = quantize(torch.randn(n, k, device="cuda") * 0.02), torch.randn(n, device="cuda").bfloat16()
    assert api.choose_kernels("cublas", weight, torch.bfloat16) == "cublas"
    out = api.scaled_mm(x, weight, bias, torch.bfloat16, "cublas")
    expected = x.dequantize() @ weight.dequantize().T + bias.float()
    assert relative_error(out, expected) < 5e-3
