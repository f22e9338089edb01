"""A checkpoint in the precision that is asked for, made on the spot if need be, and loaded.

The bundled demo model ships in 16 bit, and so do Stability's own folders. Whoever asks for FP8 of such a
folder gets it quantized once, by the default recipe, into a folder under SD35_HOME; the next call finds it.
"""

import logging
from pathlib import Path
from typing import Literal, get_args

from sd35 import __version__
from sd35.checkpoints.folder import open_folder
from sd35.checkpoints.schemes import load_schemes
from sd35.checkpoints.store import derived, identity, locate
from sd35.config import RuntimeConfig
from sd35.errors import CheckpointError, RequestError
from sd35.quantization.convert import quantize
from sd35.quantization.recipe import Recipe
from sd35.runtime.load import load_pipeline
from sd35.runtime.pipeline import Pipeline
from sd35.variants import variant_named

Precision = Literal["fp8", "bf16"]

log = logging.getLogger(__name__)


def load(
    checkpoint: str | Path = "demo",
    precision: Precision = "fp8",
    config: RuntimeConfig | None = None,
    variant: str | None = None,
) -> Pipeline:
    """Load a checkpoint (a path, or a name such as `demo`) in FP8 or bf16.

    `variant` names whose settings to use where the weights can't tell (`large-turbo`). A bf16 pipeline
    computes in float32 where the config says so.
    """
    folder = ready(checkpoint, precision)
    return load_pipeline(folder, config, variant_named(variant) if variant else None)


def ready(checkpoint: str | Path, precision: Precision) -> Path:
    """The folder that holds this checkpoint in this precision."""
    if precision not in get_args(Precision):
        raise RequestError(
            f"precision can't be {precision!r}: choose one of {', '.join(get_args(Precision))}."
        )
    folder = locate(checkpoint)
    if is_fp8(folder):
        if precision == "bf16":
            raise CheckpointError(
                f"{folder} is FP8, and what it lost can't come back: give the 16-bit folder."
            )
        return folder
    return folder if precision == "bf16" else _quantized_once(folder)


def is_fp8(folder: Path) -> bool:
    """Whether the folder's transformer declares FP8 layers."""
    with open_folder(folder).tensors("transformer") as reader:
        return bool(load_schemes(reader.metadata))


def _quantized_once(folder: Path) -> Path:
    recipe = Recipe()
    place = derived(identity(folder), f"{recipe.name}-{__version__}")
    if not place.exists():
        log.info("quantizing %s to FP8, once, into %s", folder, place)
        quantize(folder, place, recipe)
    return place
