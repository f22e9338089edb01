"""The worker process of `sd35 serve`: `python -m sd35.cli.draw_worker PRECISION DEVICE PIPE`.

It stands at the top of the house because it joins two rooms that don't know each other: serving, which hands
out tasks, and quantization, which makes the FP8 folder of a 16-bit checkpoint on first use. Torch is imported
when the first model is loaded, so that the worker answers before.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sd35.serving.messages import Drawing, Task
from sd35.serving.settings import Model
from sd35.serving.worker import Engine, Listener, connection_from, serve_tasks

if TYPE_CHECKING:
    from sd35.quantization.ready import Precision
    from sd35.runtime.pipeline import Pipeline


class LazyEngine:
    """Becomes a `PipelineEngine` with the first model."""

    def __init__(self, precision: "Precision", device: str) -> None:
        self._precision, self._device = precision, device
        self._engine: Engine | None = None

    def load(self, model: Model) -> tuple[str, str]:
        """Hold this model."""
        if self._engine is None:
            from sd35.serving.drawing import PipelineEngine

            self._engine = PipelineEngine(self._pipeline)
        return self._engine.load(model)

    def fitting(self, tasks: Sequence[Task]) -> int:
        """How many of these can be drawn together."""
        assert self._engine is not None, "a worker loads before it draws"
        return self._engine.fitting(tasks)

    def draw(self, tasks: Sequence[Task], listener: Listener) -> list[Drawing]:
        """The tasks' pictures."""
        assert self._engine is not None, "a worker loads before it draws"
        return self._engine.draw(tasks, listener)

    def _pipeline(self, model: Model) -> "Pipeline":
        from sd35.config import RuntimeConfig
        from sd35.quantization.ready import load

        config = RuntimeConfig(device=self._device)
        return load(model.checkpoint, self._precision, config, model.variant.name)


def main(precision: "Precision", device: str, pipe: str) -> None:
    """Serve tasks from the pipe."""
    serve_tasks(LazyEngine(precision, device), connection_from(pipe))


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
