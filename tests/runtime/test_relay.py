"""Buckets between ordinary memory and a card: every byte arrives, and nothing is left behind."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from sd35.runtime import relay as relays
from sd35.runtime.moving import Cargo, Dock, Parade
from sd35.runtime.relay import Relay, recall

CPU = torch.device("cpu")
BUCKET = 1 << 10


@pytest.fixture
def relay() -> Iterator[Relay]:
    """Three threads with small buckets, for the CPU."""
    relay = Relay(CPU, bucket=BUCKET, threads=3)
    yield relay
    relay.rest()


def crew() -> list[threading.Thread]:
    """Threads of relays that are there now."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("sd35-relay")]


def values() -> nn.ModuleList:
    """Values of several dtypes, sizes and orders: some fill many buckets, some share one with others."""
    torch.manual_seed(0)
    kernel = nn.Conv2d(8, 40, 3).to(memory_format=torch.channels_last)
    return nn.ModuleList([nn.Linear(70, 50), nn.LayerNorm(3), kernel, nn.Linear(3, 5, dtype=torch.bfloat16)])


class Load:
    """A load of so many bytes, of which each bucketful is left to `gather`."""

    def __init__(self, nbytes: int, gather: Callable[[int, int, int], None]) -> None:
        self.nbytes, self.gather = nbytes, gather


def test_every_byte_arrives(relay: Relay) -> None:
    """The room is what a copy of all values makes of it, whatever their borders and the buckets' are."""
    cargo = Cargo(values())
    expected, found = (torch.zeros(cargo.nbytes, dtype=torch.uint8) for _ in range(2))
    cargo.copy_into(expected)
    pieces = relay.send(cargo, found, None)
    for piece in pieces:
        piece.result()
    assert cargo.nbytes / BUCKET <= len(pieces) <= cargo.nbytes / BUCKET + 3
    for value in cargo._values:
        assert torch.equal(value.place_in(found), value.place_in(expected))


def test_no_bucket_serves_two_at_once(relay: Relay) -> None:
    """While one is filled nobody else fills it, though there are more bucketfuls than buckets."""
    busy: set[int] = set()
    most, clashes = [0], []

    def gather(start: int, end: int, address: int) -> None:
        """Take a while."""
        clashes.extend([address] if address in busy else [])
        busy.add(address)
        most[0] = max(most[0], len(busy))
        time.sleep(0.002)
        busy.remove(address)

    room = torch.empty(40 * BUCKET, dtype=torch.uint8)
    for piece in relay.send(Load(room.nbytes, gather), room, None):
        piece.result()
    assert not clashes
    assert 1 < most[0] <= 3


