"""A worker without a model: it says all that a real one says and draws flat colours, at once.

`sd35 serve --engine null` measures the server itself with it.

    python -m sd35.serving.null_worker DEVICE PIPE
"""

import hashlib
import sys
from collections.abc import Callable, Collection, Sequence

from sd35.request import Picture, preview_steps
from sd35.serving.messages import Drawing, RawImage, Task
from sd35.serving.settings import Model, Terms
from sd35.serving.worker import Listener, connection_from, serve_tasks

NULL_BYTES = 1_000_000


class NullEngine:
    """An engine whose pictures have one colour, made of prompt and seed."""

    def __init__(self) -> None:
        self._models: list[Model] = []

    def settle(self, terms: Terms) -> Terms:
        """As they are."""
        return terms

    def need(self, models: Collection[Model]) -> int:
        """As if each model were one megabyte."""
        return NULL_BYTES * len(models)

    def load(self, model: Model, tell: Callable[[float], None]) -> None:
        """There is nothing to read."""
        self._models.append(model)

    def rest(self, model: Model) -> None:
        """Nothing moves."""

    def wake(self, model: Model) -> None:
        """Nothing moves."""

    def drop(self, model: Model) -> None:
        """Forget it."""
        self._models.remove(model)

    def held(self) -> list[Model]:
        """What was loaded and not dropped."""
        return self._models

    def facts(self, model: Model) -> tuple[str, str]:
        """There are none."""
        return "null", "null"

    def is_cramped(self, task: Task) -> bool:
        """Never."""
        return False

    def fitting(self, tasks: Sequence[Task]) -> int:
        """There is room for any number."""
        return len(tasks)

    def draw(self, tasks: Sequence[Task], listener: Listener) -> list[Drawing]:
        """As many steps as were asked for, none of which does anything."""
        steps = tasks[0].pictures[0].settings.steps_run
        for done in range(1, steps + 1):
            listener.step(done, steps)
            for place, task in enumerate(tasks):
                due = preview_steps(task.previews, steps)
                if done in due:
                    for number, picture in enumerate(task.pictures):
                        listener.preview(place, due[done], number, flat(picture))
        count = sum(len(task.pictures) for task in tasks)
        return [
            Drawing(tuple(flat(picture) for picture in task.pictures), {"denoise": 0.0}, batch=count)
            for task in tasks
        ]


def flat(picture: Picture) -> RawImage:
    """One colour, all over."""
    colour = hashlib.sha256(f"{picture.prompt.clip_l} {picture.seed}".encode()).digest()[:3]
    settings = picture.settings
    return RawImage(settings.width, settings.height, colour * (settings.width * settings.height))


if __name__ == "__main__":
    serve_tasks(NullEngine, connection_from(sys.argv[-1]))
