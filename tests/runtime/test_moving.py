"""Weights that travel: equal results, the right order, and never more room than was said."""

import itertools
import mmap

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


def run(layers: list[nn.Linear], x: Tensor) -> Tensor:
    """All layers, one after the other."""
    with torch.inference_mode():
        for layer in layers:
            x = layer(x)
        return x


def parade(layers: list[nn.Linear], dock: Dock, *, repeats: bool) -> Parade:
    """A parade of these layers."""
    return Parade(layers, [Cargo(layer) for layer in layers], dock, repeats=repeats)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each cargo that is copied to the device, as they are copied."""
    seen: list[int] = []
    original = Cargo.copy_into
    monkeypatch.setattr(
        Cargo, "copy_into", lambda self, room: seen.append(self.nbytes) or original(self, room)
    )
    return seen


@pytest.mark.parametrize("repeats", [False, True])
def test_a_layer_called_again_at_once_is_fetched_once(
    layers: list[nn.Linear], fetched: list[int], repeats: bool
) -> None:
    """Two inputs, layer by layer: the second finds the layer there, or, of the last, a new one."""
    a, b = torch.randn(3, 5), torch.randn(2, 5)
    expected = run(layers, a), run(layers, b)
    guests = parade(layers, Dock(CPU), repeats=repeats)
    with torch.inference_mode():
        for layer in layers:
            a, b = layer(a), layer(b)
    assert torch.equal(a, expected[0])
    assert torch.equal(b, expected[1])
    assert len(fetched) == len(layers) + 1
    guests.end()


@pytest.mark.parametrize("repeats", [False, True])
def test_a_parade_computes_what_its_layers_do(layers: list[nn.Linear], repeats: bool) -> None:
    """Twice in a row, to the last bit; afterwards the layers are as they were."""
    x = torch.randn(3, 5)
    expected, before = run(layers, x), [layer.weight.data_ptr() for layer in layers]
    guests = parade(layers, Dock(CPU), repeats=repeats)
    for _ in range(2):
        assert torch.equal(run(layers, x), expected)
    guests.end()
    assert [layer.weight.data_ptr() for layer in layers] == before
    assert torch.equal(run(layers, x), expected)


def test_a_layer_works_on_what_was_brought(layers: list[nn.Linear]) -> None:
    """While it is called its weight lies in a room and not at home, so an empty room would be seen."""
    home = layers[1].weight.data_ptr()
    parade(layers, Dock(CPU), repeats=False)
    seen: list[int] = []
    layers[1].register_forward_pre_hook(lambda layer, _: seen.append(layer.weight.data_ptr()))
    run(layers, torch.randn(1, 5))
    assert seen[0] != home
    assert layers[1].weight.data_ptr() == home


def test_two_rooms_are_all_that_a_parade_takes(layers: list[nn.Linear]) -> None:
    """Its peak is twice its largest layer, and after the last one nothing is held."""
    dock = Dock(CPU)
    parade(layers, dock, repeats=False)
    run(layers, torch.randn(1, 5))
    largest = aligned(300 * 40 * 4) + aligned(40 * 4)
    assert dock.peak == 2 * largest
    assert dock.held == 0


def test_the_next_is_fetched_while_one_works(layers: list[nn.Linear], fetched: list[int]) -> None:
    """When a layer is called its follower is on the way; what repeats fetches the first behind the last."""
    guests = parade(layers, Dock(CPU), repeats=True)
    at_call: list[int] = []
    for layer in layers:
        layer.register_forward_pre_hook(lambda *_: at_call.append(len(fetched)))
    run(layers, torch.randn(1, 5))
    sizes = [Cargo(layer).nbytes for layer in layers]
    assert at_call == [2, 3, 4, 5]
    assert fetched == [*sizes, sizes[0]]
    run(layers, torch.randn(1, 5))
    assert fetched[5:] == [*sizes[1:], sizes[0]]
    guests.leave()


def test_a_layer_that_is_skipped_harms_nothing(layers: list[nn.Linear], fetched: list[int]) -> None:
    """Out of turn a layer is fetched when it is called."""
    expected = run([layers[0], layers[0].__class__(300, 7)][:1], torch.ones(1, 5))
    parade(layers, Dock(CPU), repeats=True)
    run(layers, torch.ones(1, 5))
    assert torch.equal(run(layers[:1], torch.ones(1, 5)), expected)
    assert torch.equal(run(layers[:1], torch.ones(1, 5)), expected)


def test_a_failure_inside_leaves_all_at_home(layers: list[nn.Linear]) -> None:
    """A layer that fails is gone home by `leave`, and the next walk is right."""
    x, dock = torch.randn(3, 5), Dock(CPU)
    expected = run(layers, x)
    guests = parade(layers, dock, repeats=False)
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
    Parade(layers, cargos, Dock(CPU), repeats=False)
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
    guests = Parade(layers, cargos, Dock(device), repeats=True)
    for _ in range(50):
        torch.testing.assert_close(run(layers, x.to(device)).cpu(), expected, rtol=1e-4, atol=1e-4)
    guests.end()
