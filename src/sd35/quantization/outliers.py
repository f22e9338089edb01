"""The outlier guard: layers that FP8 would spoil are found before anything is written, and spared.

Three things spoil a layer, each known by a figure: weights whose body falls among E4M3's last steps, inputs
whose body does (both `coarseness.py`: 3 dB below what ordinary values get), and a static scale that the
largest token exceeds more than fourfold. The remedy is the least that helps: a weight stays 16-bit; where
only the inputs are at fault, the weight is FP8 in storage and the product is taken in 16 bit. q, k and v
are one layer at run time and share one fate. What inputs are like is known only where a calibration was run.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sd35.checkpoints.source import TensorSource
from sd35.errors import CheckpointError
from sd35.fp8 import Scheme
from sd35.quantization.calibrate import LayerInputs
from sd35.quantization.coarseness import least_db, weight_sqnr_db
from sd35.quantization.lazily import damaged
from sd35.quantization.recipe import fused_with

SATURATION = 4.0  # times what a static scale covers

Cause = Literal["weight", "inputs", "saturation"]
_UNITS = {"weight": "dB", "inputs": "dB", "saturation": "times"}


@dataclass(frozen=True)
class Outlier:
    """A layer that FP8 would spoil: why, the figure and its bound, and what it becomes instead.

    Figures are dB, for `saturation` the largest token over what the static scale covers. `instead` None is
    16 bit.
    """

    layer: str
    cause: Cause
    figure: float
    bound: float
    instead: Scheme | None

    def __str__(self) -> str:
        unit = _UNITS[self.cause]
        fate = "stays 16-bit" if self.instead is None else "is FP8 in storage only"
        return f"{self.layer} {fate}: {self.cause} at {self.figure:.1f} {unit}, bound {self.bound:.1f}"

    def as_dict(self) -> dict[str, Any]:
        """For the manifest and for JSON."""
        return asdict(self)


def find_outliers(
    source: TensorSource, schemes: Mapping[str, Scheme], inputs: Mapping[str, LayerInputs]
) -> list[Outlier]:
    """The layers that these schemes would spoil, one cause each. Reads every weight once."""
    found = (_outlier(source, layer, scheme, inputs.get(layer)) for layer, scheme in schemes.items())
    return [outlier for outlier in found if outlier]


def spared(schemes: Mapping[str, Scheme], outliers: Iterable[Outlier]) -> dict[str, Scheme]:
    """The schemes with each outlier's remedy in place, also for the layers that are fused with it."""
    remedies: dict[str, Scheme | None] = {}
    for outlier in sorted(outliers, key=lambda one: one.instead is None):  # 16 bit has the last word
        remedies.update(dict.fromkeys(fused_with(outlier.layer, schemes), outlier.instead))
    wanted = {layer: remedies.get(layer, scheme) for layer, scheme in schemes.items()}
    return {layer: scheme for layer, scheme in wanted.items() if scheme}


def refuse(path: str, outliers: list[Outlier]) -> CheckpointError:
    """The error that names them all."""
    names = "; ".join(
        f"{one.layer} ({one.cause} at {one.figure:.1f} {_UNITS[one.cause]})" for one in outliers
    )
    return CheckpointError(
        f"{path} has {len(outliers)} layers that FP8 would spoil: {names}. Leave them 16-bit with "
        "`--outliers keep`, or quantize them all the same with `--outliers ignore`."
    )


def _outlier(source: TensorSource, layer: str, scheme: Scheme, inputs: LayerInputs | None) -> Outlier | None:
    weight, least = weight_sqnr_db(source.read(f"{layer}.weight"), scheme), least_db(scheme.dtype)
    if math.isnan(weight):
        raise damaged(f"{layer}.weight")
    if weight < least:
        return Outlier(layer, "weight", weight, least, None)
    if inputs is None or scheme.activation == "none":
        return None
    body, least = inputs.sqnr_db(scheme.activation), least_db("e4m3fn")
    if not body >= least:
        return Outlier(layer, "inputs", body, least, scheme.storage_only())
    excess = inputs.peak / inputs.amax
    if scheme.activation == "static" and not excess <= SATURATION:
        return Outlier(layer, "saturation", excess, SATURATION, scheme.storage_only())
    return None
