"""The engine that draws with a real pipeline; the only file of this room that knows torch, by `runtime`.

How a checkpoint becomes a pipeline is told from above: a server may be given one that has to be quantized
first, and quantization is not this room's business.
"""

import gc
from collections.abc import Callable
from dataclasses import replace

import torch

from sd35.errors import DeviceError
from sd35.runtime import facts
from sd35.runtime.pipeline import Pipeline
from sd35.runtime.previews import Previews
from sd35.serving.messages import Drawing, RawImage, Task
from sd35.serving.settings import Model
from sd35.serving.worker import Listener, OutOfMemoryError, preview_steps

Load = Callable[[Model], Pipeline]


class PipelineEngine:
    """Holds one pipeline at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._pipeline: Pipeline | None = None

    def load(self, model: Model) -> tuple[str, str]:
        """Let the held pipeline go, then load this one; identity of the checkpoint, precision."""
        self._pipeline = None
        _free()
        try:
            self._pipeline = self._load(model)
        except torch.OutOfMemoryError as error:
            _free()
            raise OutOfMemoryError(
                f"The device has no room for {model.name}: choose a smaller one."
            ) from error
        return self._pipeline.identity, facts.precision(self._pipeline)["transformer"]

    def draw(self, task: Task, listener: Listener) -> Drawing:
        """Draw a task's pictures as one batch."""
        pipeline = self._pipeline
        assert pipeline is not None, "a worker loads before it draws"
        on_card = pipeline.device.type == "cuda"
        if on_card:
            torch.cuda.reset_peak_memory_stats(pipeline.device)
        try:
            generation = pipeline.draw(task.pictures, listener.step, _previews(task, listener))
        except torch.OutOfMemoryError as error:
            _free()
            raise OutOfMemoryError(_no_room(task)) from error
        except DeviceError as error:  # the runtime says itself what would fit
            raise OutOfMemoryError(str(error)) from error
        images = tuple(
            RawImage(drawn.image.width, drawn.image.height, drawn.image.convert("RGB").tobytes())
            for drawn in generation.images
        )
        drawing = Drawing(images, generation.seconds, finite=generation.finite)
        return _with_memory(drawing, pipeline.device) if on_card else drawing


def _with_memory(drawing: Drawing, device: torch.device) -> Drawing:
    """What the task took of the card, and what was left then: blocks that PyTorch keeps unused are free."""
    peak = facts.peak_memory_bytes(device)
    free, total = torch.cuda.mem_get_info(device)
    left = free + torch.cuda.memory_reserved(device) - peak
    return replace(drawing, peak_vram_bytes=peak, free_vram_bytes=left, total_vram_bytes=total)


def _previews(task: Task, listener: Listener) -> Previews | None:
    if not task.previews:
        return None
    due = preview_steps(task.previews, task.pictures[0].settings.num_inference_steps)

    def show(done: int, pictures: torch.Tensor) -> None:
        for number, picture in enumerate(pictures):
            height, width, _ = picture.shape
            listener.preview(due[done], number, RawImage(width, height, picture.numpy().tobytes()))

    return Previews(frozenset(due), show)


def _no_room(task: Task) -> str:
    settings = task.pictures[0].settings
    count = len(task.pictures)
    return (
        f"The device has no room for {count} picture(s) of {settings.width} x {settings.height}: ask for "
        "fewer or smaller ones."
    )


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
