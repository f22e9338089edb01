"""GroupNorm, SiLU and residual sums over pictures whose channels lie side by side (channels-last).

A group's statistics span the whole picture: 4 million values of each of 32 groups at 1024 x 1024, which is
why they are a pass of their own. To fill the card, the picture is cut into chunks of pixels, one program
each. A program keeps each channel's sum and sum of squares, both as distances from the chunk's first
pixel, so that a large mean costs no digits; what it writes is the chunk's mean and its sum of squared
distances from that mean. A second, small kernel joins the chunks of a group by Chan's formula (Chan, Golub,
LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979). The bias of
the convolution before (`added`) moves the means and nothing else, so it is added there.

The pixels of all rows are one axis here: x is [B, P, C] in memory. Arithmetic is in float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sd35.kernels.reference import NORM_EPSILON

TILE = 8192  # values that a program holds at once
CHUNKS = 1024  # programs a picture, at most: eight for each multiprocessor of a large card
CHUNKS_AT_ONCE = 256  # that the second kernel reads


def group_statistics(x: Tensor, groups: int, added: Tensor | None = None) -> Tensor:
    """`reference.group_statistics`, of channels-last x."""
    batch, channels, pixels = _sizes(x)
    block_pixels, block_channels = _tile(channels)
    # Loops have powers of two for bounds, so that few sizes of pictures need a kernel of their own.
    tiles = triton.next_power_of_2(triton.cdiv(pixels, CHUNKS * block_pixels))
    chunks = triton.cdiv(pixels, tiles * block_pixels)
    means, squares = torch.empty((2, batch, chunks, channels), dtype=torch.float32, device=x.device)
    chunk_statistics_kernel[(chunks, batch)](
        x, means, squares, pixels, channels,
        TILES=tiles, BLOCK_PIXELS=block_pixels, BLOCK_CHANNELS=block_channels,
        num_warps=8,
    )  # fmt: skip
    statistics = torch.empty((batch, groups, 2), dtype=torch.float32, device=x.device)
    join_statistics_kernel[(groups, batch)](
        means, squares, x if added is None else added, statistics,
        pixels, channels, groups, tiles * block_pixels, chunks,
        ADDED=added is not None, ROUNDS=triton.next_power_of_2(triton.cdiv(chunks, CHUNKS_AT_ONCE)),
        BLOCK_CHUNKS=CHUNKS_AT_ONCE, BLOCK_CHANNELS=triton.next_power_of_2(channels // groups),
        num_warps=4,
    )  # fmt: skip
    return statistics


def group_norm(
    x: Tensor, statistics: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None = None, *, silu: bool
) -> Tensor:
    """`reference.group_norm`, of channels-last x."""
    batch, channels, pixels = _sizes(x)
    block_pixels, block_channels = _tile(channels)
    out = torch.empty_like(x)
    group_norm_kernel[(triton.cdiv(pixels, block_pixels), batch)](
        x, statistics, weight, bias, x if added is None else added, out,
        pixels, channels, statistics.shape[1], NORM_EPSILON,
        ADDED=added is not None, SILU=silu,
        BLOCK_PIXELS=block_pixels, BLOCK_CHANNELS=block_channels,
        num_warps=8,
    )  # fmt: skip
    return out


def add_branch(x: Tensor, branch: Tensor, bias: Tensor) -> Tensor:
    """`reference.add_branch`, of channels-last x and branch."""
    assert x.shape == branch.shape
    assert branch.is_contiguous(memory_format=torch.channels_last)
    batch, channels, pixels = _sizes(x)
    block_pixels, block_channels = _tile(channels)
    out = torch.empty_like(x)
    add_branch_kernel[(triton.cdiv(batch * pixels, block_pixels),)](
        x, branch, bias, out, batch * pixels, channels,
        BLOCK_PIXELS=block_pixels, BLOCK_CHANNELS=block_channels,
        num_warps=8,
    )  # fmt: skip
    return out


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Batch, channels, pixels of x [B, C, H, W]."""
    assert x.is_contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    return batch, channels, height * width


