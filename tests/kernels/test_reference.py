"""The reference operations against formulas written out in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sd35.errors import DeviceError
from sd35.fp8 import ScaledTensor, quantize
from sd35.kernels import api, reference
from sd35.kernels.operands import PLAIN, Form, Heads, Product, Residual, finished

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
def test_modulate(width: int) -> None:
    """(x - mean) / std * (1 + scale) + shift, each batch row by its own shift and scale; x stays."""
    x, shift, scale = random(2, 5, width), random(2, width, seed=1), random(2, width, seed=2)
    x64 = x.double()
    normed = (x64 - x64.mean(-1, keepdim=True)) / (x64.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    expected = normed * (1 + scale.double()[:, None]) + shift.double()[:, None]
    tokens, out = reference.modulate(Residual(x), shift, scale, PLAIN)
    assert tokens is x
    assert relative_error(out, expected) < 1e-6


def test_settle_adds_the_gated_branch_of_a_product() -> None:
    """tokens + gate * (values * row scale * column scale + bias), and tokens alone without a branch."""
    tokens, values = random(2, 5, 64), random(2, 5, 64, seed=1)
    rows, columns, bias, gate = random(2, 5, 1, seed=2), random(64, seed=3), random(64, seed=4), random(2, 64)
    branch = values.double() * rows.double() * columns.double() + bias.double()
    expected = tokens.double() + gate.double()[:, None] * branch
    stream = Residual(tokens, Product(values, rows, columns, bias), gate)
    assert relative_error(reference.settle(stream), expected) < 1e-6
    assert reference.settle(Residual(tokens)) is tokens


def test_gelu() -> None:
    """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    x = 3 * random(2, 5, 64)
    x64 = x.double()
    expected = 0.5 * x64 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x64 + 0.044715 * x64**3)))
    assert relative_error(reference.gelu(x, PLAIN, torch.float32), expected) < 1e-6


@pytest.mark.parametrize("form", [PLAIN, Form("dynamic"), Form("static", torch.tensor(0.01))])
def test_take_gives_what_the_form_says(form: Form) -> None:
    """Plain is the tensor itself; dynamic has a scale a token, static one for all, saturating."""
    x = random(2, 5, 64) * 3
    out = reference.take(x, form)
    if form.scale is None:
        expected = x if form == PLAIN else quantize(x).dequantize()
    else:
        expected = x.clamp(-4.48, 4.48)
    restored = out.dequantize() if isinstance(out, ScaledTensor) else out
    assert relative_error(restored, expected) < 0.03
    assert float(restored.abs().max()) == pytest.approx(float(expected.abs().max()), rel=0.04)


def test_qk_rms_norm() -> None:
    """x / sqrt(mean(x^2) + eps) * weight over the head dim alone."""
    x, weight = random(2, 5, 3, 64), random(64, seed=1)
    expected = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    assert relative_error(reference.qk_rms_norm(x, weight), expected) < 1e-6


def test_place_heads_puts_each_stream_in_its_place() -> None:
    """q and k normed, v as it is, from the given token on; all other tokens stay untouched."""
    qkv, norm_q, norm_k = random(2, 5, 3 * 128), random(64, seed=1), random(64, seed=2)
    heads = Heads.empty((2, 9, 2, 64), torch.float32, torch.device("cpu"))
    for part in (heads.q, heads.k, heads.v):
        part.fill_(7.0)
    reference.place_heads(qkv, norm_q, norm_k, heads, 3)
    q, k, v = qkv.unflatten(-1, (3, 2, 64)).unbind(2)
    assert relative_error(heads.q[:, 3:8], reference.qk_rms_norm(q, norm_q)) == 0
    assert relative_error(heads.k[:, 3:8], reference.qk_rms_norm(k, norm_k)) == 0
    assert torch.equal(heads.v[:, 3:8], v)
    assert all(bool((part[:, [0, 1, 2, 8]] == 7).all()) for part in (heads.q, heads.k, heads.v))


