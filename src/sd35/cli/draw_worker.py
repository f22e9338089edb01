"""The worker process of `sd35 serve`: `python -m sd35.cli.draw_worker PRECISION DEVICE PIPE`.

It stands at the top of the house because it joins two rooms that don't know each other: serving, which hands
out tasks, and quantization, which makes the FP8 folder of a 16-bit checkpoint on first use. Torch is imported
when the first model is wanted, so that the worker answers before.
"""

import sys
from typing import TYPE_CHECKING

from sd35.serving.worker import Engine, connection_from, serve_tasks

if TYPE_CHECKING:
    from sd35.quantization.ready import Precision


def engine(precision: "Precision", device: str) -> Engine:
    """An engine that draws with the checkpoints in this precision."""
    from sd35.config import RuntimeConfig
    from sd35.quantization.ready import ready
    from sd35.serving.drawing import PipelineEngine

    return PipelineEngine(lambda model: ready(model.checkpoint, precision), RuntimeConfig(device=device))


def main(precision: "Precision", device: str, pipe: str) -> None:
    """Do what comes from the pipe."""
    serve_tasks(lambda: engine(precision, device), connection_from(pipe))


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
