"""The worker process of `sd35 serve`: `python -m sd35.cli.draw_worker PRECISION DEVICE PIPE`.

It stands at the top of the house because it joins two rooms that don't know each other: serving, which hands
out tasks, and quantization, which makes the FP8 folder of a 16-bit checkpoint on first use. Torch is imported
when the first model is loaded, so that the worker answers before.
"""

import sys
from typing import TYPE_CHECKING, Literal

from sd35.serving.messages import Drawing, Task
from sd35.serving.settings import Model
from sd35.serving.worker import Engine, Listener, connection_from, serve_tasks

Witness = Literal["16-bit"]  # the second opinion on a picture that came out wrong in FP8

if TYPE_CHECKING:
    from sd35.quantization.ready import Precision
    from sd35.runtime.pipeline import Pipeline


class LazyEngine:
    """Becomes a `PipelineEngine` with the first model."""

    def __init__(self, precision: "Precision | Witness", device: str) -> None:
        self._precision, self._device = precision, device
        self._engine: Engine | None = None

    def load(self, model: Model) -> tuple[str, str]:
        """Hold this model."""
        if self._engine is None:
            from sd35.serving.drawing import PipelineEngine

            self._engine = PipelineEngine(self._pipeline)
        return self._engine.load(model)

    def draw(self, task: Task, listener: Listener) -> Drawing:
        """The task's pictures."""
        assert self._engine is not None, "a worker loads before it draws"
        return self._engine.draw(task, listener)

    def _pipeline(self, model: Model) -> "Pipeline":
        from sd35.config import RuntimeConfig
        from sd35.quantization.ready import load, load_in_16_bits

        config = RuntimeConfig(device=self._device)
        if self._precision == "16-bit":
            return load_in_16_bits(model.checkpoint, config, model.variant.name)
        return load(model.checkpoint, self._precision, config, model.variant.name)


def main(precision: "Precision | Witness", device: str, pipe: str) -> None:
    """Serve tasks from the pipe."""
    serve_tasks(LazyEngine(precision, device), connection_from(pipe))


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
