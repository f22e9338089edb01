"""A server whose worker does what prompts tell it: wait, die, fall silent, draw badly. Run by
`start_server(rough=True)`.

"slow" takes half a minute, "steady" two seconds, "brief" a tenth of one, all with previews in their first
steps; "die" ends the process, "die once FILE" does so the first time; "stop" stops it as a debugger would;
"hang" makes no step; "memory" finds no room; "bug" raises what nobody expects. The model "tardy" takes three
seconds to load. "well" draws a picture that is none of these: "black"; "faulty", which is black unless drawn
in 16 bits; "faulty once FILE", which is black in the first process alone; "nan", whose latents are not
finite. With `--engine sd35` pictures are looked at, and the 16-bit witness is a rough worker as well.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from sd35.request import Picture
from sd35.serving.messages import Drawing, RawImage, Task
from sd35.serving.null_worker import NullEngine, flat
from sd35.serving.settings import Model
from sd35.serving.worker import Listener, OutOfMemoryError, connection_from, serve_tasks


class RoughEngine(NullEngine):
    """Obeys the prompt."""

    def __init__(self, precision: str) -> None:
        super().__init__()
        self._precision = precision

    def load(self, model: Model, tell: Callable[[float], None]) -> None:
        """The model "tardy" takes three seconds."""
        if model.name == "tardy":
            for tenth in range(1, 11):
                threading.Event().wait(0.3)
                tell(tenth / 10)
        super().load(model, tell)

    def draw(self, tasks: Sequence[Task], listener: Listener) -> list[Drawing]:
        """Behave as each task wants, then draw."""
        for place, task in enumerate(tasks):
            self._behave(place, task, listener)
        drawings = super().draw(tasks, listener)
        return [self._spoilt(task, drawing) for task, drawing in zip(tasks, drawings, strict=True)]

    def _behave(self, place: int, task: Task, listener: Listener) -> None:
        match _words(task):
            case ["slow" | "brief" | "steady" as pace, *_]:
                steps = {"slow": 1500, "steady": 100, "brief": 5}[pace]
                for done in range(1, steps):
                    listener.step(done, steps)
                    if done <= task.previews:
                        for number, picture in enumerate(task.pictures):
                            listener.preview(place, done - 1, number, flat(picture))
                    threading.Event().wait(0.02)
            case ["die", "once", file]:
                if not Path(file).exists():
                    Path(file).touch()
                    os._exit(3)
            case ["die"]:
                os.kill(os.getpid(), signal.SIGKILL)
            case ["stop"]:
                os.kill(os.getpid(), signal.SIGSTOP)
            case ["hang"]:
                threading.Event().wait()
            case ["memory"]:
                raise OutOfMemoryError("The device has no room.")
            case ["bug"]:
                raise ZeroDivisionError("a planted bug")

    def _spoilt(self, task: Task, drawing: Drawing) -> Drawing:
        words = _words(task)
        if words[0] not in ("well", "black", "faulty", "nan"):
            return drawing
        images = tuple(self._picture(picture, words) for picture in task.pictures)
        return replace(drawing, images=images, finite=(words[0] != "nan",) * len(images))

    def _picture(self, picture: Picture, words: list[str]) -> RawImage:
        match words:
            case ["black", *_] | ["nan"]:
                return black(picture)
            case ["faulty", "once", file]:
                is_first = not Path(file).exists() or Path(file).read_text() == str(os.getpid())
                Path(file).write_text(str(os.getpid()) if is_first else "another")
                return black(picture) if is_first else well(picture)
            case ["faulty"]:
                return well(picture) if self._precision == "16-bit" else black(picture)
        return well(picture)


def _words(task: Task) -> list[str]:
    return task.pictures[0].prompt.clip_l.split()


def black(picture: Picture) -> RawImage:
    """Nothing to see."""
    settings = picture.settings
    return RawImage(settings.width, settings.height, bytes(3 * settings.width * settings.height))


def well(picture: Picture) -> RawImage:
    """Soft stripes whose place depends on the seed."""
    settings, shift = picture.settings, picture.seed * 37
    row = bytes(
        abs((x * 5 + channel * 40 + shift) % 510 - 255) for x in range(settings.width) for channel in range(3)
    )
    return RawImage(settings.width, settings.height, row * settings.height)


def main() -> int:
    """As a server, or with a pipe's number at the end as its worker, after precision and device."""
    if len(sys.argv) in (3, 4) and sys.argv[-1].isdecimal():
        serve_tasks(lambda: RoughEngine(sys.argv[1]), connection_from(sys.argv[-1]))
    from sd35.cli import serve
    from sd35.cli.main import main as command

    serve.NULL_WORKER = serve.DRAW_WORKER = (sys.executable, __file__)
    return command(["serve", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
