"""Latents: seeded noise at the start, the VAE at the end.

SD3.5's latents have 16 channels, one for every 8 x 8 pixels.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from sd35.request import Picture
from sd35.runtime.vae import VaeDecoder
from sd35.variants import LATENT_CHANNELS, PIXELS_PER_LATENT


def initial_latents(pictures: Sequence[Picture], device: torch.device) -> Tensor:
    """Gaussian noise [B, 16, H/8, W/8] in float32, each picture's from its own seed.

    It is drawn on the CPU, so that a seed means the same noise on every device and in every batch.
    """
    noise = [_noise(picture) for picture in pictures]
    return torch.stack(noise).to(device)


def decode(vae: VaeDecoder, latents: Tensor) -> list[Image.Image]:
    """Latents [B, 16, H/8, W/8] -> B pictures, one at a time: the VAE's activations are what fills a card."""
    return [Image.fromarray(decode_pixels(vae, row).cpu().numpy()) for row in latents.split(1)]


def decode_pixels(vae: VaeDecoder, latents: Tensor) -> Tensor:
    """Latents [1, 16, H/8, W/8] of one picture -> its 8-bit RGB [H, W, 3], on their device."""
    unit = (vae(latents)[0].float() / 2 + 0.5).clamp(0, 1)
    return (unit * 255).round().to(torch.uint8).permute(1, 2, 0)


def _noise(picture: Picture) -> Tensor:
    settings = picture.settings
    shape = (LATENT_CHANNELS, settings.height // PIXELS_PER_LATENT, settings.width // PIXELS_PER_LATENT)
    generator = torch.Generator("cpu").manual_seed(picture.seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32)