def _tile(channels: int) -> tuple[int, int]:
    """Pixels and channels that a program holds at once; all channels, as powers of two."""
    block_channels = triton.next_power_of_2(channels)
    return max(1, TILE // block_channels), block_channels


@triton.jit
def chunk_statistics_kernel(
    x, means, squares, pixels, channels,
    TILES: tl.constexpr, BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program a chunk: each channel's mean, and its sum of squared distances from it."""
    chunk = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    first = chunk * (TILES * BLOCK_PIXELS)
    end = tl.minimum(first + TILES * BLOCK_PIXELS, pixels)
    channel = tl.arange(0, BLOCK_CHANNELS)
    is_channel = channel < channels
    picture = x + batch * pixels * channels
    origin = tl.load(picture + first.to(tl.int64) * channels + channel, mask=is_channel, other=0.0)
    origin = origin.to(tl.float32)
    total = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), dtype=tl.float32)
    total_squares = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), dtype=tl.float32)
    for tile in range(TILES):
        pixel = first + tile * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
        mask = (pixel < end)[:, None] & is_channel[None, :]
        place = picture + pixel.to(tl.int64)[:, None] * channels + channel[None, :]
        value = tl.load(place, mask=mask, other=0.0).to(tl.float32)
        distance = tl.where(mask, value - origin[None, :], 0.0)
        total += distance
        total_squares += distance * distance
    count = (end - first).to(tl.float32)
    from_origin = tl.sum(total, axis=0) / count
    out = (batch * tl.num_programs(0) + chunk) * channels + channel
    tl.store(means + out, origin + from_origin, mask=is_channel)
    square = tl.sum(total_squares, axis=0) - count * from_origin * from_origin
    tl.store(squares + out, square, mask=is_channel)


@triton.jit
def join_statistics_kernel(
    means, squares, added, statistics,
    pixels, channels, groups, per_chunk, chunks,
    ADDED: tl.constexpr, ROUNDS: tl.constexpr, BLOCK_CHUNKS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program a group: the mean first, then the squares around it, over chunks and channels."""
    group = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    width = channels // groups
    inner = tl.arange(0, BLOCK_CHANNELS)
    is_channel = inner < width
    channel = group * width + inner
    shift = tl.zeros((BLOCK_CHANNELS,), dtype=tl.float32)
    if ADDED:
        shift = tl.load(added + channel, mask=is_channel, other=0.0).to(tl.float32)
    size = tl.cast(pixels, tl.float32) * width  # Triton makes a 1 a constant, which has no `to`
    first_chunk = batch * chunks * channels

    total = tl.zeros((BLOCK_CHUNKS, BLOCK_CHANNELS), dtype=tl.float32)
    for turn in range(ROUNDS):
        chunk = turn * BLOCK_CHUNKS + tl.arange(0, BLOCK_CHUNKS)
        mask = (chunk < chunks)[:, None] & is_channel[None, :]
        count = tl.minimum(per_chunk, pixels - chunk * per_chunk).to(tl.float32)
        place = first_chunk + chunk[:, None] * channels + channel[None, :]
        mean = tl.load(means + place, mask=mask, other=0.0) + shift[None, :]
        total += tl.where(mask, mean * count[:, None], 0.0)
    group_mean = tl.sum(tl.sum(total, axis=1), axis=0) / size

    total = tl.zeros((BLOCK_CHUNKS, BLOCK_CHANNELS), dtype=tl.float32)
    for turn in range(ROUNDS):
        chunk = turn * BLOCK_CHUNKS + tl.arange(0, BLOCK_CHUNKS)
        mask = (chunk < chunks)[:, None] & is_channel[None, :]
        count = tl.minimum(per_chunk, pixels - chunk * per_chunk).to(tl.float32)
        place = first_chunk + chunk[:, None] * channels + channel[None, :]
        distance = tl.load(means + place, mask=mask, other=0.0) + shift[None, :] - group_mean
        square = tl.load(squares + place, mask=mask, other=0.0)
        total += tl.where(mask, square + count[:, None] * distance * distance, 0.0)
    variance = tl.sum(tl.sum(total, axis=1), axis=0) / size

    out = statistics + (batch * groups + group) * 2
    tl.store(out, group_mean)
    tl.store(out + 1, variance)


@triton.jit
def group_norm_kernel(
    x, statistics, weight, bias, added, out,
    pixels, channels, groups, epsilon,
    ADDED: tl.constexpr, SILU: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program a tile of pixels, all channels."""
    batch = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    channel = tl.arange(0, BLOCK_CHANNELS)
    is_channel = channel < channels
    group = statistics + (batch * groups + channel // (channels // groups)) * 2
    centre = tl.load(group, mask=is_channel, other=0.0)
    variance = tl.load(group + 1, mask=is_channel, other=1.0)
    if ADDED:
        centre -= tl.load(added + channel, mask=is_channel, other=0.0).to(tl.float32)
    slope = tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32)
    slope *= tl.rsqrt(variance + epsilon)
    shift = tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)
    mask = (pixel < pixels)[:, None] & is_channel[None, :]
    place = batch * pixels * channels + pixel.to(tl.int64)[:, None] * channels + channel[None, :]
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    value = (value - centre[None, :]) * slope[None, :] + shift[None, :]
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def add_branch_kernel(
    x, branch, bias, out, pixels, channels,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program a tile of pixels, of all pictures."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    channel = tl.arange(0, BLOCK_CHANNELS)
    is_channel = channel < channels
    mask = (pixel < pixels)[:, None] & is_channel[None, :]
    place = pixel[:, None] * channels + channel[None, :]
    value = tl.load(branch + place, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    value += tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)
