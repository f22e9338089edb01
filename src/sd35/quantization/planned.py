"""What a part of a checkpoint would be after quantizing: every name and shape, no tensor read yet."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from sd35.checkpoints.layout import Layout
from sd35.checkpoints.lazy import Lazy
from sd35.checkpoints.reader import TensorReader, TensorSpec
from sd35.checkpoints.source import TensorSource
from sd35.quantization.lazily import quantized
from sd35.quantization.recipe import Recipe

Draw = Callable[[str, TensorSpec], Tensor]


def planned(part: str, layout: Layout, draw: Draw, recipe: Recipe | None) -> TensorSource:
    """The part's tensors as the table has them, FP8 as the recipe says; `draw` gives values when asked."""
    tensors = {name: Lazy(spec, partial(draw, name, spec)) for name, spec in layout.items()}
    if recipe is None:
        return TensorSource(TensorReader([]), tensors, {})
    schemes = recipe.plan(part, {name: spec.shape for name, spec in layout.items()})
    for layer, scheme in schemes.items():
        name = f"{layer}.weight"
        tensors[name], tensors[f"{name}_scale"] = quantized(name, tensors[name], scheme)
    return TensorSource(TensorReader([]), tensors, schemes)