@pytest.mark.parametrize("fp8", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_fp8_values_are_pytorchs(fp8: torch.dtype, dtype: torch.dtype) -> None:
    """Every code means what PyTorch's conversion says, NaN and infinities too, in any layout."""
    codes = torch.arange(256, dtype=torch.uint8).view(16, 16).view(fp8)
    for data in (codes, codes.T):
        torch.testing.assert_close(
            reference.fp8_values(data, dtype), data.to(dtype), rtol=0, atol=0, equal_nan=True
        )


def test_cpu_gets_the_reference_and_says_why() -> None:
    """`auto` falls to the reference on a CPU, and a demand for Triton is refused with the reason."""
    cpu = torch.device("cpu")
    assert api.choose_operations("auto", cpu, torch.bfloat16) is reference
    assert not api.multiplies_natively("auto", quantize(random(32, 32)), torch.bfloat16)
    with pytest.raises(DeviceError, match="needs a CUDA device"):
        api.choose_operations("triton", cpu, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize(("n", "k"), [(256, 256), (7296, 2432), (9728, 2432), (2432, 9728), (1536, 6144)])
@pytest.mark.parametrize("rows", [1, 77, 666, 4096])
def test_cublas_equals_the_reference(n: int, k: int, rows: int) -> None:
    """On a card the tensor cores give the reference's product, to bf16's rounding and fast accumulation."""
    x = reference.quantize_rowwise(torch.randn(2, rows, k, device="cuda"))
    weight, bias = quantize(torch.randn(n, k, device="cuda") * 0.02), torch.randn(n, device="cuda").bfloat16()
    assert api.multiplies_natively("auto", weight, torch.bfloat16)
    out = finished(api.scaled_mm(x, weight, bias))
    expected = x.dequantize() @ weight.dequantize().T + bias.float()
    assert relative_error(out, expected) < 5e-3


@pytest.mark.parametrize(("channels", "groups"), [(96, 16), (128, 32), (512, 32)])
@pytest.mark.parametrize("has_added", [True, False])
@pytest.mark.parametrize("silu", [True, False])
def test_group_norm_is_pytorchs_own(channels: int, groups: int, has_added: bool, silu: bool) -> None:
    """Statistics and their application together are GroupNorm of x + added, then SiLU."""
    x = 3 * random(2, channels, 5, 7) + 20 * random(channels, 1, 1, seed=1)
    weight, bias, added = random(3, channels, seed=2)
    statistics = reference.group_statistics(x, groups, added if has_added else None)
    out = reference.group_norm(x, statistics, weight, bias, added if has_added else None, silu=silu)
    moved = (x + added[:, None, None] if has_added else x).double()
    expected = F.group_norm(moved, groups, weight.double(), bias.double(), reference.NORM_EPSILON)
    assert relative_error(out, F.silu(expected) if silu else expected) < 1e-6


def test_group_norm_rounds_once() -> None:
    """In bf16 the result is the float32 result, rounded."""
    x, weight, bias = random(1, 64, 4, 4).bfloat16(), *random(2, 64, seed=1).bfloat16()
    statistics = reference.group_statistics(x, 32)
    exact = reference.group_norm(x.float(), statistics, weight, bias, silu=True)
    rounded = reference.group_norm(x, statistics, weight, bias, silu=True)
    assert statistics.dtype == torch.float32
    assert torch.equal(rounded, exact.bfloat16())


def test_add_branch() -> None:
    """x + branch + bias, each channel its own, rounded once."""
    x, branch, bias = random(2, 6, 3, 5), random(2, 6, 3, 5, seed=1), random(6, seed=2)
    out = reference.add_branch(x.bfloat16(), branch.bfloat16(), bias.bfloat16())
    parts = [part.bfloat16().float() for part in (x, branch, bias[:, None, None])]
    assert torch.equal(out, (parts[0] + (parts[1] + parts[2])).bfloat16())
