"""Where precision is lost: each layer's output SQNR, from the inputs that it really gets.

The reference draws a few of the prompts. Whenever one of its linears is called, some of the tokens that it
was given go through that layer and through the candidate's layer of the same name, and two sums grow: the
energy of the reference's output and that of the difference. Over all steps and prompts,

    SQNR = 10 log10( sum |y|^2 / sum |y - y'|^2 )        dB

Both layers see the same inputs, so a layer's figure holds its own error alone, not what earlier layers
left it with. The output is the whole output: beside a large bias, as AdaLN's linears have it, a product's
error counts for less. No input is kept: what this costs in memory is the candidate's transformer.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from sd35.compare.compare import OnPicture, draw_with
from sd35.compare.metrics import IDENTICAL_DB
from sd35.config import RuntimeConfig
from sd35.errors import RequestError
from sd35.quantization.calibrate import some_tokens
from sd35.request import GenerationRequest
from sd35.runtime.linear import Fp8Linear
from sd35.runtime.load import load_mmdit, load_pipeline
from sd35.runtime.mmdit import MMDiT

TOKENS = 256  # of one call go through both layers; a call may have 8,000
PROMPTS = 4


@dataclass(frozen=True)
class LayerFigure:
    """One linear's output SQNR in dB, 100 where nothing differs, and how the candidate stores it."""

    name: str
    stored: str
    sqnr_db: float

    @property
    def kind(self) -> str:
        """The name without its block: `sample_mlp.fc1`."""
        return self.name.split(".", 2)[2]


@dataclass
class Energies:
    """Sums of squares so far: of the reference's outputs, and of the differences to them."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, expected: Tensor, actual: Tensor) -> None:
        """Count two outputs of the same inputs."""
        expected, actual = expected.float(), actual.float()
        self.signal += float(expected.square().sum(dtype=torch.float64))
        self.noise += float((expected - actual).square().sum(dtype=torch.float64))

    @property
    def sqnr_db(self) -> float:
        """Within +-100 dB, so that means stay finite; an output with NaN or infinity gets the least."""
        if self.noise == 0:
            return IDENTICAL_DB
        if self.signal == 0 or not math.isfinite(self.noise):
            return -IDENTICAL_DB
        return max(-IDENTICAL_DB, min(10 * math.log10(self.signal / self.noise), IDENTICAL_DB))


def measure_layers(
    reference: Path,
    candidate: Path,
    requests: Sequence[GenerationRequest],
    config: RuntimeConfig,
    on_picture: OnPicture,
) -> list[LayerFigure]:
    """Every joint-block linear's figure, in the model's order; RequestError if the models differ in shape."""
    pipeline, other = load_pipeline(reference, config), load_mmdit(candidate, config)
    with listening(pipeline.mmdit, other) as heard:  # a replay from a CUDA graph calls no hook
        draw_with(replace(pipeline, recorder=None), some_of(requests), 1, on_picture)
    layers = joint_linears(other)
    return [LayerFigure(name, _stored(layers[name]), sums.sqnr_db) for name, sums in heard.items()]


@contextmanager
def listening(reference: MMDiT, candidate: MMDiT) -> Iterator[dict[str, Energies]]:
    """While this lasts, every call of a reference's linear is repeated by the candidate's and counted."""
    ours, theirs = joint_linears(reference), joint_linears(candidate)
    if {name: _size(layer) for name, layer in ours.items()} != {
        name: _size(layer) for name, layer in theirs.items()
    }:
        raise RequestError(
            "The two checkpoints have different layers, so --layers can't pair them: "
            "compare two of one variant."
        )
    heard = {name: Energies() for name in ours}
    hooks = [
        layer.register_forward_pre_hook(_listener(theirs[name], heard[name])) for name, layer in ours.items()
    ]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def joint_linears(mmdit: MMDiT) -> dict[str, nn.Module]:
    """The linears of the joint blocks, 16-bit or FP8, by our names: all that a recipe can make FP8."""
    return {
        f"blocks.{name}": layer
        for name, layer in mmdit.blocks.named_modules()
        if isinstance(layer, nn.Linear | Fp8Linear)
    }


def some_of(requests: Sequence[GenerationRequest]) -> list[GenerationRequest]:
    """A few requests from all over the list, which may begin with the easy ones."""
    count = min(PROMPTS, len(requests))
    return [requests[i * len(requests) // count] for i in range(count)]


def mean_by_kind(figures: Sequence[LayerFigure]) -> dict[str, float]:
    """Mean SQNR in dB over the blocks, worst kind first."""
    kinds = {figure.kind for figure in figures}
    means = {kind: fmean(one.sqnr_db for one in figures if one.kind == kind) for kind in kinds}
    return dict(sorted(means.items(), key=lambda pair: (pair[1], pair[0])))


def worst_first(figures: Sequence[LayerFigure]) -> list[LayerFigure]:
    """By SQNR, the lowest first."""
    return sorted(figures, key=lambda figure: figure.sqnr_db)


def _listener(candidate: nn.Module, sums: Energies) -> Any:
    def listen(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = some_tokens(inputs[0], TOKENS)
        # Both products have one shape, so equal layers give equal bits. `forward`, for a call would be heard.
        sums.add(layer.forward(x), candidate.forward(x))

    return listen


def _size(layer: nn.Module) -> tuple[int, ...]:
    weight = layer.data if isinstance(layer, Fp8Linear) else layer.weight
    assert isinstance(weight, Tensor)
    return tuple(weight.shape)


def _stored(layer: nn.Module) -> str:
    if isinstance(layer, Fp8Linear):
        product = "16-bit product" if layer.activation == "none" else f"{layer.activation} activations"
        return f"{_name(layer.data)}, {product}"
    assert isinstance(layer.weight, Tensor)
    return _name(layer.weight)


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
