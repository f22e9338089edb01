"""The process that draws: one batch at a time on the main thread, two small threads beside it.

One thread beats every second: a process that is stopped, or whose interpreter is held by a stuck library,
falls silent and is replaced. The other reads the pipe: a Cancel sets a flag that every step looks at, and the
end of the pipe means that the server is gone, so the process ends at once, whatever it is doing. An error
that nobody expected ends the process too: after a device fault nothing in it can be trusted, and the server
starts another.
"""

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Protocol

from sd35.errors import Sd35Error
from sd35.serving.messages import (
    Batch,
    Beat,
    Cancel,
    Died,
    Drawing,
    Drawn,
    FromWorker,
    Loaded,
    Loading,
    Preview,
    RawImage,
    Refused,
    Stepped,
    Stopped,
    Task,
)
from sd35.serving.problems import Problem
from sd35.serving.settings import Model

BEAT_S = 1.0
SERVER_GONE = 70  # exit code


class Cancelled(Exception):
    """The task in hand is not wanted any more."""


class OutOfMemoryError(Sd35Error):
    """The device has no room for this task."""

    code = Problem.OUT_OF_MEMORY.code


class Listener(Protocol):
    """Whom an engine tells how it goes; both may raise `Cancelled`, which the engine lets through."""

    def step(self, done: int, of: int) -> None:
        """`done` of `of` steps are over."""

    def preview(self, task: int, index: int, picture: int, image: RawImage) -> None:
        """The `index`th unfinished state of the `task`th task's `picture`th picture, all counted from 0."""


class Engine(Protocol):
    """Who draws in a worker."""

    def load(self, model: Model) -> tuple[str, str]:
        """Hold this model and no other; (identity, precision). Sd35Error where it can't be."""

    def fitting(self, tasks: Sequence[Task]) -> int:
        """How many of these, from the first on, the device has room to draw together: 1 at least."""

    def draw(self, tasks: Sequence[Task], listener: Listener) -> list[Drawing]:
        """Each task's pictures, all drawn as one batch; Sd35Error where they can't be."""


def serve_tasks(engine: Engine, connection: Connection) -> None:
    """Draw batches from the pipe until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the server decides
    post = _Post(connection)
    inbox: queue.SimpleQueue[Batch] = queue.SimpleQueue()
    unwanted: set[tuple[str, int]] = set()
    threading.Thread(target=_read, args=(connection, inbox, unwanted), daemon=True).start()
    threading.Thread(target=_beat, args=(post,), daemon=True).start()
    held: Model | None = None
    while True:
        tasks = inbox.get().tasks
        model = tasks[0].model
        try:
            if held != model:
                held = None
                _load(engine, model, post)
                held = model
            while tasks:
                count = engine.fitting(tasks)
                _draw(engine, tasks[:count], post, unwanted)
                tasks = tasks[count:]
        except Sd35Error as error:
            _refuse(tasks, error, post)
        except Exception as error:
            post.send(Died(f"{type(error).__name__}: {error}"))
            raise


def preview_steps(previews: int, steps: int) -> dict[int, int]:
    """Step -> the number of the preview that is due after it: evenly spread, none at the start or the end."""
    due = {(index + 1) * steps // (previews + 1): index for index in range(previews)}
    return {step: index for step, index in due.items() if 0 < step < steps}


def connection_from(argument: str) -> Connection:
    """The pipe whose number the server put on the command line."""
    return Connection(int(argument))


def _load(engine: Engine, model: Model, post: "_Post") -> None:
    post.send(Loading())
    begin = time.perf_counter()
    identity, precision = engine.load(model)
    post.send(Loaded(time.perf_counter() - begin, identity, precision))


def _draw(engine: Engine, tasks: tuple[Task, ...], post: "_Post", unwanted: set[tuple[str, int]]) -> None:
    """Draw tasks together and say of each how it ended."""
    listener = _BatchListener(tasks, post, unwanted)
    try:
        drawings = engine.draw(tasks, listener)
    except Cancelled:
        return
    except Sd35Error as error:
        if len(tasks) == 1:
            _refuse(tasks, error, post)
            return
        # One of them may be at fault, and the others must not suffer for it.
        for task in tasks:
            _draw(engine, (task,), post, unwanted)
        return
    for task, drawing in zip(tasks, drawings, strict=True):
        if task.job_id not in listener.stopped:
            post.send(Drawn(task.job_id, drawing))


def _refuse(tasks: Sequence[Task], error: Sd35Error, post: "_Post") -> None:
    for task in tasks:
        post.send(Refused(task.job_id, _code(error), str(error)))


def _code(error: Sd35Error) -> str:
    return error.code if isinstance(error, OutOfMemoryError) else Problem.MODEL_FAILED.code


class _Post:
    """The pipe's writing end, for two threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def send(self, message: FromWorker) -> None:
        try:
            with self._lock:
                self._connection.send(message)
        except OSError:
            os._exit(SERVER_GONE)


class _BatchListener:
    """Passes an engine's news on, and stops it where none of the tasks is wanted any more."""

    def __init__(self, tasks: Sequence[Task], post: _Post, unwanted: set[tuple[str, int]]) -> None:
        self._tasks, self._post, self._unwanted = tasks, post, unwanted
        self._jobs = tuple(task.job_id for task in tasks)
        self.stopped: set[str] = set()

    def step(self, done: int, of: int) -> None:
        self._post.send(Stepped(self._jobs, done, of))
        for task in self._tasks:
            if (task.job_id, task.token) in self._unwanted:
                self._unwanted.discard((task.job_id, task.token))
                self.stopped.add(task.job_id)
                self._post.send(Stopped(task.job_id))
        if len(self.stopped) == len(self._tasks):
            raise Cancelled

    def preview(self, task: int, index: int, picture: int, image: RawImage) -> None:
        self._post.send(Preview(self._jobs[task], index, picture, image))


def _read(connection: Connection, inbox: "queue.SimpleQueue[Batch]", unwanted: set[tuple[str, int]]) -> None:
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            sys.stderr.flush()
            os._exit(SERVER_GONE)
        if isinstance(message, Cancel):
            unwanted.add((message.job_id, message.token))
        else:
            inbox.put(message)


def _beat(post: _Post) -> None:
    pause = threading.Event()
    while not pause.wait(BEAT_S):
        post.send(Beat())
