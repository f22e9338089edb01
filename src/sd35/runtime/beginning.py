"""Where a picture begins that begins with another one: that one's latents, and noise to match the first step.

Most pictures are drawn from text, so the VAE's encoder stays in the file until the first image comes. From
then on its weights lie in host memory and visit the device for the moments of encoding. Under a plan that
decodes in strips the device is too small for a whole picture's activations, and then the encoder works on the
host, in float32: slower, and no further burden on the card.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sd35.pictures_in.source_picture import SourcePicture
from sd35.request import Picture
from sd35.runtime.moving import Cargo, Dock, Visit
from sd35.runtime.residence import Residence
from sd35.runtime.vae_encoder import VaeEncoder

HOST = torch.device("cpu")


class SourceEncoder:
    """The encoder of one model; `load` reads it for the device that it will work on."""

    def __init__(self, load: Callable[[torch.device], VaeEncoder]) -> None:
        self._load = load
        self._loaded: dict[torch.device, VaeEncoder] = {}

    def encode(self, pictures: Sequence[Picture], residence: Residence) -> Tensor:
        """The latents [B, 16, H/8, W/8] in float32 that these begin with; each image is encoded once."""
        found: dict[SourcePicture, Tensor] = {}
        for picture in pictures:
            assert picture.image is not None, "a strength below 1 has an image"
            if picture.image not in found:
                settings = picture.settings
                fitted = picture.image.fitted(settings.width, settings.height)
                found[picture.image] = self._encoded(pixels_of(fitted), residence)
        return torch.cat([found[picture.image] for picture in pictures if picture.image is not None])

    def _encoded(self, pixels: Tensor, residence: Residence) -> Tensor:
        """Where the VAE's other half works, or on the host."""
        if residence.plan.strips:
            return self._encoder(HOST)(pixels)
        device = residence.vae_on
        encoder = self._encoder(device)
        dock = residence.dock if device == residence.device else Dock(device)
        with torch.inference_mode(False):
            visit = Visit(Cargo(encoder), encoder, dock)
        try:
            return encoder(pixels.to(device))
        finally:
            visit.end()

    def _encoder(self, device: torch.device) -> VaeEncoder:
        if device not in self._loaded:
            with torch.inference_mode(False), torch.no_grad():
                self._loaded[device] = self._load(device)
        return self._loaded[device]


def pixels_of(image: SourcePicture) -> Tensor:
    """[1, 3, H, W] in -1..1 in float32, on the host."""
    flat = torch.frombuffer(bytearray(image.rgb), dtype=torch.uint8)
    rows = flat.view(1, image.height, image.width, 3).permute(0, 3, 1, 2)
    return rows.float() / 127.5 - 1


def noised(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Latents at this noise level, on the straight line from the picture to the noise."""
    return sigma * noise + (1 - sigma) * clean
