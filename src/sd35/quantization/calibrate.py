"""Calibration: what the inputs of each layer are like, found by drawing with the 16-bit model.

A static activation scale has to cover every token that will ever come. So the 16-bit model draws some
pictures, all steps of them, for activations early and late in the loop differ, and each layer's input is
watched: of every call the given percentile of its tokens' amax is taken, and the largest over all calls is
kept. 100 takes the true maximum; a little less lets rare outliers saturate and gives the rest finer steps.

On the way it notes what the outlier guard wants to know: how far the largest token goes, and how small the
body of a token (`coarseness.py`) is beside the amax that its scale is made of.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from sd35.errors import RequestError
from sd35.fp8 import Activation
from sd35.quantization.coarseness import body_rms, decibels, token_noise
from sd35.request import GenerationRequest
from sd35.runtime.pipeline import Pipeline
from sd35.runtime.weights import layers_of

Hook = Callable[[nn.Module, tuple[Tensor, ...]], None]

TOKENS = 256  # of one call are looked at closely; a call may have 8,000
_OCTAVES = 64  # bodies are counted by powers of two, from 2^-32 to 2^31


@dataclass
class LayerInputs:
    """What calibration saw of one layer's inputs; sums grow while it lasts."""

    amax: float = 0.0  # of the percentile of tokens that was asked for: what a static scale covers
    peak: float = 0.0  # of all tokens
    tokens: int = 0  # looked at closely
    dynamic_noise: float = 0.0  # sum over them of noise / signal, each scaled by its own amax
    bodies: Tensor = field(default_factory=lambda: torch.zeros(_OCTAVES))  # tokens by their body's octave

    def see(self, x: Tensor, quantile: float) -> None:
        """Count the inputs [..., K] of one call."""
        amax = x.float().abs().amax(dim=-1).flatten()
        self.amax = max(self.amax, float(torch.quantile(amax[: 1 << 23], quantile)))
        self.peak = max(self.peak, float(amax.max()))
        tokens = some_tokens(x, TOKENS).float()
        tokens = tokens[tokens.abs().amax(dim=1) > 0]
        rms = body_rms(tokens)
        self.tokens += len(tokens)
        self.dynamic_noise += float(token_noise(rms, tokens.abs().amax(dim=1)).sum())
        octaves = (torch.frexp(rms).exponent + _OCTAVES // 2).clamp(0, _OCTAVES - 1)
        self.bodies += torch.bincount(octaves, minlength=_OCTAVES).cpu()

    def sqnr_db(self, activation: Activation) -> float:
        """The body's SQNR of these inputs in E4M3, by their own scales or by the static one."""
        if not self.tokens or activation == "none":
            return decibels(0.0)
        if activation == "dynamic":
            return decibels(self.dynamic_noise / self.tokens)
        rms = torch.exp2(torch.arange(_OCTAVES) - _OCTAVES // 2 - 0.5)  # an octave's middle
        return decibels(float((token_noise(rms, self.amax) * self.bodies).sum()) / self.tokens)

    def facts(self) -> list[float]:
        """All that depends on the calibration, for a job to be known by."""
        return [self.amax, self.peak, self.dynamic_noise, *self.bodies.tolist()]


def calibrate(
    pipeline: Pipeline, requests: Iterable[GenerationRequest], percentile: float = 100.0
) -> dict[str, LayerInputs]:
    """The inputs of every linear of the blocks, by the checkpoint's layer names.

    RequestError for a percentile outside (0, 100].
    """
    if not 0 < percentile <= 100:
        raise RequestError(f"percentile is {percentile:g}, outside its range: give more than 0, 100 at most.")
    paths = block_layers(pipeline)
    seen = {path: LayerInputs() for path in paths}
    hooks = {path: _watcher(inputs, percentile / 100) for path, inputs in seen.items()}
    with watched(pipeline, hooks) as drawing:
        for request in requests:
            drawing.generate(request)
    return {layer: seen[path] for path, layers in paths.items() if seen[path].peak for layer in layers}


def block_layers(pipeline: Pipeline) -> dict[str, tuple[str, ...]]:
    """The linears of the joint blocks: our path -> the checkpoint's layers that it stacks."""
    return {path: layers for path, layers in layers_of(pipeline.mmdit) if path.startswith("blocks.")}


@contextmanager
def watched(pipeline: Pipeline, hooks: Mapping[str, Hook]) -> Iterator[Pipeline]:
    """While this lasts, the pipeline that it gives calls each layer's hook before it calls the layer.

    The same model, but its steps are not replayed from CUDA graphs: a replay calls no hook.
    """
    handles = [
        pipeline.mmdit.get_submodule(path).register_forward_pre_hook(hook) for path, hook in hooks.items()
    ]
    try:
        yield replace(pipeline, recorder=None)
    finally:
        for handle in handles:
            handle.remove()


def some_tokens(x: Tensor, count: int) -> Tensor:
    """[..., K] -> at most `count` of its rows, [rows, K].

    A fixed shuffle and not every nth: n would often divide the picture's width and pick whole columns.
    """
    rows = x.flatten(0, -2)
    if len(rows) <= count:
        return rows
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]
    return rows[chosen.to(x.device)]


def _watcher(inputs: LayerInputs, quantile: float) -> Hook:
    return lambda _, arguments: inputs.see(arguments[0], quantile)
