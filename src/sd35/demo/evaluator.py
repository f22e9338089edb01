"""A small judge: which subject, which style, which background does a picture show?

The judge is a convolutional net trained on the renderings themselves, apart from the model: other random
numbers, other augmentation, and all pairs, also those held out of the model's training. It reads 128x128
pixels, so that it looks at what is drawn rather than at the last bit of sharpness. Its last hidden layer
serves as picture features, to measure how far two sets of pictures lie apart.

It knows nothing but this vocabulary: on a photograph its answer means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from .vocabulary import Vocabulary, load_vocabulary

INPUT_SIZE = 128
FEATURES = 256
_WIDTHS = (32, 64, 128, 160, 256)


@dataclass(frozen=True)
class Judgement:
    """Indices into the vocabulary, [B] each, and picture features, [B, 256] float32."""

    subject: Tensor
    style: Tensor
    background: Tensor
    features: Tensor


class EvaluatorNet(nn.Module):
    """Five stages of strided convolutions, a pooled feature vector, three linear heads."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        widths = (3, *_WIDTHS)
        self.stages = nn.Sequential(*[_Stage(a, b) for a, b in pairwise(widths)])
        self.subject = nn.Linear(FEATURES, len(vocabulary.subjects))
        self.style = nn.Linear(FEATURES, len(vocabulary.styles))
        self.background = nn.Linear(FEATURES, len(vocabulary.colours))

    def features(self, pixels: Tensor) -> Tensor:
        """[B, 3, 128, 128] in 0..1 to [B, 256]."""
        return self.stages(pixels * 2 - 1).mean(dim=(2, 3))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of subject, style and background."""
        features = self.features(pixels)
        return self.subject(features), self.style(features), self.background(features)


class _Stage(nn.Module):
    """Halve the picture, then one residual convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(8, outputs)
        self.mix = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.mix_norm = nn.GroupNorm(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.down(x)))
        return x + F.silu(self.mix_norm(self.mix(x)))


class Evaluator:
    """A trained `EvaluatorNet` on one device."""

    def __init__(self, net: EvaluatorNet, device: torch.device) -> None:
        self.net = net.float().eval().requires_grad_(False).to(device)
        self.device = device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Judgement:
        """Judge uint8 pictures [B, H, W, 3] of any size."""
        pixels = shrink(images.to(self.device).permute(0, 3, 1, 2).float() / 255)
        features = self.net.features(pixels)
        return Judgement(
            subject=self.net.subject(features).argmax(dim=1),
            style=self.net.style(features).argmax(dim=1),
            background=self.net.background(features).argmax(dim=1),
            features=features,
        )


def shrink(pixels: Tensor) -> Tensor:
    """Resize [B, 3, H, W] to the size the net reads, without aliasing."""
    if pixels.shape[-2:] == (INPUT_SIZE, INPUT_SIZE):
        return pixels
    return F.interpolate(
        pixels, (INPUT_SIZE, INPUT_SIZE), mode="bilinear", antialias=True, align_corners=False
    )


def load_evaluator(device: str | torch.device = "cpu", weights: Path | None = None) -> Evaluator:
    """The evaluator that ships with the package, or another file of the same shapes."""
    net = EvaluatorNet(load_vocabulary())
    with resources.as_file(resources.files(__package__).joinpath("evaluator.safetensors")) as bundled:
        net.load_state_dict(load_file(weights or bundled))
    return Evaluator(net, torch.device(device))
