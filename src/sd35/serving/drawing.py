"""The engine that draws with a real pipeline; the only file of this room that knows torch, by `runtime`.

How a checkpoint becomes a pipeline is told from above: a server may be given one that has to be quantized
first, and quantization is not this room's business.
"""

import gc
from collections.abc import Callable, Sequence
from itertools import islice

import torch
from PIL import Image

from sd35.errors import DeviceError
from sd35.request import Picture
from sd35.runtime import facts
from sd35.runtime.memory import Work
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

    def fitting(self, tasks: Sequence[Task]) -> int:
        """As many as the plan that the model lives by has room for: a batch is not worth a slower plan."""
        pipeline = self._held()
        count = len(tasks)
        while count > 1 and pipeline.residence.needs_change(_work(tasks[:count])):
            count -= 1
        return count

    def draw(self, tasks: Sequence[Task], listener: Listener) -> list[Drawing]:
        """Draw the tasks' pictures as one batch."""
        pipeline = self._held()
        on_card = pipeline.device.type == "cuda"
        if on_card:
            torch.cuda.reset_peak_memory_stats(pipeline.device)
        pictures = [picture for task in tasks for picture in task.pictures]
        try:
            generation = pipeline.draw(pictures, listener.step, _previews(tasks, listener))
        except torch.OutOfMemoryError as error:
            _free()
            raise OutOfMemoryError(_no_room(pictures)) from error
        except DeviceError as error:  # the runtime says itself what would fit
            raise OutOfMemoryError(str(error)) from error
        peak = facts.peak_memory_bytes(pipeline.device) if on_card else None
        drawn = iter(_raw(drawn.image) for drawn in generation.images)
        return [
            Drawing(tuple(islice(drawn, len(task.pictures))), generation.seconds, peak, len(pictures))
            for task in tasks
        ]

    def _held(self) -> Pipeline:
        assert self._pipeline is not None, "a worker loads before it draws"
        return self._pipeline


def _work(tasks: Sequence[Task]) -> Work:
    return Work.of(tasks[0].pictures[0].settings, sum(len(task.pictures) for task in tasks))


def _raw(image: Image.Image) -> RawImage:
    return RawImage(image.width, image.height, image.convert("RGB").tobytes())


def _previews(tasks: Sequence[Task], listener: Listener) -> Previews | None:
    """What the tasks together want to see; each is shown its own pictures after its own steps."""
    steps = tasks[0].pictures[0].settings.num_inference_steps
    due = [preview_steps(task.previews, steps) for task in tasks]
    if not any(due):
        return None

    def show(done: int, rows: torch.Tensor) -> None:
        left = iter(rows)
        for place, task in enumerate(tasks):
            own = list(islice(left, len(task.pictures)))
            if done in due[place]:
                for number, row in enumerate(own):
                    height, width, _ = row.shape
                    raw = RawImage(width, height, row.numpy().tobytes())
                    listener.preview(place, due[place][done], number, raw)

    return Previews(frozenset().union(*due), show)


def _no_room(pictures: Sequence[Picture]) -> str:
    settings = pictures[0].settings
    return (
        f"The device has no room for {len(pictures)} picture(s) of {settings.width} x {settings.height}: ask "
        "for fewer or smaller ones."
    )


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