@pytest.mark.parametrize("nbytes", [1, 700, 3 * BUCKET, 3 * BUCKET + 1, 10 * BUCKET])
def test_every_thread_has_as_much_to_do(relay: Relay, nbytes: int) -> None:
    """A load that three buckets hold is three equal shares of whole words, and none is more than a bucket."""
    sizes: list[int] = []
    load = Load(nbytes, lambda start, end, _: sizes.append(end - start))
    for piece in relay.send(load, torch.empty(nbytes, dtype=torch.uint8), None):
        piece.result()
    assert sum(sizes) == nbytes
    assert max(sizes) <= BUCKET
    assert len(sizes) <= 3 * -(-nbytes // (3 * BUCKET))


def test_what_is_recalled_is_at_rest(relay: Relay) -> None:
    """Nothing begins after a recall, and what had begun has ended."""
    begun, ended, go = [], [], threading.Event()

    def gather(start: int, end: int, address: int) -> None:
        """Wait until somebody recalls."""
        begun.append(start)
        go.wait(10)
        time.sleep(0.01)
        ended.append(start)

    room = torch.empty(30 * BUCKET, dtype=torch.uint8)
    pieces = relay.send(Load(room.nbytes, gather), room, None)
    while not begun:
        time.sleep(0.001)
    threading.Timer(0.02, go.set).start()
    recall(pieces)
    assert sorted(begun) == sorted(ended)
    assert len(begun) < 30
    time.sleep(0.02)
    assert sorted(begun) == sorted(ended)


def test_threads_end_with_a_rest(relay: Relay) -> None:
    """They begin with a load, end with a rest, and begin again with the next load."""
    room = torch.empty(BUCKET, dtype=torch.uint8)
    assert not crew()
    for _ in range(2):
        relay.send(Load(room.nbytes, lambda *_: None), room, None)[0].result()
        assert crew()
        relay.rest()
        assert not crew()


def test_a_failure_is_told_where_the_layer_is_called(relay: Relay) -> None:
    """What a thread could not copy is no layer to work with; its bucket serves again."""
    layers, dock = [nn.Linear(60, 60), nn.Linear(60, 60)], Dock(CPU)
    cargos = [Cargo(layer) for layer in layers]
    x = torch.randn(2, 60)
    expected = layers[1](layers[0](x))
    guests = Parade(layers, cargos, dock, repeats=False, relay=relay)
    whole = cargos[1].gather
    cargos[1].gather = lambda *_: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        layers[1](layers[0](x))
    guests.leave()
    assert dock.held == 0
    cargos[1].gather = whole  # type: ignore[method-assign]
    for _ in range(20):
        assert torch.equal(layers[1](layers[0](x)), expected)


@pytest.mark.parametrize("lingers", [False, True])
def test_a_parade_through_a_relay(relay: Relay, lingers: bool) -> None:
    """Layers called for two inputs in turn, twice: as at home. What lingers brings its last layer once."""
    torch.manual_seed(0)
    layers = [nn.Linear(40, 40) for _ in range(5)]
    inputs = [torch.randn(3, 40) for _ in range(2)]
    sent: list[int] = []
    relay.send = _counted(relay.send, sent)  # type: ignore[method-assign]

    def walked() -> list[Tensor]:
        """Both inputs, layer by layer."""
        streams = list(inputs)
        for layer in layers:
            streams = [layer(x) for x in streams]
        return streams

    expected, dock = walked(), Dock(CPU)
    cargos = [Cargo(layer) for layer in layers]
    guests = Parade(layers, cargos, dock, repeats=False, lingers=lingers, relay=relay)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(walked(), expected, strict=True))
        assert (dock.held > 0) is lingers
        guests.leave()
    assert dock.held == 0
    assert len(sent) == 2 * (len(layers) if lingers else len(layers) + 1)


def _counted(send: Callable, sent: list[int]) -> Callable:  # type: ignore[type-arg]
    def planted(load: Load, *rest: object) -> object:
        """Remember the load's size."""
        sent.append(load.nbytes)
        return send(load, *rest)

    return planted


def test_packed_values_need_no_buckets(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are page-locked already."""
    from sd35.runtime import moving, pages

    monkeypatch.setattr(moving, "page_locked", pages.whole_pages)
    monkeypatch.setattr(relay, "send", None)
    layer, x = nn.Linear(9, 9), torch.randn(2, 9)
    expected, cargo = layer(x), Cargo(layer)
    cargo.pack()
    Parade([layer], [cargo], Dock(CPU), repeats=False, relay=relay)
    assert torch.equal(layer(x), expected)


def test_buckets_are_few() -> None:
    """At most 256 MiB of locked memory, whatever the machine."""
    assert relays.MOST_THREADS * relays.BUCKETS_PER_THREAD * relays.BUCKET == 256 << 20


@pytest.mark.gpu
def test_on_a_card() -> None:
    """Bucketfuls on a stream of their own, filled again and again: each layer works on its own values."""
    device = torch.device("cuda")
    torch.manual_seed(0)
    layers = [nn.Linear(1024, 1024, bias=False) for _ in range(6)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight)
    x = torch.randn(3, 1024)
    relay = Relay(device, bucket=64 << 10, threads=4)
    expected = [layer.weight.detach().double().sum() for layer in layers]
    seen: list[Tensor] = []
    for layer in layers:
        layer.register_forward_hook(lambda layer, *_: seen.append(layer.weight.double().sum()))
    guests = Parade(
        layers, [Cargo(layer) for layer in layers], Dock(device), repeats=False, lingers=True, relay=relay
    )
    with torch.inference_mode():
        for _ in range(20):
            seen.clear()
            y = x.to(device)
            for layer in layers:
                y = layer(y)
            for found, wanted in zip(seen, expected, strict=True):
                torch.testing.assert_close(found.cpu(), wanted)
            guests.leave()
    guests.end()
    relay.rest()
    assert not crew()
