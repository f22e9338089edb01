"""How weights travel: from host memory to rooms on the card, and home again.

The values of a module that only visits the card keep lying in host memory, mapped from their file or packed
into one page-locked piece. To visit is to be copied into a room, a plain stretch of bytes on the card, and to
have the module's parameters point there; to go home is to have them point back, which copies nothing because
inference changes no weight. A module so has the same parameters wherever its values are, and a network does
not know that it travels: hooks before and after a module's call move it.

Few large modules visit whole (`Visit`). Many small ones pass in a row (`Parade`) through two rooms: while one
works, the next is copied into the other room on a stream of its own. A room is written only after its last
reader is done, and read only after its copy is. What is not page-locked reaches the card through the buckets
of `relay.py`.

The dock counts what it lends; with the CPU for a card, the movement is the same and the counts are too.
"""

import ctypes
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sd35.runtime.pages import page_locked
from sd35.runtime.relay import Relay, recall

ALIGNMENT = 256  # bytes, as the allocator's own: FP8 products want 16, vector loads up to 128


class Dock:
    """Lends rooms on a device and counts them: `held` bytes now, `peak` at most so far."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.held = self.peak = 0

    def room(self, nbytes: int) -> Tensor:
        """A room of so many bytes, unwritten."""
        with torch.inference_mode(False):  # so that its values may be copied into at any time
            room = torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        self.held += nbytes
        self.peak = max(self.peak, self.held)
        return room

    def take_back(self, room: Tensor) -> None:
        """The lender has let go of the room; memory is free when the last reference to it is."""
        self.held -= room.nbytes


@dataclass(frozen=True)
class _Value:
    """One parameter or buffer of a module: where it lies at home, and where it goes in a room."""

    owner: nn.Module
    name: str
    home: Tensor
    offset: int

    def place_in(self, room: Tensor) -> Tensor:
        """The stretch of the room that is this value, in its shape and order."""
        stretch = room[self.offset : self.offset + self.home.nbytes].view(self.home.dtype)
        return stretch.as_strided(self.home.shape, self.home.stride())

    def be(self, tensor: Tensor) -> None:
        """Have the module use this tensor."""
        if self.name in self.owner._parameters:
            self.owner._parameters[self.name] = nn.Parameter(tensor, requires_grad=False)
        else:
            self.owner._buffers[self.name] = tensor


class Cargo:
    """All values of a module but for those `without`, side by side; `nbytes` is the room that they take."""

    def __init__(self, module: nn.Module, without: Collection[nn.Module] = ()) -> None:
        self._values = _values_of(module, without)
        self._packed: Tensor | None = None
        self.nbytes = cargo_bytes(value.home for value in self._values)

    def pack(self) -> None:
        """Put the values at home into one page-locked piece: a copy is then one transfer at full speed."""
        piece = page_locked(self.nbytes)
        self.copy_into(piece)
        self._values = [_Value(v.owner, v.name, v.place_in(piece), v.offset) for v in self._values]
        self._packed = piece
        self.go_home()

    @property
    def is_packed(self) -> bool:
        """Whether the values lie in one page-locked piece."""
        return self._packed is not None

    def gather(self, start: int, end: int, address: int) -> None:
        """Copy what belongs between two bytes of a room to an address in host memory; other threads go on."""
        for value in self._values:
            first, last = max(start, value.offset), min(end, value.offset + value.home.nbytes)
            if first < last:
                source = value.home.data_ptr() + first - value.offset  # values are dense, in any order
                ctypes.memmove(address + first - start, source, last - first)

    def copy_into(self, room: Tensor) -> None:
        """Copy all values to the room; the host need not wait for packed ones."""
        with torch.inference_mode(False), torch.no_grad():
            if self._packed is not None:
                room[: self.nbytes].copy_(self._packed[: self.nbytes], non_blocking=True)
                return
            for value in self._values:
                value.place_in(room).copy_(value.home, non_blocking=True)

    def appear_in(self, room: Tensor) -> None:
        """Have the module use the values in the room."""
        with torch.inference_mode(False):
            for value in self._values:
                value.be(value.place_in(room))

    def go_home(self) -> None:
        """Have the module use the values at home."""
        with torch.inference_mode(False):
            for value in self._values:
                value.be(value.home)


class Visit:
    """A module's values that are on the card together between `arrive` and `leave`; its call brings them."""

    def __init__(
        self, cargo: Cargo, called: nn.Module, dock: Dock, before: Callable[[], None] = lambda: None
    ) -> None:
        self._cargo, self._dock, self._before = cargo, dock, before
        self._room: Tensor | None = None
        self.called = called
        self._hook = called.register_forward_pre_hook(lambda *_: self.arrive())

    def arrive(self) -> None:
        """Be on the card; nothing happens if it is there."""
        if self._room is not None:
            return
        self._before()
        self._room = self._dock.room(self._cargo.nbytes)
        self._cargo.copy_into(self._room)
        self._cargo.appear_in(self._room)

    def leave(self) -> None:
        """Be at home; nothing happens if it is there."""
        if self._room is not None:
            self._cargo.go_home()
            self._dock.take_back(self._room)
            self._room = None

    def end(self) -> None:
        """Go home, and never travel again."""
        self.leave()
        self._hook.remove()


