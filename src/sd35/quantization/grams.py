"""Gram matrices of the layers' inputs, of a few blocks at a time, gathered when they are asked for.

Learned rounding wants, for each layer, the mean of x x^T over the inputs x that it meets while the 16-bit
model draws: K x K values in float32. For Large they would be 34 GB together. So they are gathered for as
many blocks as fit a budget, in the order in which a writer comes to the blocks; when it comes to the next
one, the old matrices go and the prompts are drawn once more. What a layer's matrix is does not depend on
the budget, nor on where a resumed run begins.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from sd35.quantization.calibrate import TOKENS, Hook, block_layers, some_tokens, watched
from sd35.request import GenerationRequest
from sd35.runtime.pipeline import Pipeline

BUDGET = 2 << 30  # bytes; Large has 0.9 GB a block


class Grams:
    """Owns the 16-bit pipeline that draws, and the matrices of the blocks at hand."""

    def __init__(
        self, pipeline: Pipeline, requests: Sequence[GenerationRequest], budget: int = BUDGET
    ) -> None:
        self._pipeline, self._requests, self._budget = pipeline, list(requests), budget
        self._paths = {layer: path for path, layers in block_layers(pipeline).items() for layer in layers}
        self._held: dict[str, Tensor] = {}

    def __contains__(self, layer: str) -> bool:
        """Whether the calibration reaches this layer of the checkpoint."""
        return layer in self._paths

    def of(self, layer: str) -> Tensor:
        """mean of x x^T [K, K] over the layer's inputs, float32, on the pipeline's device."""
        path = self._paths[layer]
        if path not in self._held:
            self._held = {}  # the old ones go before the new ones come
            self._held = self._gather(self._next(_block(path)))
        return self._held[path]

    def facts(self) -> dict[str, Any]:
        """What the matrices depend on, for a job to be known by."""
        return {"drawn_by": self._pipeline.identity, "requests": [asdict(one) for one in self._requests]}

    def _next(self, first: str) -> list[str]:
        """The paths of this block and of those written after it, as far as the budget goes."""
        blocks: dict[str, list[str]] = {}
        for layer in sorted(self._paths):
            blocks.setdefault(_block(self._paths[layer]), []).append(self._paths[layer])
        order = list(blocks)
        chosen: list[str] = []
        for block in order[order.index(first) :]:
            together = chosen + list(dict.fromkeys(blocks[block]))
            if chosen and sum(4 * self._width(path) ** 2 for path in together) > self._budget:
                break
            chosen = together
        return chosen

    def _width(self, path: str) -> int:
        weight = self._pipeline.mmdit.get_submodule(path).weight
        assert isinstance(weight, Tensor)
        return weight.shape[1]

    def _gather(self, paths: list[str]) -> dict[str, Tensor]:
        device = self._pipeline.device
        sums = {path: torch.zeros(2 * (self._width(path),), device=device) for path in paths}
        counts = dict.fromkeys(paths, 0)
        with watched(self._pipeline, {path: _adder(path, sums, counts) for path in paths}) as drawing:
            for request in self._requests:
                drawing.generate(request)
        return {path: sums[path].div_(max(counts[path], 1)) for path in paths}


def _block(path: str) -> str:
    """`blocks.3` of `blocks.3.sample_mlp.fc1`."""
    return ".".join(path.split(".")[:2])


def _adder(path: str, sums: dict[str, Tensor], counts: dict[str, int]) -> Hook:
    def add(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = some_tokens(inputs[0], TOKENS).float()
        sums[path].addmm_(x.T, x)
        counts[path] += len(x)

    return add
