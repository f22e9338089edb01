"""A worker without a model: it says all that a real one says and draws flat colours, at once.

`sd35 serve --engine null` measures the server itself with it. `python -m sd35.serving.null_worker PIPE`.
"""

import hashlib
import sys
from collections.abc import Sequence

from sd35.request import Picture
from sd35.serving.messages import Drawing, RawImage, Task
from sd35.serving.settings import Model
from sd35.serving.worker import Listener, connection_from, preview_steps, serve_tasks


class NullEngine:
    """An engine whose pictures have one colour, made of prompt and seed."""

    def load(self, model: Model) -> tuple[str, str]:
        """Nothing to hold."""
        return "null", "null"

    def fitting(self, tasks: Sequence[Task]) -> int:
        """There is room for any number."""
        return len(tasks)

    def draw(self, tasks: Sequence[Task], listener: Listener) -> list[Drawing]:
        """As many steps as were asked for, none of which does anything."""
        steps = tasks[0].pictures[0].settings.num_inference_steps
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
    serve_tasks(NullEngine(), connection_from(sys.argv[1]))
