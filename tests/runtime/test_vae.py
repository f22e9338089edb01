"""Our VAE decoder against diffusers' own, and the way its weights are found."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn

from sd35.checkpoints.reader import TensorReader
from sd35.checkpoints.source import TensorSource
from sd35.config import RuntimeConfig
from sd35.errors import CheckpointError
from sd35.kernels import reference
from sd35.kernels.api import choose_operations
from sd35.runtime.latents import decode_pixels
from sd35.runtime.load import load_pipeline
from sd35.runtime.vae import VaeConfig, VaeDecoder
from sd35.runtime.weights import Placement, fill_vae_decoder

CPU32 = Placement(torch.device("cpu"), torch.float32, "auto")
SMALL = VaeConfig((32, 64, 96, 96), 1, 16, scaling_factor=0.62, shift_factor=-0.1)
REAL = VaeConfig((128, 256, 512, 512), 2, 32, scaling_factor=1.5305, shift_factor=0.0609)
WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


def theirs_of(config: VaeConfig) -> AutoencoderKL:
    """diffusers' VAE with random weights everywhere."""
    torch.manual_seed(0)
    levels = len(config.channels)
    vae = AutoencoderKL(
        latent_channels=16,
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_level,
        norm_num_groups=config.groups,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    for module in vae.decoder.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.weight, mean=1.0, std=0.2)
            nn.init.normal_(module.bias, std=0.2)
    return vae.eval()


def ours_of(
    config: VaeConfig, tensors: dict[str, Tensor], folder: Path, placement: Placement = CPU32
) -> VaeDecoder:
    """Our decoder, filled from a file of these tensors."""
    path = folder / "vae.safetensors"
    save_file(tensors, path)
    operations = choose_operations(placement.kernels, placement.device, placement.dtype)
    with torch.device("meta"):
        ours = VaeDecoder(config, operations)
    with TensorSource.of(TensorReader([path])) as source:
        fill_vae_decoder(ours, source, placement)
    return ours


def decoded_by(theirs: AutoencoderKL, config: VaeConfig, latents: Tensor) -> Tensor:
    """What diffusers' VAE makes of the model's latents."""
    return theirs.decode(latents / config.scaling_factor + config.shift_factor).sample


@pytest.mark.parametrize(
    ("config", "size"), [(SMALL, (8, 8)), (SMALL, (2, 14)), (SMALL, (13, 3)), (REAL, (4, 6))]
)
@torch.inference_mode()
def test_equals_diffusers_in_float32(config: VaeConfig, size: tuple[int, int], tmp_path: Path) -> None:
    """Same weights, same latents, same pixels, at any size, at the demo's width and at SD3.5's."""
    theirs = theirs_of(config)
    decoder = {name: value for name, value in theirs.state_dict().items() if name.startswith("decoder.")}
    ours = ours_of(config, decoder, tmp_path)
    latents = torch.randn(2, 16, *size)
    expected = decoded_by(theirs, config, latents)
    assert float(expected.std()) > 0.05
    torch.testing.assert_close(ours(latents), expected, rtol=1e-4, atol=3e-5)


