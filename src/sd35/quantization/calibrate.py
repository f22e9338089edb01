"""Calibration: how large the inputs of each layer get, found by drawing with the 16-bit model.

A static activation scale has to cover every token that will ever come. So the 16-bit model draws some
pictures, all steps of them, for activations early and late in the loop differ, and each layer's input is
watched: of every call the given percentile of its tokens' amax is taken, and the largest over all calls is
kept. 100 takes the true maximum; a little less lets rare outliers saturate and gives the rest finer steps.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sd35.errors import RequestError
from sd35.request import GenerationRequest
from sd35.runtime.pipeline import Pipeline
from sd35.runtime.weights import layers_of

Hook = Callable[[nn.Module, tuple[Tensor, ...]], None]


def calibrate(
    pipeline: Pipeline, requests: Iterable[GenerationRequest], percentile: float = 100.0
) -> dict[str, float]:
    """amax of the inputs of every linear of the blocks, by the checkpoint's layer names.

    RequestError for a percentile outside (0, 100].
    """
    if not 0 < percentile <= 100:
        raise RequestError(f"percentile is {percentile:g}, outside its range: give more than 0, 100 at most.")
    sources = {path: layers for path, layers in layers_of(pipeline.mmdit) if path.startswith("blocks.")}
    found: dict[str, float] = {}
    with _watched(pipeline.mmdit, sources, percentile / 100, found):
        for request in requests:
            pipeline.generate(request)
    return {layer: found[path] for path, layers in sources.items() if path in found for layer in layers}


@contextmanager
def _watched(
    mmdit: nn.Module, paths: Iterable[str], quantile: float, found: dict[str, float]
) -> Iterator[None]:
    """While this lasts, `found` keeps the largest that each layer's input has been."""
    layers = {path: mmdit.get_submodule(path) for path in paths}
    hooks = [
        layer.register_forward_pre_hook(_keeper(path, quantile, found)) for path, layer in layers.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _keeper(path: str, quantile: float, found: dict[str, float]) -> Hook:
    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        tokens = inputs[0].float().abs().amax(dim=-1).flatten()
        largest = float(torch.quantile(tokens[: 1 << 23], quantile))
        found[path] = max(found.get(path, 0.0), largest)

    return keep
