"""A server whose worker does what prompts tell it: wait, die, fall silent. Run by `start_server(rough=True)`.

"slow" takes half a minute, "steady" two seconds, "brief" a tenth of one; "die" ends the process, "die once
FILE" does so the first time; "stop" stops it as a debugger would; "hang" makes no step; "memory" finds no
room; "bug" raises what nobody expects. The model "tardy" takes three seconds to load.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from sd35.serving.messages import Drawing, Task
from sd35.serving.null_worker import NullEngine
from sd35.serving.settings import Model
from sd35.serving.worker import Listener, OutOfMemoryError, connection_from, serve_tasks


class RoughEngine(NullEngine):
    """Obeys the prompt."""

    def load(self, model: Model, tell: Callable[[float], None]) -> None:
        """The model "tardy" takes three seconds."""
        if model.name == "tardy":
            for tenth in range(1, 11):
                threading.Event().wait(0.3)
                tell(tenth / 10)
        super().load(model, tell)

    def draw(self, tasks: Sequence[Task], listener: Listener) -> list[Drawing]:
        """Behave as each task wants, then draw."""
        for task in tasks:
            self._behave(task.pictures[0].prompt.clip_l.split(), listener)
        return super().draw(tasks, listener)

    def _behave(self, words: list[str], listener: Listener) -> None:
        match words:
            case ["slow" | "brief" | "steady" as pace, *_]:
                steps = {"slow": 1500, "steady": 100, "brief": 5}[pace]
                for done in range(1, steps):
                    listener.step(done, steps)
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


def main() -> int:
    """As a server, or with a pipe's number as its worker."""
    if len(sys.argv) == 3 and sys.argv[2].isdecimal():
        serve_tasks(RoughEngine, connection_from(sys.argv[-1]))
    from sd35.cli import serve
    from sd35.cli.main import main as command

    serve.NULL_WORKER = (sys.executable, __file__)
    return command(["serve", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
