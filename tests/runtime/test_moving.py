"""Weights that travel: equal results, the right order, and never more room than was said."""

import itertools
import mmap
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from sd35.runtime import moving, pages
from sd35.runtime.moving import Cargo, Dock, Parade, Visit, aligned

CPU = torch.device("cpu")


@pytest.fixture
def layers() -> list[nn.Linear]:
    """Four linear layers of unequal size that follow one another."""
    torch.manual_seed(0)
    widths = [5, 300, 40, 7, 9]
    return [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]


def run(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """All layers, one after the other."""
    with torch.inference_mode():
        for layer in layers:
            x = layer(x)
        return x


def parade(layers: list[nn.Linear], dock: Dock, *, called: nn.Module | None = None) -> Parade:
    """A parade of these layers."""
    return Parade(layers, [Cargo(layer) for layer in layers], dock, called=called)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each cargo that is copied to the device, as they are copied."""
    seen: list[int] = []
    original = Cargo.copy_into
    monkeypatch.setattr(
        Cargo, "copy_into", lambda self, room: seen.append(self.nbytes) or original(self, room)
    )
    return seen


def test_a_layer_called_again_at_once_is_fetched_once(layers: list[nn.Linear], fetched: list[int]) -> None:
    """Two inputs, layer by layer: the second finds the layer there, or, of the last, a new one."""
    a, b = torch.randn(3, 5), torch.randn(2, 5)
    expected = run(layers, a), run(layers, b)
    guests = parade(layers, Dock(CPU))
    with torch.inference_mode():
        for layer in layers:
            a, b = layer(a), layer(b)
    assert torch.equal(a, expected[0])
    assert torch.equal(b, expected[1])
    assert len(fetched) == len(layers) + 1
    guests.end()


@pytest.mark.parametrize("in_rounds", [False, True])
def test_a_parade_computes_what_its_layers_do(layers: list[nn.Linear], in_rounds: bool) -> None:
    """Twice in a row, to the last bit; afterwards the layers are as they were."""
    x, network = torch.randn(3, 5), nn.Sequential(*layers)
    expected, before = run(layers, x), [layer.weight.data_ptr() for layer in layers]
    guests = parade(layers, Dock(CPU), called=network if in_rounds else None)
    for _ in range(2):
        assert torch.equal(run([network], x), expected)
    guests.end()
    assert [layer.weight.data_ptr() for layer in layers] == before
    assert torch.equal(run(layers, x), expected)


def test_a_layer_works_on_what_was_brought(layers: list[nn.Linear]) -> None:
    """While it is called its weight lies in a room and not at home, so an empty room would be seen."""
    home = layers[1].weight.data_ptr()
    parade(layers, Dock(CPU))
    seen: list[int] = []
    layers[1].register_forward_pre_hook(lambda layer, _: seen.append(layer.weight.data_ptr()))
    run(layers, torch.randn(1, 5))
    assert seen[0] != home
    assert layers[1].weight.data_ptr() == home


def test_two_rooms_are_all_that_a_parade_takes(layers: list[nn.Linear]) -> None:
    """Its peak is twice its largest layer, and after the last one nothing is held."""
    dock = Dock(CPU)
    parade(layers, dock)
    run(layers, torch.randn(1, 5))
    largest = aligned(300 * 40 * 4) + aligned(40 * 4)
    assert dock.peak == 2 * largest
    assert dock.held == 0


def test_the_next_is_fetched_while_one_works(layers: list[nn.Linear], fetched: list[int]) -> None:
    """When a layer is called its follower is on the way, and the first is when a round begins."""
    network = nn.Sequential(*layers)
    guests = parade(layers, Dock(CPU), called=network)
    at_call: list[int] = []
    for module in (network, *layers):
        module.register_forward_pre_hook(lambda *_: at_call.append(len(fetched)))
    network(torch.randn(1, 5))
    assert at_call == [1, 2, 3, 4, 4]
    assert fetched == [Cargo(layer).nbytes for layer in layers]
    guests.leave()


class Ending(nn.Module):
    """Layers of which some calls leave the last ones out."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, count: int) -> Tensor:
        """Through the first few."""
        for layer in self.layers[:count]:
            x = layer(x)
        return x


@pytest.mark.parametrize("number", [3, 4])
def test_a_round_is_the_same_whatever_was_before(
    layers: list[nn.Linear], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The same copies into the same rooms in each, and none under way after it: what a recording replays."""
    seen: list[tuple[int, int]] = []
    original = Cargo.copy_into
    monkeypatch.setattr(
        Cargo,
        "copy_into",
        lambda self, room: seen.append((self.nbytes, room.data_ptr())) or original(self, room),
    )
    network, x, rounds = Ending(layers[:number]), torch.randn(1, 5), []
    expected = {count: network(x, count) for count in (number, 2)}
    guests = parade(layers[:number], Dock(CPU), called=network)
    for count in (number, 2, number, number):
        assert torch.equal(network(x, count), expected[count])
        assert guests._coming is None
        rounds.append((count, seen.copy()))
        seen.clear()
    whole = [copies for count, copies in rounds if count == number]
    assert whole[0] == whole[1] == whole[2]
    assert [nbytes for nbytes, _ in whole[0]] == [Cargo(layer).nbytes for layer in layers[:number]]
    assert len({room for _, room in whole[0]}) == 2
    guests.end()


def test_rooms_are_there_before_a_round(layers: list[nn.Linear]) -> None:
    """Both, and the round takes no others: a recording may not ask for memory that is to outlive it."""
    dock, network = Dock(CPU), nn.Sequential(*layers)
    guests = parade(layers, dock, called=network)
    guests.arrive()
    held = dock.held
    assert held == guests.room_bytes
    network(torch.randn(1, 5))
    assert dock.held == dock.peak == held
    guests.end()
    assert dock.held == 0


def test_a_layer_out_of_turn_is_fetched_when_it_is_called(
    layers: list[nn.Linear], fetched: list[int]
) -> None:
    """Though another was on its way; called again at once it is still there."""
    expected = run(layers[2:], torch.ones(1, 40))
    guests = parade(layers, Dock(CPU))
    run(layers[:1], torch.ones(1, 5))
    assert torch.equal(run(layers[2:3], torch.ones(1, 40)), run(layers[2:3], torch.ones(1, 40)))
    assert torch.equal(run(layers[2:], torch.ones(1, 40)), expected)
    sizes = [Cargo(layer).nbytes for layer in layers]
    assert fetched == [*sizes[:3], sizes[3]]
    guests.end()


def test_a_failure_inside_leaves_all_at_home(layers: list[nn.Linear]) -> None:
    """A layer that fails is gone home by `leave`, and the next walk is right."""
    x, dock = torch.randn(3, 5), Dock(CPU)
    expected = run(layers, x)
    guests = parade(layers, dock)
    with pytest.raises(RuntimeError):
        run([layers[0], layers[2]], x)
    guests.leave()
    assert dock.held == 0
    assert torch.equal(run(layers, x), expected)


def test_a_visit_lasts_until_it_ends(layers: list[nn.Linear], fetched: list[int]) -> None:
    """Two calls bring the values once; leaving gives the room back."""
    dock, model = Dock(CPU), nn.Sequential(*layers)
    visit = Visit(Cargo(model, without=[layers[3]]), model, dock)
    model(torch.randn(1, 5))
    model(torch.randn(1, 5))
    assert len(fetched) == 1
    assert dock.held == sum(Cargo(layer).nbytes for layer in layers[:3])
    visit.leave()
    assert dock.held == 0


def test_the_order_of_a_kernels_values_survives() -> None:
    """A channels-last kernel is channels-last in its room too."""
    conv = nn.Conv2d(8, 4, 3).to(memory_format=torch.channels_last)
    x = torch.randn(1, 8, 5, 5)
    expected = conv(x)
    visit = Visit(Cargo(conv), conv, Dock(CPU))
    torch.testing.assert_close(conv(x), expected)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    visit.leave()


def test_packed_cargo_is_the_same(layers: list[nn.Linear], monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed into whole pages, with no card to lock them for, values are what they were, here and there."""
    monkeypatch.setattr(moving, "page_locked", pages.whole_pages)
    x = torch.randn(3, 5)
    expected, cargos = run(layers, x), [Cargo(layer) for layer in layers]
    for cargo in cargos:
        cargo.pack()
    assert torch.equal(run(layers, x), expected)
    Parade(layers, cargos, Dock(CPU))
    assert torch.equal(run(layers, x), expected)


@pytest.mark.parametrize("nbytes", [1, 4096, 5000])
def test_pages_are_whole(nbytes: int) -> None:
    """They begin and end where pages do, and have room for what was asked."""
    piece = pages.whole_pages(nbytes)
    assert piece.data_ptr() % mmap.PAGESIZE == piece.nbytes % mmap.PAGESIZE == 0
    assert nbytes <= piece.nbytes < nbytes + mmap.PAGESIZE


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True])
def test_on_a_card(layers: list[nn.Linear], packed: bool) -> None:
    """Copies on their own stream arrive before they are read, round after round."""
    device, x = torch.device("cuda"), torch.randn(3, 5)
    expected = run(layers, x)
    cargos = [Cargo(layer) for layer in layers]
    for cargo in cargos if packed else []:
        cargo.pack()
    guests = Parade(layers, cargos, Dock(device), lingers=True)
    for _ in range(50):
        torch.testing.assert_close(run(layers, x.to(device)).cpu(), expected, rtol=1e-4, atol=1e-4)
    guests.end()


@pytest.mark.gpu
@pytest.mark.parametrize("number", [3, 4])
def test_a_round_can_be_recorded(layers: list[nn.Linear], number: int) -> None:
    """A replay copies the layers again: what is in the rooms by then does not matter."""
    device, x = torch.device("cuda"), torch.randn(50, 3, 5)
    expected = run(layers[:number], x)
    network, cargos = nn.Sequential(*layers[:number]), [Cargo(layer) for layer in layers[:number]]
    for cargo in cargos:
        cargo.pack()
    guests = Parade(layers[:number], cargos, Dock(device), called=network)
    assert guests.is_locked
    place = x[0].to(device)
    run([network], place)  # libraries choose their kernels
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        result = network(place)
    for one, wanted in zip(x, expected, strict=True):
        for room in guests._rooms:
            room.fill_(255)
        place.copy_(one)
        graph.replay()
        torch.testing.assert_close(result.cpu(), wanted, rtol=1e-4, atol=1e-4)
    guests.end()
