"""Latents: seeded noise at the start, the VAE at the end.

SD3.5's latents have 16 channels, one for every 8 x 8 pixels. The VAE's raw latents z become the model's
latents by (z - shift_factor) * scaling_factor, so decoding undoes that first.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sd35.request import Picture
from sd35.variants import LATENT_CHANNELS, PIXELS_PER_LATENT

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


def initial_latents(pictures: Sequence[Picture], device: torch.device) -> Tensor:
    """Gaussian noise [B, 16, H/8, W/8] in float32, each picture's from its own seed.

    It is drawn on the CPU, so that a seed means the same noise on every device and in every batch.
    """
    noise = [_noise(picture) for picture in pictures]
    return torch.stack(noise).to(device)


def decode(vae: "AutoencoderKL", latents: Tensor) -> list[Image.Image]:
    """Latents [B, 16, H/8, W/8] -> B pictures, one at a time: the VAE's activations are what fills a card."""
    return [_to_image(_decode_one(vae, row)) for row in latents.split(1)]


def _noise(picture: Picture) -> Tensor:
    settings = picture.settings
    shape = (LATENT_CHANNELS, settings.height // PIXELS_PER_LATENT, settings.width // PIXELS_PER_LATENT)
    generator = torch.Generator("cpu").manual_seed(picture.seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def _decode_one(vae: "AutoencoderKL", latents: Tensor) -> Tensor:
    config = vae.config
    z = latents / config.scaling_factor + (config.shift_factor or 0.0)
    return vae.decode(z.to(vae.dtype), return_dict=False)[0][0]


def _to_image(pixels: Tensor) -> Image.Image:
    """[3, H, W] in -1..1 -> 8-bit RGB."""
    unit = (pixels.float() / 2 + 0.5).clamp(0, 1)
    array = (unit.permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)
    return Image.fromarray(array)
