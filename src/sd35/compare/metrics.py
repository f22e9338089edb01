"""How alike two pictures are, pixel by pixel: PSNR and SSIM.

Both take pictures as uint8 [B, H, W, 3]. PSNR is 20 log10(255 / rms difference), in dB. SSIM compares
local means, variances and covariance under an 11 x 11 Gaussian window (sigma 1.5), a colour at a time,
with the constants of Wang et al., "Image quality assessment: from error visibility to structural
similarity" (2004); 1 means equal.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
IDENTICAL_DB = 100.0  # stands for the infinite PSNR of equal pictures, so that means stay finite


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """[B, H, W, 3] twice -> dB [B]; equal pictures get 100."""
    mean_square = (a.double() - b.double()).square().flatten(1).mean(dim=1)
    return (10 * torch.log10(255.0**2 / mean_square)).clamp(max=IDENTICAL_DB)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """[B, H, W, 3] twice -> mean structural similarity [B]."""
    x, y = a.double().movedim(-1, 1), b.double().movedim(-1, 1)
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * covariance + C2) / (var_x + var_y + C2)
    return (luminance * structure).flatten(1).mean(dim=1)


def _blur(x: Tensor) -> Tensor:
    """Gaussian mean over full windows: [B, 3, H, W] -> [B, 3, H - 10, W - 10]."""
    offsets = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    weights = (weights / weights.sum()).expand(x.shape[1], 1, 1, WINDOW)
    across = F.conv2d(x, weights, groups=x.shape[1])
    return F.conv2d(across, weights.transpose(2, 3), groups=x.shape[1])
