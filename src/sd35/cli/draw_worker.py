"""The worker process of `sd35 serve`: `python -m sd35.cli.draw_worker PRECISION DEVICE PIPE`.

It stands at the top of the house because it joins two rooms that don't know each other: serving, which hands
out tasks, and quantization, which makes the FP8 folder of a 16-bit checkpoint on first use. Torch is imported
when the first model is wanted, so that the worker answers before.
"""

import sys
from typing import TYPE_CHECKING, Literal

from sd35.serving.worker import Engine, connection_from, serve_tasks

Witness = Literal["16-bit"]  # the second opinion on a picture that came out wrong in FP8

if TYPE_CHECKING:
    from sd35.config import Precision


def engine(precision: "Precision | Witness", device: str) -> Engine:
    """An engine that draws with the checkpoints in this precision.

    The witness takes them as they are and multiplies in 16 bits, whatever they hold.
    """
    from sd35.checkpoints.store import locate
    from sd35.config import RuntimeConfig
    from sd35.quantization.ready import ready
    from sd35.serving.drawing import PipelineEngine

    if precision == "16-bit":
        config = RuntimeConfig(device=device, activations="16bit")
        return PipelineEngine(lambda model: locate(model.checkpoint), config)
    return PipelineEngine(lambda model: ready(model.checkpoint, precision), RuntimeConfig(device=device))


def main(precision: "Precision | Witness", device: str, pipe: str) -> None:
    """Do what comes from the pipe."""
    serve_tasks(lambda: engine(precision, device), connection_from(pipe))


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
