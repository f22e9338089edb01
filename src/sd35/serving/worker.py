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
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Protocol

from sd35.errors import Sd35Error
from sd35.serving.messages import (
    Batch,
    BatchDrawn,
    Beat,
    Cancel,
    Died,
    Drawing,
    Drawn,
    FromWorker,
    Holding,
    Holdings,
    Load,
    Loaded,
    Loading,
    Managed,
    Preview,
    RawImage,
    Refused,
    Stepped,
    Stopped,
    Task,
    Unload,
)
from sd35.serving.problems import Problem
from sd35.serving.settings import Model, Terms
from sd35.serving.shelf import Holder, Shelf

BEAT_S = 1.0
STEP_NEWS_S = 0.01  # progress that comes faster than this tells nobody anything
SERVER_GONE = 70  # exit code


Order = Batch | Load | Unload


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


class Engine(Holder, Protocol):
    """Who draws in a worker, with the models that its shelf has it hold."""

    def settle(self, terms: Terms) -> Terms:
        """Begin with these terms; what they leave open is filled in, as far as the machine tells."""

    def facts(self, model: Model) -> tuple[str, str]:
        """(identity, precision) of a model that is held."""

    def held(self) -> list[Model]:
        """What is on the device or in host memory."""

    def is_cramped(self, task: Task) -> bool:
        """Whether the task's model would have to live by a smaller plan, for want of room beside others."""

    def fitting(self, tasks: Sequence[Task]) -> int:
        """How many of these, from the first on, the device has room to draw together: 1 at least."""

    def draw(self, tasks: Sequence[Task], listener: Listener) -> list[Drawing]:
        """Each task's pictures, all drawn as one batch; Sd35Error where they can't be."""


def serve_tasks(make_engine: Callable[[], Engine], connection: Connection) -> None:
    """Do what comes from the pipe until it ends; the engine is made when it is first needed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the server decides
    post = _Post(connection)
    inbox: queue.SimpleQueue[Order | Terms] = queue.SimpleQueue()
    unwanted: set[tuple[str, int]] = set()
    threading.Thread(target=_read, args=(connection, inbox, unwanted), daemon=True).start()
    threading.Thread(target=_beat, args=(post,), daemon=True).start()
    terms = inbox.get()
    assert isinstance(terms, Terms), "a worker is told its terms first"
    desk: _Desk | None = None
    while True:
        try:
            order = inbox.get(timeout=desk.tend() if desk else None)
        except queue.Empty:
            continue
        assert not isinstance(order, Terms)
        try:
            if desk is None and not isinstance(order, Unload):
                # Making the engine takes seconds of imports.
                post.send(Loading(_model_of(order).name, 0.0))
            desk = desk or _Desk(make_engine(), post, unwanted, terms)
            desk.do(order)
        except Exception as error:
            post.send(Died(f"{type(error).__name__}: {error}"))
            raise


def _model_of(order: Batch | Load) -> Model:
    return order.tasks[0].model if isinstance(order, Batch) else order.model


def connection_from(argument: str) -> Connection:
    """The pipe whose number the server put on the command line."""
    return Connection(int(argument))


class _Desk:
    """Does one order after the other, with the models that its shelf holds."""

    def __init__(self, engine: Engine, post: "_Post", unwanted: set[tuple[str, int]], terms: Terms) -> None:
        self._engine, self._post, self._unwanted = engine, post, unwanted
        self._shelf = Shelf(engine, engine.settle(terms))
        self._told: tuple[Holding, ...] = ()

    def tend(self) -> float | None:
        """Put idle models away; seconds until that may be due again."""
        pause = self._shelf.tend()
        self._tell_holdings()
        return pause

    def do(self, order: "Order") -> None:
        """Draw, load or unload."""
        match order:
            case Batch(tasks):
                try:
                    self._have(tasks[0].model)
                except Sd35Error as error:
                    _refuse(tasks, error, self._post)
                    return
                self._draw_all(tasks)
            case Load(model):
                try:
                    self._have(model)
                except Sd35Error as error:
                    self._post.send(Managed(str(error)))
                    return
                self._post.send(Managed())
            case Unload(model):
                self._shelf.unload(model)
                self._tell_holdings()
                self._post.send(Managed())

    def _have(self, model: Model) -> None:
        begin, is_held = time.perf_counter(), self._shelf.is_held(model)
        if not self._shelf.is_awake(model):
            self._post.send(Loading(model.name, 0.0))
        try:
            self._shelf.have(model, lambda share: self._post.send(Loading(model.name, share)))
        finally:
            self._tell_holdings()
        seconds = 0.0 if is_held else time.perf_counter() - begin
        self._post.send(Loaded(seconds, *self._engine.facts(model), model.name))

    def _draw_all(self, tasks: tuple[Task, ...]) -> None:
        model = tasks[0].model
        while tasks:
            while self._engine.is_cramped(tasks[0]) and self._shelf.make_way(model):
                pass
            count = self._engine.fitting(tasks)
            self._draw(tasks[:count])
            tasks = tasks[count:]
        # A batch may have been more than the device had room for beside other models.
        self._shelf.forget_strangers(self._engine.held())

    def _draw(self, tasks: tuple[Task, ...]) -> None:
        """Draw tasks together and say of each how it ended."""
        listener = _BatchListener(tasks, self._post, self._unwanted)
        try:
            drawings = self._engine.draw(tasks, listener)
        except Cancelled:
            return
        except Sd35Error as error:
            if len(tasks) == 1:
                _refuse(tasks, error, self._post)
                return
            # One of them may be at fault, and the others must not suffer for it.
            for task in tasks:
                if task.job_id not in listener.stopped:
                    self._draw((task,))
            return
        finally:
            self._shelf.touch(tasks[0].model)
        any_of = drawings[0]  # what they tell of the batch, all tell
        self._post.send(BatchDrawn(any_of.batch, any_of.free_vram_bytes, any_of.total_vram_bytes))
        for task, drawing in zip(tasks, drawings, strict=True):
            if task.job_id not in listener.stopped:
                self._post.send(Drawn(task.job_id, drawing))

    def _tell_holdings(self) -> None:
        holdings = self._shelf.holdings()
        if [(one.name, one.place) for one in holdings] != [(one.name, one.place) for one in self._told]:
            self._told = holdings
            self._post.send(Holdings(holdings))


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
        self._told_at = -STEP_NEWS_S  # time.monotonic
        self.stopped: set[str] = set()

    def step(self, done: int, of: int) -> None:
        now = time.monotonic()
        if done == of or now - self._told_at >= STEP_NEWS_S:
            self._post.send(Stepped(self._jobs, done, of))
            self._told_at = now
        for task in self._tasks:
            if (task.job_id, task.token) in self._unwanted:
                self._unwanted.discard((task.job_id, task.token))
                self.stopped.add(task.job_id)
                self._post.send(Stopped(task.job_id))
        if len(self.stopped) == len(self._tasks):
            raise Cancelled

    def preview(self, task: int, index: int, picture: int, image: RawImage) -> None:
        self._post.send(Preview(self._jobs[task], index, picture, image))


def _read(
    connection: Connection, inbox: "queue.SimpleQueue[Order | Terms]", unwanted: set[tuple[str, int]]
) -> None:
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