@torch.inference_mode()
def test_no_stage_permutes(tmp_path: Path) -> None:
    """From the first convolution to the last, a pixel's channels lie side by side, and a kernel's too."""
    ours = ours_of(SMALL, theirs_of(SMALL).state_dict(), tmp_path)
    order: list[bool] = []
    for stage in ours.stages:
        stage.register_forward_hook(
            lambda _, inputs, output: order.extend(
                x.is_contiguous(memory_format=torch.channels_last) for x in (inputs[0], output)
            )
        )
    ours(torch.randn(1, 16, 8, 6))
    kernels = [parameter for parameter in ours.parameters() if parameter.ndim == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert order == [True] * (2 * len(ours.stages))


@pytest.mark.gpu
@torch.inference_mode()
def test_on_a_card_in_bf16(tmp_path: Path) -> None:
    """At SD3.5's width our kernels draw what diffusers draws in float32, to bf16's noise."""
    theirs = theirs_of(REAL)
    card = Placement(torch.device("cuda"), torch.bfloat16, "triton")
    ours = ours_of(REAL, theirs.state_dict(), tmp_path, card)
    latents = torch.randn(1, 16, 24, 40)
    expected = decoded_by(theirs, REAL, latents)
    error = (ours(latents.cuda()).float().cpu() - expected).norm() / expected.norm()
    assert float(error) < 0.03


@pytest.mark.gpu
@torch.inference_mode()
def test_a_recorded_decode_is_a_decode(tmp_path: Path) -> None:
    """Nothing in it asks the card for a value, so it can be recorded once and replayed with other latents."""
    card = Placement(torch.device("cuda"), torch.bfloat16, "triton")
    ours = ours_of(SMALL, theirs_of(SMALL).state_dict(), tmp_path, card)
    place, others = torch.randn(2, 1, 16, 32, 32, device="cuda").unbind()
    expected = decode_pixels(ours, others).clone()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # libraries allocate their workspaces before they are recorded
        decode_pixels(ours, place)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        drawn = decode_pixels(ours, place)
    place.copy_(others)
    graph.replay()
    assert torch.equal(drawn, expected)


@torch.inference_mode()
def test_statistics_of_the_whole_serve_its_strips(tmp_path: Path) -> None:
    """A strip normed by the whole picture's statistics is that strip of the normed picture."""
    x, weight, bias, added = torch.randn(2, 32, 12, 5), *torch.randn(3, 32)
    statistics = reference.group_statistics(x, 8, added)
    whole = reference.group_norm(x, statistics, weight, bias, added, silu=True)
    strip = reference.group_norm(x[:, :, 3:7], statistics, weight, bias, added, silu=True)
    torch.testing.assert_close(strip, whole[:, :, 3:7])


def test_the_attentions_old_names(tmp_path: Path) -> None:
    """Old checkpoints call the attention's layers query, key, value and proj_attn; they mean the same."""
    tensors = theirs_of(SMALL).state_dict()
    before = ours_of(SMALL, tensors, tmp_path).state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new_name, old_name in old.items():
        for kind in ("weight", "bias"):
            prefix = "decoder.mid_block.attentions.0"
            tensors[f"{prefix}.{old_name}.{kind}"] = tensors.pop(f"{prefix}.{new_name}.{kind}")
    after = ours_of(SMALL, tensors, tmp_path).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "name", ["decoder.mid_block.attentions.0.to_k.bias", "decoder.up_blocks.2.resnets.0.conv_shortcut.weight"]
)
def test_what_is_missing_is_named(tmp_path: Path, name: str) -> None:
    """A tensor of the decoder that the file lacks is an error with its name."""
    tensors = theirs_of(SMALL).state_dict()
    del tensors[name]
    with pytest.raises(CheckpointError, match=name):
        ours_of(SMALL, tensors, tmp_path)


@pytest.mark.parametrize("name", ["decoder.mid_block.attentions.1.to_k.bias", "post_quant_conv.weight"])
def test_what_is_left_over_is_named(tmp_path: Path, name: str) -> None:
    """Beside the encoder's tensors, which stay in the file, nothing may be left over."""
    tensors = theirs_of(SMALL).state_dict() | {name: torch.ones(2)}
    with pytest.raises(CheckpointError, match=name):
        ours_of(SMALL, tensors, tmp_path)


def test_a_misshapen_kernel_is_refused(demo_copy: Path, edit_tensors: Callable[..., None]) -> None:
    """A convolution of another size than the config promises is refused with its name."""
    name = "decoder.up_blocks.1.resnets.0.conv1.weight"
    edit_tensors(demo_copy / WEIGHTS, lambda t: t.update({name: t[name][:, :, :1, :1].contiguous()}))
    with pytest.raises(CheckpointError, match=r"conv1\.weight has the shape"):
        load_pipeline(demo_copy, RuntimeConfig(device="cpu"))


class _Ramp(VaeDecoder):
    """A decoder that answers with given pixels."""

    def __init__(self, pixels: Tensor) -> None:
        nn.Module.__init__(self)
        self.pixels = pixels

    def forward(self, latents: Tensor) -> Tensor:
        """The pixels, whatever the latents."""
        return self.pixels


def test_pixels_in_eight_bits() -> None:
    """-1 is 0 and 1 is 255, what is beyond is clamped, and halves are rounded, not cut off."""
    row = torch.tensor([-3.0, -1.0, 0.2 / 127.5 - 1, 0.8 / 127.5 - 1, 0.1, 1.0, 1.5])
    pixels = torch.stack([row, row, row.flip(0)])[None, :, None]
    drawn = decode_pixels(_Ramp(pixels), torch.zeros(1, 16, 1, 1))
    assert drawn.shape == (1, 7, 3)
    assert drawn[0, :, 0].tolist() == [0, 0, 0, 1, 140, 255, 255]
    assert drawn[0, :, 2].tolist() == [255, 255, 140, 1, 0, 0, 0]
