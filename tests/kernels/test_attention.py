"""Attention: what each implementation computes, and who is chosen where."""

import pytest
import torch

from sd35.errors import DeviceError
from sd35.kernels.attention import attend_with, attention_refuses, choose_attention, norms_refuse
from sd35.kernels.operands import Heads

CPU = torch.device("cpu")


def heads(*, tokens: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Heads:
    """Random q, k, v of three heads."""
    return Heads(*(torch.randn(2, tokens, 3, 64, device=device).to(dtype) for _ in range(3)))


def formula(given: Heads) -> torch.Tensor:
    """softmax(q k / 8) v in float64, heads side by side."""
    q, k, v = (tensor.double().transpose(1, 2) for tensor in (given.q, given.k, given.v))
    return (torch.softmax(q @ k.transpose(2, 3) / 8, dim=-1) @ v).transpose(1, 2).flatten(2)


def test_sdpa_is_the_formula() -> None:
    """Each head apart, heads side by side in the result."""
    torch.manual_seed(0)
    given = heads(tokens=11)
    torch.testing.assert_close(attend_with("sdpa")(given).double(), formula(given), rtol=1e-5, atol=1e-6)


def test_a_cpu_gets_sdpa_and_reasons_for_the_rest() -> None:
    """`auto` is PyTorch's own on a CPU; a name that can't run there is refused, never replaced."""
    assert choose_attention("auto", CPU, torch.bfloat16) == "sdpa"
    for name in ("fa3", "fa3-fp8", "sd35-fp8", "cudnn", "flash", "xformers"):
        assert "needs a CUDA device" in (attention_refuses(name, CPU, torch.bfloat16) or "")
        with pytest.raises(DeviceError, match=f"'{name}' can't run here: it needs a CUDA device"):
            choose_attention(name, CPU, torch.bfloat16)


def test_norms_with_large_weights_are_refused() -> None:
    """Scores up to 8192, 64 * 11.3^2, can be shifted in float16; any stream's norm counts."""
    norm, small = torch.linspace(-11.3, 1, 64), torch.ones(64)
    assert norms_refuse([small, norm], [norm.flip(0), small]) is None
    assert "can reach 8464" in (norms_refuse([small, norm * 11.5 / 11.3], [norm * 11.5 / 11.3, small]) or "")
    assert norms_refuse([small, norm * torch.nan], [norm, small]) is not None


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["fa3", "fa3-fp8", "cudnn", "flash", "sdpa"])
@pytest.mark.parametrize("tokens", [11, 4429])
def test_every_implementation_is_the_formula(name: str, tokens: int) -> None:
    """To the rounding of bf16, or of E4M3 inputs; skipped where this card or machine lacks one."""
    reason = attention_refuses(name, torch.device("cuda"), torch.bfloat16)
    if reason is not None:
        pytest.skip(reason)
    dtype = torch.float8_e4m3fn if name == "fa3-fp8" else torch.bfloat16
    given = heads(tokens=tokens, device="cuda", dtype=dtype)
    out, expected = attend_with(name)(given).double(), formula(given)
    error = float((out - expected).norm() / expected.norm())
    assert error < (0.06 if name == "fa3-fp8" else 8e-3)
