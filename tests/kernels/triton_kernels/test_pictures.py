"""The Triton kernels for pictures against the plain PyTorch that defines them."""

import pytest
import torch
from kernel_cases import Inputs
from picture_cases import CHANNELS, picture_runs

from sd35.kernels import reference, triton
from sd35.kernels.triton import pictures

ON_CARD = torch.cuda.is_available()


def assert_all_meet(inputs: Inputs, channels: int, groups: int, size: tuple[int, int], batch: int) -> None:
    """Every operation gives what its definition gives: statistics to float32, pictures to their dtype."""
    for name, run in picture_runs(inputs, channels, groups, size, batch):
        expected = run(reference)
        if inputs.device.type == "cuda":  # the allocator gives this memory out again, as it is
            torch.full((expected.nbytes,), 0x7F, dtype=torch.uint8, device="cuda")
        tolerance = 2**-7 if expected.dtype == torch.bfloat16 else 3e-5
        torch.testing.assert_close(
            run(triton),
            expected,
            rtol=tolerance,
            atol=tolerance,
            msg=lambda text, name=name: f"{name} of {channels} channels, {size}: {text}",
        )


@pytest.mark.skipif(ON_CARD, reason="the interpreter was not chosen")
@pytest.mark.parametrize(("channels", "groups"), CHANNELS)
@pytest.mark.parametrize("chunks", [2, 1024])
def test_every_operation_is_its_definition(
    channels: int, groups: int, chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, in the interpreter: pictures of one tile a chunk and of several, the last ragged."""
    torch.manual_seed(channels)
    monkeypatch.setattr(pictures, "CHUNKS", chunks)
    pixels = 3 * pictures.TILE // channels
    assert_all_meet(Inputs(torch.device("cpu"), torch.float32), channels, groups, (pixels // 7, 7), batch=2)


@pytest.mark.skipif(ON_CARD, reason="the interpreter was not chosen")
def test_a_large_mean_costs_no_digits() -> None:
    """Values around 1,000 with a spread of 0.01 keep a variance that is right to a part in a hundred."""
    torch.manual_seed(0)
    x = (1000 + 0.01 * torch.randn(1, 32, 64, 64)).contiguous(memory_format=torch.channels_last)
    exact = x.double().unflatten(1, (16, -1)).var(dim=(2, 3, 4), correction=0)
    variance = triton.group_statistics(x, 16)[..., 1].double()
    torch.testing.assert_close(variance, exact, rtol=0.01, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize(("channels", "groups"), CHANNELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [(1, 1), (33, 17), (1024, 1024)])
def test_every_operation_on_a_card(
    channels: int, groups: int, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    """The same on a card, in bf16 to one rounding; the outputs' memory held other values before."""
    if channels * size[0] * size[1] > 256 * 2**20:
        pytest.skip("no activation of SD3.5's decoder is this large")
    assert_all_meet(Inputs(torch.device("cuda"), dtype), channels, groups, size, batch=1)
