"""Learned rounding: a weight's FP8 values chosen so that the layer's OUTPUT errs least, not each value.

Rounding to nearest is best for a value by itself. A layer's output is a sum over its inputs x, and inputs
go up and down together; so the error that one rounded weight makes can partly be undone by weights that
are yet to be rounded. For a row w of the weight, rounded to q, the expected squared error of the output is

    E (x (w - q))^2  =  (w - q)^T H (w - q)          with the Gram matrix H = E x x^T of the inputs

Columns are rounded one after the other, and each time the values not yet rounded take over what the error
correlates with: w_rest -= error * U_j,rest / U_jj, where U is the upper Cholesky factor of the inverse of H.
Inputs of the greatest energy come first, while there are many others left to make up for them. Nothing is
random and nothing is trained: one pass, equal bytes for equal H.

The scale of a row is sought too: E4M3's steps double at every power of two, so how well a row fits depends
on where its values fall between two of them. Sixteen scales from amax / 448 up to twice that are tried, and
the one with the least squared error of the values is taken (0.3 to 0.6 dB of the output on the demo model).

A little is added to the diagonal of H: calibration sees a limited number of tokens, so directions that it
hardly saw must not be taken for free. Source: GPTQ, arXiv 2210.17323; for an integer grid there, for E4M3
and E5M2, whose steps grow with the value, here.
"""

import torch
from torch import Tensor

from sd35.fp8 import TORCH_DTYPES, ScaledTensor, Scheme, expand_scale, quantize, saturate

DAMPING = 0.05  # of the mean of H's diagonal; best on inputs that calibration had not seen
SCALES = 16  # tried for each row, over one octave
_ROWS = 512  # whose scales are sought together: few enough for a processor's cache
COLUMNS = 128  # rounded before the rest of the matrix hears of their errors: one product, not 128


def round_by_gram(weight: Tensor, gram: Tensor, scheme: Scheme) -> ScaledTensor:
    """Round `weight` [N, K] to FP8 for inputs of the Gram matrix `gram` [K, K].

    The result lies on the weight's device, the work is done on the Gram matrix's.
    """
    values, dtype = weight.to(gram.device).float(), TORCH_DTYPES[scheme.dtype]
    scale = quantize(values, scheme.dtype, scheme.granularity).scale
    if scheme.granularity == "rowwise":
        scale = _best_scale(values, scale, dtype)
    order = gram.diagonal().argsort(descending=True, stable=True)
    by_input = expand_scale(scale, weight.shape).expand(weight.shape).T
    scales = [by_input[i] for i in order.tolist()]
    rounded = _feed_back(values.T[order], scales, _factor(gram[order][:, order]), dtype)
    data = torch.empty_like(rounded)
    data[order] = rounded  # in float32: FP8 has no indexed write
    return ScaledTensor(data.T.to(dtype).contiguous().to(weight.device), scale.to(weight.device))


def output_noise(weight: Tensor, rounded: ScaledTensor, gram: Tensor) -> float:
    """Expected squared error of the output over its expected square, for inputs of this Gram matrix."""
    exact = weight.to(gram.device).float()
    error = exact - rounded.dequantize().to(gram.device)
    return float(((error @ gram) * error).sum() / ((exact @ gram) * exact).sum())


def _best_scale(values: Tensor, smallest: Tensor, dtype: torch.dtype) -> Tensor:
    """Of scales from `smallest` [N, 1] to twice that, the best for each row of values rounded to nearest."""
    pairs = zip(values.split(_ROWS), smallest.split(_ROWS), strict=True)
    return torch.cat([_best_of_some(rows, scale, dtype) for rows, scale in pairs])


def _best_of_some(values: Tensor, smallest: Tensor, dtype: torch.dtype) -> Tensor:
    best, least = smallest, torch.full_like(smallest, torch.inf)
    for i in range(SCALES):
        scale = smallest * (1 + i / SCALES)
        error = (
            saturate(values / scale, dtype).float().mul_(scale).sub_(values).square_().sum(1, keepdim=True)
        )
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def _factor(gram: Tensor) -> Tensor:
    """U, upper triangular, with U^T U = inverse of the damped H. In float64: H is nearly singular."""
    damped = gram.double()
    diagonal = damped.diagonal()
    diagonal += DAMPING * diagonal.mean() + torch.finfo(torch.float32).tiny
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()


def _feed_back(values: Tensor, scales: list[Tensor], factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Round the weight's columns, which lie here as rows [K, N], one by one; `values` is consumed.

    `scales` has [N] for each. -> value / scale on FP8's grid, in float32.
    """
    rounded = torch.empty_like(values)
    for begin in range(0, len(values), COLUMNS):
        end = min(begin + COLUMNS, len(values))
        errors = torch.empty_like(values[begin:end])
        for i in range(begin, end):
            rounded[i] = saturate(values[i] / scales[i], dtype).float()
            errors[i - begin] = (values[i] - rounded[i] * scales[i]) / factor[i, i]
            values[i + 1 : end].addr_(factor[i, i + 1 : end], errors[i - begin], alpha=-1)
        values[end:].addmm_(factor[begin:end, end:].T, errors, alpha=-1)
    return rounded
