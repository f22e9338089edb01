"""A checkpoint in the precision that is asked for, made on the spot if need be, and loaded.

The bundled demo model ships in 16 bit, and so do Stability's own folders. Whoever asks for FP8 of such a
folder gets it quantized once, by the default recipe, into a folder under SD35_HOME; the next call finds it.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from sd35 import __version__
from sd35.checkpoints.formats import open_checkpoint
from sd35.checkpoints.placing import BeingMadeError
from sd35.checkpoints.store import derived, home, locate
from sd35.config import Precision, RuntimeConfig
from sd35.errors import CheckpointError, OutputError, RequestError
from sd35.quantization.convert import quantize
from sd35.quantization.recipe import Recipe
from sd35.runtime.load import identity_of, load_pipeline
from sd35.runtime.pipeline import Pipeline
from sd35.variants import variant_named

PAUSE = 1.0  # seconds between two looks at what another process makes


log = logging.getLogger(__name__)


def load(
    checkpoint: str | Path = "demo",
    precision: Precision = "fp8",
    config: RuntimeConfig | None = None,
    variant: str | None = None,
    components: str | Path | None = None,
    encoder_files: Sequence[Path] = (),
) -> Pipeline:
    """Load a checkpoint (a path, or a name such as `demo`) in FP8 or bf16.

    `variant` names whose settings to use where the weights can't tell (`large-turbo`); `components` is the
    folder with the configs, tokenizers and encoders that a single file lacks; `encoder_files` are text
    encoders in files of their own (clip_l, clip_g, t5xxl), which are told apart by their contents. A bf16
    pipeline computes in float32 where the config says so.
    """
    beside = locate(components) if components else None
    place = ready(checkpoint, precision, beside, encoder_files)
    known = variant_named(variant) if variant else None
    if place.is_dir():  # a folder, or one that was made of all of these
        return load_pipeline(place, config, known)
    return load_pipeline(place, config, known, beside, encoder_files)


def load_in_16_bits(checkpoint: str | Path, config: RuntimeConfig, variant: str | None = None) -> Pipeline:
    """Load a checkpoint to draw without any FP8 product, as a second opinion on what FP8 draws.

    From 16-bit files as they are. FP8 files have lost what they have lost: their weights are restored to
    16 bits for each product, and nothing else is rounded.
    """
    precision: Precision = "fp8" if is_fp8(locate(checkpoint)) else "bf16"
    return load(checkpoint, precision, replace(config, activations="16bit"), variant)


def ready(
    checkpoint: str | Path,
    precision: Precision,
    components: Path | None = None,
    encoder_files: Sequence[Path] = (),
) -> Path:
    """The folder or single file that holds this checkpoint in this precision."""
    if precision not in get_args(Precision):
        raise RequestError(
            f"precision can't be {precision!r}: choose one of {', '.join(get_args(Precision))}."
        )
    place = locate(checkpoint)
    if is_fp8(place, components, encoder_files):
        if precision == "bf16":
            raise CheckpointError(
                f"{place} is FP8, and what it lost can't come back: give the 16-bit folder or file."
            )
        return place
    return place if precision == "bf16" else _quantized_once(place, components, encoder_files)


def is_fp8(path: Path, components: Path | None = None, encoder_files: Sequence[Path] = ()) -> bool:
    """Whether the transformer at this path has FP8 layers."""
    with open_checkpoint(path, components, encoder_files).tensors("transformer") as source:
        return bool(source.schemes)


def _quantized_once(source: Path, components: Path | None, encoder_files: Sequence[Path]) -> Path:
    recipe = Recipe()
    identity = identity_of(open_checkpoint(source, components, encoder_files))
    place = derived(identity, f"{recipe.name}-{__version__}")
    if not place.exists():
        log.info("quantizing %s to FP8, once, into %s", source, place)
    while not place.exists():
        try:
            # Both folders are ours then: encoders and VAE, 11 GB of Large, need not be there twice.
            quantize(
                source, place, recipe, components, resume=True, encoder_files=encoder_files, link_below=home()
            )
        except BeingMadeError:
            time.sleep(PAUSE)  # what the other process makes is what is wanted here
        except OutputError:
            if not place.exists():  # made between the look and the work
                raise
    return place
