"""What a worker holds: budgets, the least recently used, pins, clocks."""

from collections.abc import Callable, Collection

import pytest

from sd35.serving.settings import Model, Terms
from sd35.serving.shelf import Shelf

A, B, C = (Model.parse(f"{name}@demo=demo") for name in "abc")
OWN, SHARED = 10, 5  # bytes of each model, and of what all have in common


class Device:
    """A holder that writes down what it is told, and checks that it could be."""

    def __init__(self) -> None:
        self.vram: list[Model] = []
        self.ram: list[Model] = []
        self.said: list[str] = []

    def need(self, models: Collection[Model]) -> int:
        """Own bytes of each and the shared ones once."""
        return OWN * len(set(models)) + SHARED * bool(models)

    def load(self, model: Model, tell: Callable[[float], None]) -> None:
        """From the disk."""
        assert model not in self.vram + self.ram
        self.vram.append(model)
        self.said.append(f"load {model.name}")

    def rest(self, model: Model) -> None:
        """To host memory."""
        self.vram.remove(model)
        self.ram.append(model)

    def wake(self, model: Model) -> None:
        """Back."""
        self.ram.remove(model)
        self.vram.append(model)
        self.said.append(f"wake {model.name}")

    def drop(self, model: Model) -> None:
        """Gone."""
        (self.vram if model in self.vram else self.ram).remove(model)


class Room:
    """A shelf with its device and a clock that is moved by hand."""

    def __init__(self, **terms: object) -> None:
        self.now, self.device = 0.0, Device()
        self.shelf = Shelf(self.device, Terms(**terms), lambda: self.now)

    def have(self, *models: Model) -> None:
        """Want these, a second apart."""
        for model in models:
            self.now += 1
            self.shelf.have(model, lambda _: None)

    @property
    def places(self) -> tuple[set[str], set[str]]:
        """Names on the device and in host memory, as the device has them; the shelf must agree."""
        places = {model.name for model in self.device.vram}, {model.name for model in self.device.ram}
        for place, names in zip(("vram", "ram"), places, strict=True):
            assert {one.name for one in self.shelf.holdings() if one.place == place} == names
        return places


def test_without_a_bound_all_stay() -> None:
    """Each is loaded once."""
    room = Room()
    room.have(A, B, A, C, B)
    assert room.device.said == ["load a", "load b", "load c"]


def test_least_recently_used_makes_room() -> None:
    """Two fit, as what they share counts once; the third has the older one rest, which wakes unread."""
    room = Room(vram_bytes=2 * OWN + SHARED)
    room.have(A, B, A, C)
    assert room.places == ({"a", "c"}, {"b"})
    room.have(B)
    assert room.places == ({"b", "c"}, {"a"})
    assert room.device.said == ["load a", "load b", "load c", "wake b"]


def test_host_memory_is_bounded_too() -> None:
    """What rests longest is dropped; where nothing may rest, nothing does."""
    room = Room(vram_bytes=OWN + SHARED, ram_bytes=OWN + SHARED)
    room.have(A, B, C)
    assert room.places == ({"c"}, {"b"})
    none = Room(vram_bytes=OWN + SHARED, ram_bytes=0)
    none.have(A, B)
    assert none.places == ({"b"}, set())


def test_pinned_models_stay() -> None:
    """Neither others nor the clocks move them, even where that leaves too little room."""
    room = Room(vram_bytes=OWN + SHARED, rest_s=10.0, drop_s=20.0, pinned=("a",))
    room.have(A, B, C)
    assert room.places == ({"a", "c"}, {"b"})
    room.now += 100
    room.shelf.tend()
    assert room.places == ({"a"}, set())


def test_clocks_move_idle_models_down() -> None:
    """First off the device, then out of memory; being used starts both anew, and `tend` says when to come."""
    room = Room(rest_s=10.0, drop_s=30.0)
    room.have(A)
    room.now = 5.0
    room.have(B)  # at 6
    assert room.shelf.tend() == pytest.approx(5.0)
    room.now = 11.0
    assert room.shelf.tend() == pytest.approx(5.0)
    assert room.places == ({"b"}, {"a"})
    room.have(A)  # at 12
    room.now = 22.0
    room.shelf.tend()
    assert room.places == (set(), {"a", "b"})
    room.now = 36.0
    assert room.shelf.tend() == pytest.approx(6.0)
    assert room.places == (set(), {"a"})
    room.now = 42.0
    assert room.shelf.tend() is None
    assert room.places == (set(), set())


def test_failed_load_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that can't be loaded is not held, and the next one is."""
    room = Room()

    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(room.device, "load", fail)
        with pytest.raises(MemoryError):
            room.have(A)
    assert room.places == (set(), set())
    room.have(A)
    assert room.places == ({"a"}, set())
