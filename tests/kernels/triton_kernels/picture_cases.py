"""Inputs for the operations on pictures, in the widths of the VAEs and in sizes that fill no block."""

from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from kernel_cases import Inputs
from torch import Tensor

CHANNELS = ((32, 16), (96, 16), (128, 32), (256, 32), (512, 32))  # and groups: the demo's, then SD3.5's
BATCH = 2

PictureRun = Callable[[ModuleType], Tensor]


def picture_runs(
    inputs: Inputs, channels: int, groups: int, size: tuple[int, int], batch: int = BATCH
) -> Iterator[tuple[str, PictureRun]]:
    """Every operation on a picture in every form: a name, and what to call with an implementation.

    Channels differ in mean and spread, and means are far from 0, as behind a convolution.
    """
    spread = 1 + torch.rand(channels, 1, 1)
    mean = 8 * torch.randn(channels, 1, 1)
    x = (torch.randn(batch, channels, *size) * spread + mean).to(inputs.device, inputs.dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    branch = torch.empty_like(x).normal_()
    weight, bias, convolution = (inputs.random(channels) for _ in range(3))
    statistics = torch.rand(batch, groups, 2).to(inputs.device) + 0.5
    for added in (None, convolution):
        yield (
            f"group_statistics added={added is not None}",
            lambda operations, added=added: operations.group_statistics(x, groups, added),
        )
        for silu in (True, False):
            yield (
                f"group_norm added={added is not None} silu={silu}",
                lambda operations, added=added, silu=silu: operations.group_norm(
                    x, statistics, weight, bias, added, silu=silu
                ),
            )
    yield "add_branch", lambda operations: operations.add_branch(x, branch, convolution)