class Parade:
    """Modules that are called one after another, and of which two are on the card at most.

    The last one's end is the end, unless the parade `lingers`: then the rooms stay until `leave`, so that the
    last may be called again too. With `repeats` they stay as well, and the first is fetched again while the
    last works. A module called again at once is still there; one called out of turn is fetched when it is
    called. `keep` makes of a module's result one that reads nothing of the module's: the next but one takes
    its room. What is not packed goes through `relay`.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        cargos: Sequence[Cargo],
        dock: Dock,
        *,
        repeats: bool,
        lingers: bool = False,
        before: Callable[[], None] = lambda: None,
        keep: Callable[[Any], Any] = lambda result: result,
        relay: Relay | None = None,
    ) -> None:
        self._cargos, self._before, self._keep = cargos, before, keep
        self._dock, self._repeats, self._lane = dock, repeats, Lane(dock.device, relay)
        self._lingers = lingers or repeats
        self._rooms: list[Tensor] = []
        self._free: list[Any] = [None, None]  # when each room's last reader is done
        self._coming: tuple[int, int, Crossing] | None = None  # who, into which room
        self._working: tuple[int, int] | None = None
        self._gone: tuple[int, int] | None = None  # who worked last, and in which room it can still be found
        self._hooks = [hook for i, module in enumerate(modules) for hook in self._hook(i, module)]

    @property
    def room_bytes(self) -> int:
        """Of both rooms."""
        return 2 * max(cargo.nbytes for cargo in self._cargos)

    def leave(self) -> None:
        """Have all modules at home, and give the rooms back."""
        self._turn_back()
        for cargo in self._cargos:
            cargo.go_home()
        for room in self._rooms:
            self._dock.take_back(room)
        self._rooms, self._gone = [], None

    def end(self) -> None:
        """Go home, and never travel again."""
        self.leave()
        self._lane.drain()
        for hook in self._hooks:
            hook.remove()

    def _hook(self, i: int, module: nn.Module) -> list[Any]:
        return [
            module.register_forward_pre_hook(lambda *_: self._arrive(i)),
            module.register_forward_hook(lambda _module, _given, result: self._depart(i, result)),
        ]

    def _arrive(self, i: int) -> None:
        if not self._rooms:
            self._before()
            self._rooms = [self._dock.room(self.room_bytes // 2) for _ in range(2)]
            self._free = [self._lane.now(), self._lane.now()]
        if self._gone is not None and self._gone[0] == i:
            self._cargos[i].appear_in(self._rooms[self._gone[1]])
            self._working = self._gone
            return
        if self._coming is None or self._coming[0] != i:
            self._fetch(i, self._turn_back())
        assert self._coming is not None
        _, room, crossing = self._coming
        self._lane.wait(crossing)
        self._cargos[i].appear_in(self._rooms[room])
        self._coming, self._working = None, (i, room)
        following = i + 1
        if following < len(self._cargos) or self._repeats:
            self._fetch(following % len(self._cargos), 1 - room)

    def _depart(self, i: int, result: Any) -> Any:
        assert self._working is not None
        assert self._working[0] == i, "modules of a parade are not called inside one another"
        result = self._keep(result)
        self._cargos[i].go_home()
        self._free[self._working[1]] = self._lane.now()
        self._working, self._gone = None, self._working
        if i == len(self._cargos) - 1 and not self._lingers:
            self.leave()
        return result

    def _fetch(self, i: int, room: int) -> None:
        crossing = self._lane.carry(self._cargos[i], self._rooms[room], after=self._free[room])
        self._coming = (i, room, crossing)

    def _turn_back(self) -> int:
        """Have nobody under way; the room that is free then."""
        if self._coming is None:
            return 0
        _, room, crossing = self._coming
        self._lane.abandon(crossing)
        self._coming = None
        return room


Crossing = list[Future[None]]  # what of a copy is still to be queued; nothing where the host need not help


class Lane:
    """A card's copy stream beside its work; without a relay a CPU has copied when `carry` returns."""

    def __init__(self, device: torch.device, relay: Relay | None = None) -> None:
        self._device, self._relay = device, relay
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def now(self) -> torch.cuda.Event | None:
        """The point that the work has been queued to."""
        return None if self._stream is None else torch.cuda.current_stream(self._device).record_event()

    def carry(self, cargo: Cargo, room: Tensor, after: torch.cuda.Event | None) -> Crossing:
        """Begin a copy that waits until the work has passed `after`."""
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            if self._stream is not None and after is not None:
                self._stream.wait_event(after)
            if self._relay is not None and not cargo.is_packed:
                return self._relay.send(cargo, room, self._stream)
            cargo.copy_into(room)
            return []

    def wait(self, crossing: Crossing) -> None:
        """Let no further work begin before that copy is done; it is the last that began."""
        for piece in crossing:
            piece.result()
        self._let_pass()

    def abandon(self, crossing: Crossing) -> None:
        """Nobody wants that copy any more: what has not begun never does; no work begins before the rest."""
        recall(crossing)
        self._let_pass()

    def drain(self) -> None:
        """Wait until no copy is under way: what is copied from may go then."""
        if self._stream is not None:
            self._stream.synchronize()

    def _let_pass(self) -> None:
        """The work goes on behind all copies that are queued."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)


def cargo_bytes(tensors: Any) -> int:
    """The room that tensors take side by side, each at an aligned place."""
    return sum(aligned(tensor.nbytes) for tensor in tensors)


def aligned(nbytes: int) -> int:
    """Up to the next place where a value may begin."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _values_of(module: nn.Module, without: Collection[nn.Module]) -> list[_Value]:
    values, offset = [], 0
    left_out = {id(inner) for left in without for inner in left.modules()}
    for owner in module.modules():
        if id(owner) in left_out:
            continue
        for name, tensor in [*owner._parameters.items(), *owner._buffers.items()]:
            if tensor is None:
                continue
            home = tensor.detach()
            if not _is_dense(home):
                home = home.contiguous()
            values.append(_Value(owner, name, home, offset))
            offset += aligned(home.nbytes)
    return values


def _is_dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or (
        tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    )
