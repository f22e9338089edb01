"""Joint blocks in a row that lie on one device, and how streams come there.

Where all blocks are with the rest of the network there is one stretch and nothing hops. Where they are
divided over cards (`division.py`), each stretch takes the streams to its own card. A stream hops settled:
the next block would round its tokens just so, and an unfinished branch is as large as they are.

PyTorch has the work of two cards wait for one another by events on their streams; the host waits for nothing.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from sd35.kernels.api import Operations
from sd35.kernels.operands import Residual


@dataclass(frozen=True)
class Stretch:
    """The numbers of the blocks, and their device; None: where the rest of the network is."""

    blocks: range
    device: torch.device | None = None

    def current(self) -> AbstractContextManager[object]:
        """Compute there."""
        return nullcontext() if self.device is None else current(self.device)

    def bring(self, tensor: Tensor) -> Tensor:
        """The tensor, there."""
        return tensor if self.device is None else tensor.to(self.device)

    def receive(self, stream: Residual, operations: Operations) -> Residual:
        """The stream, there."""
        return stream if self.device is None else hop(stream, self.device, operations)


def hop(stream: Residual, device: torch.device, operations: Operations) -> Residual:
    """The stream on a device; it is settled, where it was, if it is not there yet."""
    if device == stream.tokens.device:
        return stream
    with current(stream.tokens.device):
        settled = operations.settle(stream)
    return Residual(settled.to(device))


def current(device: torch.device) -> AbstractContextManager[object]:
    """Make a card the current one: graphs and Triton's kernels run there, wherever their tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
