"""Muon for the matrices of the joint blocks, AdamW for everything else.

Adam scales every weight on its own. Muon treats a weight as a matrix: it takes the momentum and replaces
it by the nearest matrix whose singular values are all one, so rare directions learn as fast as common
ones (Keller Jordan, 2024). Five Newton-Schulz iterations do that with matrix products only. Matrices of
one shape are stacked and orthogonalised together, or a hundred tiny kernels would cost more than the
model's own step. Embeddings, biases, norms, convolutions, the modulations and the first and last layers
stay with AdamW.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; `lr` is the size of a step in units of the spectral norm."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step for every matrix, shape by shape."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                shapes[parameter.shape].append(parameter)
            for parameters in shapes.values():
                self._step_together(parameters, group["lr"], group["momentum"])

    def _step_together(self, parameters: list[nn.Parameter], lr: float, momentum: float) -> None:
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        buffers = [self._buffer(p) for p in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        nesterov = torch._foreach_lerp(gradients, buffers, momentum)
        directions = orthogonalise(torch.stack(nesterov))
        rows, columns = parameters[0].shape
        scale = -lr * max(1.0, rows / columns) ** 0.5
        torch._foreach_add_([*parameters], list(directions.to(parameters[0].dtype).unbind(0)), alpha=scale)

    def _buffer(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum"]
        return buffer


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring all singular values of [N, rows, columns] near one."""
    a, b, c = _NEWTON_SCHULZ
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def split_parameters(
    mmdit: nn.Module, encoders: Iterable[nn.Module]
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(matrices for Muon, the rest for AdamW)."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in mmdit.named_parameters():
        hidden = name.startswith("transformer_blocks") and parameter.ndim == 2 and ".norm1" not in name
        (matrices if hidden else rest).append(parameter)
    for encoder in encoders:
        rest.extend(encoder.parameters())
    return matrices, rest
