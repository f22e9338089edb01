"""How coarse FP8 is for the many ordinary values that share a scale with a few giants.

E4M3 keeps three bits of every value, large or small, down to scale * 2^-6; below, steps stop shrinking. One
giant in a group raises the scale for all, and if it is 10^5 times the others they fall among those last
steps, or to zero. The group's energy does not show it, for the giant has all of that. So giants are left
out here: a group's *body* is its values of at most eight times its mean magnitude (fewer than one value in
eight can lie above), and the figure is the body's own signal-to-noise ratio. Groups are rows, and each
counts alike: an output channel of a weight, a token of an activation.

Ordinary values, whatever their size, get 31.6 dB from E4M3 and 25.6 dB from E5M2 (measured on Gaussian
values). A layer 3 dB below that has had its noise doubled by giants.
"""

import math

import torch
from torch import Tensor

from sd35.fp8 import LARGEST, Dtype, Scheme, quantize

BODY = 8.0  # times the mean magnitude
ORDINARY_DB: dict[Dtype, float] = {"e4m3fn": 31.6, "e5m2": 25.6}
TOLERATED_DB = 3.0
# Without a giant of at least this many times the mean magnitude of a row's body, the body loses nothing by
# the scale: 1000 / 448 * 2^-9 is less than a two-hundredth of that mean. E5M2 reaches further still.
GIANT = 1000.0
_ROWS = 64  # looked at together: few enough for a processor's cache
_LAST_STEP = 2.0**-9 / LARGEST[torch.float8_e4m3fn]  # E4M3's smallest step, for an amax of 1


def least_db(dtype: Dtype) -> float:
    """The body's SQNR below which a layer counts as spoilt."""
    return ORDINARY_DB[dtype] - TOLERATED_DB


def weight_sqnr_db(weight: Tensor, scheme: Scheme) -> float:
    """The body's SQNR in dB of a weight [N, K] rounded to nearest; ORDINARY_DB where there is no giant."""
    if not has_giants(weight, scheme):
        return ORDINARY_DB[scheme.dtype]
    weight = weight.float()
    error = quantize(weight, scheme.dtype, scheme.granularity).dequantize() - weight
    body = body_of(weight)
    signal, noise = (values.square().mul_(body).sum(dim=1).double() for values in (weight, error))
    return decibels(float((noise / signal)[signal > 0].mean()))


def has_giants(weight: Tensor, scheme: Scheme) -> bool:
    """Whether any row shares its scale with a value that dwarfs its body; cheaper than to quantize."""
    largest = None if scheme.granularity == "rowwise" else weight.abs().amax().float()
    return any(_holds_giant(rows.float(), largest) for rows in weight.split(_ROWS))


def _holds_giant(rows: Tensor, largest: Tensor | None) -> bool:
    magnitude, body = rows.abs(), body_of(rows)
    amax = magnitude.amax(dim=1) if largest is None else largest
    means = magnitude.mul_(body).sum(dim=1) / body.sum(dim=1)
    return bool((amax > GIANT * means)[means > 0].any())


def body_of(values: Tensor) -> Tensor:
    """Which values [rows, K] belong to their row's body."""
    magnitude = values.abs()
    return magnitude <= BODY * magnitude.mean(dim=1, keepdim=True)


def body_rms(values: Tensor) -> Tensor:
    """Root mean square of each row's body: [rows, K] -> [rows]."""
    body = body_of(values)
    return (values.square().mul(body).sum(dim=1) / body.sum(dim=1)).sqrt()


def token_noise(rms: Tensor, amax: Tensor | float) -> Tensor:
    """Noise over signal of tokens with this body, rounded to E4M3 under a scale made from `amax`.

    The mantissa's share, and that of the last step: a uniform error of step^2 / 12, and no more than the
    body itself, which is what rounding to zero loses.
    """
    step = amax * _LAST_STEP
    coarse = (step / rms.clamp(min=torch.finfo(torch.float32).tiny)).square() / 12
    return 10 ** (-ORDINARY_DB["e4m3fn"] / 10) + coarse.clamp(max=1.0)


def decibels(noise_over_signal: float) -> float:
    """-10 log10, infinite where there is no noise."""
    return -10 * math.log10(noise_over_signal) if noise_over_signal > 0 else math.inf
