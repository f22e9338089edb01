"""The decoder in strips: the whole's picture, without its memory."""

import weakref
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sd35.kernels import reference
from sd35.request import GenerationRequest
from sd35.runtime import memory, vae_strips
from sd35.runtime.pipeline import Pipeline
from sd35.runtime.sampling import denoise
from sd35.runtime.vae import VaeConfig, VaeDecoder, whole
from sd35.runtime.vae_strips import NARROW, WIDE, combined, in_strips

SMALL = VaeConfig((32, 64, 96, 96), 1, 16, scaling_factor=0.62, shift_factor=-0.1)
REAL = VaeConfig((128, 256, 512, 512), 2, 32, scaling_factor=1.5305, shift_factor=0.0609)
FAITHFUL_DB = 45.0


class CountedMemory(TorchDispatchMode):
    """Counts the bytes of all storages that are made and not yet gone; on the meta device too."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do it, and look at what it made."""
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, nbytes = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.held += nbytes
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self._gone, key, nbytes)

    def _gone(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.held -= nbytes


def decoder_of(config: VaeConfig, dtype: torch.dtype = torch.float32) -> VaeDecoder:
    """A decoder with random weights everywhere, near 1 from layer to layer."""
    torch.manual_seed(0)
    decoder = VaeDecoder(config)
    for parameter in decoder.parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
        torch.nn.init.normal_(parameter, std=spread)
    return decoder.to(dtype)


def psnr(drawn: Tensor, expected: Tensor) -> float:
    """In dB, of pixels from -1 to 1."""
    error = (drawn.float().clamp(-1, 1) - expected.float().clamp(-1, 1)).square().mean()
    return float(10 * torch.log10(4 / error))


@pytest.mark.parametrize(
    ("config", "size"), [(SMALL, (16, 8)), (SMALL, (13, 9)), (SMALL, (3, 2)), (REAL, (9, 4))]
)
@pytest.mark.parametrize("rows", [NARROW, WIDE])
@torch.inference_mode()
def test_the_picture_is_the_wholes(config: VaeConfig, size: tuple[int, int], rows: int) -> None:
    """In float32 to rounding, at sizes that are and are not whole strips, also less than one."""
    decoder = decoder_of(config)
    latents = torch.randn(1, 16, *size)
    expected = decoder(latents)
    decoder.walk = partial(in_strips, rows=rows)
    torch.testing.assert_close(decoder(latents), expected, rtol=1e-4, atol=2e-5)


@torch.inference_mode()
def test_faithful_in_bf16_on_a_drawn_picture(pipeline_fp8: Pipeline, fox: GenerationRequest) -> None:
    """The demo's VAE on latents that it was trained for: at least 45 dB, and no row stands out."""
    from sd35.runtime.encoders import encode
    from sd35.runtime.latents import initial_latents

    pictures = fox.pictures(pipeline_fp8.variant)
    embeds = encode(pipeline_fp8.text_encoders, pictures, pipeline_fp8.prompts)
    latents = denoise(
        pipeline_fp8.mmdit, initial_latents(pictures, torch.device("cpu")), embeds, pictures[0].settings,
        pipeline_fp8.shift, lambda done, of: None,
    )  # fmt: skip
    decoder = pipeline_fp8.vae
    expected, drawn = decoder(latents), _in_strips(decoder, latents)
    assert float(expected.float().std()) > 0.1
    assert psnr(drawn, expected) > FAITHFUL_DB
    rows = [psnr(drawn[:, :, row], expected[:, :, row]) for row in range(expected.shape[2])]
    assert min(rows) > FAITHFUL_DB - 6


def _in_strips(decoder: VaeDecoder, latents: Tensor) -> Tensor:
    decoder.walk = in_strips
    try:
        return decoder(latents)
    finally:
        decoder.walk = whole


@torch.inference_mode()
def test_statistics_of_strips_combine_to_the_wholes() -> None:
    """Strips of unequal height, far apart in mean: mean and variance are those of all rows."""
    x = torch.randn(1, 32, 12, 5) + torch.arange(12.0)[:, None]
    strips = [(0, 5), (5, 6), (6, 12)]
    parts = [(reference.group_statistics(x[:, :, a:b], 8), b - a) for a, b in strips]
    torch.testing.assert_close(combined(parts), reference.group_statistics(x, 8))


@torch.inference_mode()
def test_few_places_ask_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No attention sees more queries than it may; all keys are there each time."""
    monkeypatch.setattr(vae_strips, "MOST_QUERIES", 10)
    seen: list[tuple[int, int]] = []
    original = F.scaled_dot_product_attention

    def listened(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Remember how many ask and how many are asked."""
        seen.append((q.shape[-2], k.shape[-2]))
        return original(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", listened)
    decoder = decoder_of(SMALL)
    decoder.walk = in_strips
    decoder(torch.randn(1, 16, 6, 4))
    assert seen == [(10, 24), (10, 24), (4, 24)]


@pytest.mark.parametrize("rows", [NARROW, WIDE])
@pytest.mark.parametrize("side", [512, 1024, 1536])
@torch.inference_mode()
def test_the_peak_is_what_the_plan_says(side: int, rows: int) -> None:
    """SD3.5's decoder in bf16, every tensor counted: within 5% of the formula, and 0.6 GiB at 1024 x 1024."""
    with torch.device("meta"):
        decoder = VaeDecoder(REAL).to(torch.bfloat16)
    decoder.walk = partial(in_strips, rows=rows)
    weights = sum(parameter.nbytes for parameter in decoder.parameters())
    latents = torch.empty(1, 16, side // 8, side // 8, device="meta")
    with CountedMemory() as counted:
        decoder(latents)
    said = memory.decode_bytes(REAL, side, side, itemsize=2, strips=rows)
    assert counted.peak <= said
    if side >= 1024:
        assert counted.peak == pytest.approx(said, rel=0.05)
    if side == 1024 and rows == NARROW:
        assert counted.peak + weights < 0.6 * 2**30


@torch.inference_mode()
def test_nothing_is_sent_from_the_host_in_between() -> None:
    """A tensor that is made of a host's list has the host wait for the card, nineteen times a decode."""
    made: list[str] = []

    class Watched(TorchDispatchMode):
        """Remembers what is made of the host's values, or asked for by it."""

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            """Do it, and remember."""
            name = str(function)
            made.extend(
                [name] if any(word in name for word in ("lift", "_to_copy", "item", "is_nonzero")) else []
            )
            return function(*args, **(kwargs or {}))

    parts = [(torch.rand(1, 8, 2), rows) for rows in (64, 64, 12)]
    with Watched():
        combined(parts)
    assert not made
