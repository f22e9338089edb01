"""Our MMDiT against diffusers' own, and its parts."""

from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from safetensors.torch import save_file

from sd35.checkpoints.reader import TensorReader
from sd35.checkpoints.source import TensorSource
from sd35.kernels.api import choose_operations
from sd35.kernels.attention import choose_attention
from sd35.runtime.joint_block import Engine
from sd35.runtime.mmdit import MMDiT, MMDiTConfig, unpatchify
from sd35.runtime.sampling import flow_sigmas
from sd35.runtime.weights import Placement, fill_mmdit

CPU32 = Placement(torch.device("cpu"), torch.float32, "auto")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[SD3Transformer2DModel, MMDiT]:
    """diffusers' transformer with random weights everywhere, and ours filled from its file."""
    torch.manual_seed(0)
    theirs = SD3Transformer2DModel(
        sample_size=16,
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=64,
        joint_attention_dim=96,
        caption_projection_dim=128,
        pooled_projection_dim=48,
        pos_embed_max_size=24,
        dual_attention_layers=(0, 2),
        qk_norm="rms_norm",
    ).eval()
    for name, parameter in theirs.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm_" in name and "attn" in name else 0.0, std=0.1)
    path = tmp_path_factory.mktemp("mmdit") / "model.safetensors"
    save_file(theirs.state_dict(), path)
    with torch.device("meta"):
        ours = MMDiT(MMDiTConfig(4, 128, 96, 48, 24, (0, 2)))
    with TensorSource.of(TensorReader([path])) as source:
        fill_mmdit(ours, source, CPU32)
    return theirs, ours


@pytest.mark.parametrize("size", [(16, 16), (24, 10), (2, 48)])
@pytest.mark.parametrize("skip_layers", [(), (1,), (0, 2)])
@torch.inference_mode()
def test_equals_diffusers_in_float32(
    pair: tuple[SD3Transformer2DModel, MMDiT], size: tuple[int, int], skip_layers: tuple[int, ...]
) -> None:
    """Same weights, same inputs, same velocity, at every step and size, dual attention and all."""
    theirs, ours = pair
    latents, sequence, pooled = torch.randn(2, 16, *size), torch.randn(2, 13, 96), torch.randn(2, 48)
    timesteps = torch.tensor([1000.0, 731.5, 3.0])
    conditioning = ours.condition(sequence, pooled, timesteps)
    for step, timestep in enumerate(timesteps):
        expected = theirs(latents, sequence, pooled, timestep.expand(2), skip_layers=list(skip_layers)).sample
        assert float(expected.std()) > 0.01
        torch.testing.assert_close(
            ours(latents, conditioning.context, conditioning.table[step], skip_layers),
            expected,
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.gpu
@pytest.mark.parametrize("dual", [(), (0, 1)])
@torch.inference_mode()
def test_in_bf16_at_full_width_on_a_card(dual: tuple[int, ...], tmp_path: Path) -> None:
    """At Large's width and 1024 x 1024, ours in bf16 is as near to float32 as diffusers in bf16 is."""
    torch.manual_seed(0)
    card = torch.device("cuda")
    with card:
        theirs = SD3Transformer2DModel(
            sample_size=128, num_layers=3, num_attention_heads=38, attention_head_dim=64,
            joint_attention_dim=4096, caption_projection_dim=2432, pooled_projection_dim=2048,
            pos_embed_max_size=192, dual_attention_layers=dual, qk_norm="rms_norm",
        ).eval()  # fmt: skip
    for name, parameter in theirs.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm_" in name and "attn" in name else 0.0, std=0.03)
    path = tmp_path / "model.safetensors"
    save_file(theirs.state_dict(), path)
    engine = Engine(
        choose_operations("triton", card, torch.bfloat16), choose_attention("auto", card, torch.bfloat16)
    )
    with torch.device("meta"):
        ours = MMDiT(MMDiTConfig(3, 2432, 4096, 2048, 192, dual), engine)
    with TensorSource.of(TensorReader([path])) as source:
        fill_mmdit(ours, source, Placement(card, torch.bfloat16, "triton"))
    with card:
        latents, sequence = torch.randn(2, 16, 128, 128), torch.randn(2, 333, 4096)
        pooled, timestep = torch.randn(2, 2048), torch.tensor([731.0])
    exact = theirs(latents, sequence, pooled, timestep.expand(2)).sample
    theirs.to(torch.bfloat16)
    latents, sequence, pooled = latents.bfloat16(), sequence.bfloat16(), pooled.bfloat16()
    rounded = theirs(latents, sequence, pooled, timestep.expand(2)).sample.float()
    conditioning = ours.condition(sequence, pooled, timestep)
    found = ours(latents, conditioning.context, conditioning.table[0]).float()
    error, their_error = ((x - exact).norm() / exact.norm() for x in (found, rounded))
    assert float(their_error) > 1e-4, "bf16 rounds"
    assert float(error) <= 1.05 * float(their_error)


@torch.inference_mode()
def test_rows_of_a_batch_are_strangers(pair: tuple[SD3Transformer2DModel, MMDiT]) -> None:
    """Some rows of a batch draw what they draw among the others."""
    _, ours = pair
    latents = torch.randn(3, 16, 8, 8)
    conditioning = ours.condition(torch.randn(3, 5, 96), torch.randn(3, 48), torch.tensor([500.0]))
    whole = ours(latents, conditioning.context, conditioning.table[0])
    part = ours(latents[1:], conditioning.context[1:], conditioning.table[0, 1:])
    torch.testing.assert_close(part, whole[1:], rtol=1e-4, atol=1e-5)


def test_unpatchify_puts_every_value_back() -> None:
    """Token (row, column), patch place and channel land where the picture has them."""
    tokens = torch.arange(2 * 3 * 64, dtype=torch.float32).view(1, 6, 64)
    out = unpatchify(tokens, 2, 3)
    assert out.shape == (1, 16, 4, 6)
    row, column, y, x, channel = 1, 2, 1, 0, 5
    assert (
        out[0, channel, 2 * row + y, 2 * column + x]
        == tokens[0, row * 3 + column, (2 * y + x) * 16 + channel]
    )


@pytest.mark.parametrize("steps", [1, 2, 4, 28, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_sigmas_are_those_of_diffusers(steps: int, shift: float) -> None:
    """The schedule equals FlowMatchEulerDiscreteScheduler's, the closing zero included."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(flow_sigmas(steps, shift), scheduler.sigmas, rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [4, 28, 40])
def test_sigmas_are_those_of_comfyui_normal(steps: int) -> None:
    """ComfyUI's scheduler `normal` at shift 3: timesteps evenly from highest to lowest, as sigmas.

    After `comfy/samplers.py` and `comfy/model_sampling.py`, where a timestep is 1000 sigma one way and is
    shifted the other way.
    """

    def shifted(timestep: torch.Tensor) -> torch.Tensor:
        level = timestep / 1000
        return 3 * level / (1 + 2 * level)

    table = shifted(torch.arange(1, 1001, dtype=torch.float64))
    evenly = torch.linspace(1000 * table[-1].item(), 1000 * table[0].item(), steps, dtype=torch.float64)
    wanted = torch.cat([shifted(evenly), torch.zeros(1, dtype=torch.float64)])
    torch.testing.assert_close(flow_sigmas(steps, 3.0), wanted.float(), rtol=0, atol=1e-6)
