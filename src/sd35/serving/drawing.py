"""The engine that draws with a real pipeline; the only file of this room that knows torch, by `runtime`.

How a checkpoint becomes a pipeline is told from above: a server may be given one that has to be quantized
first, and quantization is not this room's business.
"""

import gc
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import psutil
import torch
from PIL import Image

from sd35.config import RuntimeConfig
from sd35.errors import DeviceError
from sd35.request import GenerationRequest, Picture, preview_steps
from sd35.runtime import facts
from sd35.runtime.budget import usable
from sd35.runtime.load import load_pipeline, needs_of, resolve
from sd35.runtime.memory import Work, peak
from sd35.runtime.pipeline import Pipeline
from sd35.runtime.previews import Previews
from sd35.runtime.sharing import Needs, SharedParts
from sd35.serving.messages import Drawing, RawImage, Task
from sd35.serving.settings import Model, Terms
from sd35.serving.uploads import read_upload
from sd35.serving.worker import Listener, OutOfMemoryError

Find = Callable[[Model], Path]


class PipelineEngine:
    """Holds pipelines on the device and in host memory, as a shelf says; `find` gives a model's place."""

    def __init__(self, find: Find, config: RuntimeConfig) -> None:
        self._find, self._config = find, config
        self._budget = config.vram_bytes
        self._shared = SharedParts()
        self._pipelines: dict[Model, Pipeline] = {}
        self._awake: set[Model] = set()
        self._needs: dict[Model, Needs] = {}

    def settle(self, terms: Terms) -> Terms:
        """The bounds of what models need: by default what is free on a card now, and half of the memory."""
        device = resolve(self._config).device
        vram = terms.vram_bytes
        if vram is None and device.type == "cuda":
            vram, _ = torch.cuda.mem_get_info(device)
        self._budget = vram
        ram = terms.ram_bytes
        if ram is None:
            ram = psutil.virtual_memory().total // 2
        return replace(terms, vram_bytes=None if vram is None else usable(vram), ram_bytes=ram)

    def need(self, models: Collection[Model]) -> int:
        """Bytes of all parts of these, each counted once, and of drawing with the greediest of them."""
        needs = [self._needs_of(model) for model in models]
        parts = {identity: size for need in needs for identity, size in need.parts.items()}
        return sum(parts.values()) + max((need.activations for need in needs), default=0)

    def load(self, model: Model, tell: Callable[[float], None]) -> None:
        """Load a model beside those that are awake, by the plan that there is room for."""
        config = replace(self._config, max_vram=self._left_for(model))
        try:
            pipeline = load_pipeline(
                self._find(model), config, model.variant, shared=self._shared, on_progress=tell
            )
        except torch.OutOfMemoryError as error:
            _free()
            raise OutOfMemoryError(
                f"The device has no room for {model.name}: choose a smaller one."
            ) from error
        pipeline.residence.before_change = lambda: self._part_from_sharers(model)
        self._pipelines[model] = pipeline
        self._awake.add(model)

    def rest(self, model: Model) -> None:
        """All but what others on the device have in common with it goes to host memory."""
        self._awake.discard(model)
        others = [self._pipelines[other] for other in self._awake]
        self._pipelines[model].rest([part for other in others for part in other.residence.parts()])

    def wake(self, model: Model) -> None:
        """Back to the device."""
        try:
            self._pipelines[model].wake()
        except torch.OutOfMemoryError as error:
            self.drop(model)
            raise OutOfMemoryError(
                f"The device has no room for {model.name}: choose a smaller one."
            ) from error
        self._awake.add(model)

    def drop(self, model: Model) -> None:
        """Let go of it; parts that nobody else has are gone."""
        self._awake.discard(model)
        self._pipelines.pop(model, None)
        _free()

    def held(self) -> list[Model]:
        """The models that there are pipelines of."""
        return list(self._pipelines)

    def facts(self, model: Model) -> tuple[str, str]:
        """The checkpoint's identity and the transformer's precision."""
        pipeline = self._pipelines[model]
        return pipeline.identity, facts.precision(pipeline)["transformer"]

    def is_cramped(self, task: Task) -> bool:
        """Whether its work is too much for the model's plan, beside the others that are awake."""
        residence = self._pipelines[task.model].residence
        residence.budget = self._left_for(task.model)
        return residence.needs_change(_work([task]))

    def fitting(self, tasks: Sequence[Task]) -> int:
        """As many as the plan that the model lives by has room for: a batch is not worth a slower plan."""
        pipeline = self._pipelines[tasks[0].model]
        count = len(tasks)
        while count > 1 and pipeline.residence.needs_change(_work(tasks[:count])):
            count -= 1
        return count

    def draw(self, tasks: Sequence[Task], listener: Listener) -> list[Drawing]:
        """Draw the tasks' pictures as one batch."""
        pipeline = self._pipelines[tasks[0].model]
        on_card = pipeline.device.type == "cuda"
        if on_card:
            torch.cuda.reset_peak_memory_stats(pipeline.device)
        pictures = [picture for task in tasks for picture in _begun(task)]
        try:
            generation = pipeline.draw(pictures, listener.step, _previews(tasks, listener))
        except torch.OutOfMemoryError as error:
            _free()
            raise OutOfMemoryError(_no_room(pictures)) from error
        except DeviceError as error:  # the runtime says itself what would fit
            raise OutOfMemoryError(str(error)) from error
        drawn, finite = iter(_raw(drawn.image) for drawn in generation.images), iter(generation.finite)
        memory = _memory(pipeline.device) if on_card else {}
        return [
            Drawing(
                tuple(islice(drawn, len(task.pictures))),
                generation.seconds,
                batch=len(pictures),
                finite=tuple(islice(finite, len(task.pictures))),
                **memory,
            )
            for task in tasks
        ]

    def _needs_of(self, model: Model) -> Needs:
        if model not in self._needs:
            self._needs[model] = needs_of(self._find(model), self._config, model.variant)
        pipeline = self._pipelines.get(model)
        if pipeline is None or not pipeline.residence.plan.moves:
            return self._needs[model]
        residence = pipeline.residence
        native = Work.of(GenerationRequest("").pictures(model.variant)[0].settings, images=1)
        return Needs({pipeline.identity: peak(residence.plan, residence.sizes, native)}, 0)

    def _left_for(self, model: Model) -> int | None:
        """What of the budget the others that are awake leave for all parts of this one."""
        if self._budget is None:
            return None
        others = {
            identity: size
            for other in self._awake - {model}
            for identity, size in self._needs_of(other).parts.items()
            if identity not in self._needs_of(model).parts
        }
        return max(1, self._budget - sum(others.values()))

    def _part_from_sharers(self, model: Model) -> None:
        """The model's parts are about to travel: whoever has one of them too must load its own again."""
        self._shared.forget()
        own = {id(part) for part in self._pipelines[model].residence.parts()}
        for other, pipeline in list(self._pipelines.items()):
            if other != model and any(id(part) in own for part in pipeline.residence.parts()):
                self.drop(other)


def _memory(device: torch.device) -> dict[str, int]:
    """What the batch took of the card, and what was left then: blocks that PyTorch keeps unused are free."""
    taken = facts.peak_memory_bytes(device)
    free, total = torch.cuda.mem_get_info(device)
    left = free + torch.cuda.memory_reserved(device) - taken
    return {"peak_vram_bytes": taken, "free_vram_bytes": left, "total_vram_bytes": total}


def _work(tasks: Sequence[Task]) -> Work:
    return Work.of(tasks[0].pictures[0].settings, sum(len(task.pictures) for task in tasks))


def _begun(task: Task) -> Sequence[Picture]:
    """The task's pictures with the image that they begin with; MissingError where it is gone."""
    if task.upload is None:
        return task.pictures
    image = read_upload(task.upload)
    return [replace(picture, image=image) for picture in task.pictures]


def _raw(image: Image.Image) -> RawImage:
    return RawImage(image.width, image.height, image.convert("RGB").tobytes())


def _previews(tasks: Sequence[Task], listener: Listener) -> Previews | None:
    """What the tasks together want to see; each is shown its own pictures after its own steps."""
    steps = tasks[0].pictures[0].settings.steps_run
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
