"""The process that draws: one task at a time on the main thread, two small threads beside it.

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
from multiprocessing.connection import Connection
from typing import Protocol

from sd35.errors import Sd35Error
from sd35.serving.messages import (
    Beat,
    Cancel,
    Died,
    Drawing,
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
STEP_NEWS_S = 0.01  # progress that comes faster than this tells nobody anything
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

    def preview(self, index: int, image: RawImage) -> None:
        """An unfinished picture."""


class Engine(Protocol):
    """Who draws in a worker."""

    def load(self, model: Model) -> tuple[str, str]:
        """Hold this model and no other; (identity, precision). Sd35Error where it can't be."""

    def draw(self, task: Task, listener: Listener) -> Drawing:
        """The task's pictures; Sd35Error where they can't be."""


def serve_tasks(engine: Engine, connection: Connection) -> None:
    """Do tasks from the pipe until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the server decides
    post = _Post(connection)
    inbox: queue.SimpleQueue[Task] = queue.SimpleQueue()
    unwanted: set[tuple[str, int]] = set()
    threading.Thread(target=_read, args=(connection, inbox, unwanted), daemon=True).start()
    threading.Thread(target=_beat, args=(post,), daemon=True).start()
    held: Model | None = None
    while True:
        task = inbox.get()
        try:
            if held != task.model:
                held = None
                _load(engine, task.model, post)
                held = task.model
            post.send(engine.draw(task, _TaskListener(task, post, unwanted)))
        except Cancelled:
            post.send(Stopped())
        except Sd35Error as error:
            post.send(Refused(_code(error), str(error)))
        except Exception as error:
            post.send(Died(f"{type(error).__name__}: {error}"))
            raise


def connection_from(argument: str) -> Connection:
    """The pipe whose number the server put on the command line."""
    return Connection(int(argument))


def _load(engine: Engine, model: Model, post: "_Post") -> None:
    post.send(Loading())
    begin = time.perf_counter()
    identity, precision = engine.load(model)
    post.send(Loaded(time.perf_counter() - begin, identity, precision))


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


class _TaskListener:
    """Passes an engine's news on and stops it where the task is unwanted."""

    def __init__(self, task: Task, post: _Post, unwanted: set[tuple[str, int]]) -> None:
        self._name, self._post, self._unwanted = (task.job_id, task.token), post, unwanted
        self._told_at = -STEP_NEWS_S  # time.monotonic

    def step(self, done: int, of: int) -> None:
        now = time.monotonic()
        if done == of or now - self._told_at >= STEP_NEWS_S:
            self._post.send(Stepped(done, of))
            self._told_at = now
        if self._name in self._unwanted:
            self._unwanted.discard(self._name)
            raise Cancelled

    def preview(self, index: int, image: RawImage) -> None:
        self._post.send(Preview(index, image))


def _read(connection: Connection, inbox: "queue.SimpleQueue[Task]", unwanted: set[tuple[str, int]]) -> None:
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
