"""The models that one worker holds: on the device, in host memory, or not at all.

    on disk --load--> vram --rest--> ram --drop--> on disk
                       ^------wake----+

A model is wanted when a batch for it comes, or when somebody asks for it beforehand. What is in its way moves
down, the least recently used first, and pinned models never. Two clocks move the others down as well: nobody
asked for `rest_s`, it leaves the device; nobody asked for `drop_s`, it leaves the memory. Room is counted by
the engine, which knows what models share. A worker draws one batch at a time, and only between two of them
does a model move, so what is in use is never in the way.

Where a model does not fit though all others have gone, the engine loads it by a smaller memory plan.
"""

import time
from collections.abc import Callable, Collection
from typing import Protocol

from sd35.serving.messages import Holding
from sd35.serving.settings import Model, Terms


class Holder(Protocol):
    """Who moves the models: an engine."""

    def need(self, models: Collection[Model]) -> int:
        """Bytes that these take on the device together, with what drawing needs; shared parts count once."""

    def load(self, model: Model, tell: Callable[[float], None]) -> object:
        """Bring a model from the disk to the device; `tell` hears the share that is done."""

    def rest(self, model: Model) -> None:
        """From the device to host memory."""

    def wake(self, model: Model) -> None:
        """From host memory to the device."""

    def drop(self, model: Model) -> None:
        """Forget a model, wherever it is."""


class Shelf:
    """Decides what is where; the least recently used come first in both rows."""

    def __init__(self, holder: Holder, terms: Terms, clock: Callable[[], float] = time.monotonic) -> None:
        self._holder, self._terms, self._clock = holder, terms, clock
        self._awake: dict[Model, float] = {}  # and when it was wanted last
        self._resting: dict[Model, float] = {}

    def is_awake(self, model: Model) -> bool:
        """Whether a batch could begin at once."""
        return model in self._awake

    def is_held(self, model: Model) -> bool:
        """Whether it need not be read from the disk."""
        return model in self._awake or model in self._resting

    def have(self, model: Model, tell: Callable[[float], None]) -> None:
        """Bring a model to the device, whatever has to make room; what the holder raises goes through."""
        if model not in self._awake:
            self._make_room(model)
            if self._resting.pop(model, None) is not None:
                self._holder.wake(model)
            else:
                self._holder.load(model, tell)
        self.touch(model)

    def touch(self, model: Model) -> None:
        """It was wanted just now."""
        self._awake.pop(model, None)
        self._awake[model] = self._clock()

    def make_way(self, model: Model) -> bool:
        """Have another model leave the device; False if none may."""
        victim = self._oldest({other: used for other, used in self._awake.items() if other != model})
        if victim is not None:
            self._rest(victim)
        return victim is not None

    def unload(self, model: Model) -> None:
        """Forget a model; nothing happens if it isn't held."""
        if self.is_held(model):
            self._awake.pop(model, None)
            self._resting.pop(model, None)
            self._holder.drop(model)

    def forget_strangers(self, held: Collection[Model]) -> None:
        """The holder let go of all but these itself."""
        for row in (self._awake, self._resting):
            for model in [model for model in row if model not in held]:
                del row[model]

    def tend(self) -> float | None:
        """Move down what nobody asked for; seconds until the next is due, None if none will be."""
        now, terms, due = self._clock(), self._terms, []
        for row, limit, move in (
            (self._awake, terms.rest_s, self._rest),
            (self._resting, terms.drop_s, self.unload),
        ):
            for model, used in list(row.items()):
                if not limit or model.name in terms.pinned:
                    continue
                if now - used >= limit:
                    move(model)
                else:
                    due.append(used + limit - now)
        return min(due, default=None)

    def holdings(self) -> tuple[Holding, ...]:
        """What is where, for others."""
        now = self._clock()
        rows = (("vram", self._awake), ("ram", self._resting))
        return tuple(
            Holding(model.name, place, self._holder.need([model]), time.time() - (now - used))
            for place, row in rows
            for model, used in row.items()
        )

    def _make_room(self, model: Model) -> None:
        budget = self._terms.vram_bytes
        while budget is not None and self._holder.need([*self._awake, model]) > budget:
            victim = self._oldest(self._awake)
            if victim is None:
                return
            self._rest(victim)

    def _rest(self, model: Model) -> None:
        """To host memory, where the longest resting make room; those that don't fit at all are dropped."""
        used = self._awake.pop(model)
        self._resting[model] = used
        self._holder.rest(model)
        budget = self._terms.ram_bytes
        while budget is not None and self._holder.need([*self._resting]) > budget:
            victim = self._oldest(self._resting)
            if victim is None:
                return
            self.unload(victim)

    def _oldest(self, row: dict[Model, float]) -> Model | None:
        free = [model for model in row if model.name not in self._terms.pinned]
        return min(free, key=lambda model: row[model], default=None)
