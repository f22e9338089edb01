"""One model over several cards: arithmetic that can be checked by hand, for all variants and budgets."""

import json
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from budgets import budget_for

from sd35.bench.random_weights import RandomCheckpoint
from sd35.checkpoints.formats import open_checkpoint
from sd35.config import RuntimeConfig
from sd35.errors import DeviceError, RequestError
from sd35.quantization.recipe import Recipe
from sd35.runtime import division, memory
from sd35.runtime.budget import gibibytes, usable
from sd35.runtime.configs import read_mmdit_config, read_vae_config
from sd35.runtime.devices import Card, cards_of, devices_of
from sd35.runtime.memory import RESERVE, Division, MemoryPlan, Work
from sd35.runtime.pipeline import Pipeline
from sd35.runtime.sizes import Sizes, sizes_of
from sd35.variants import VARIANTS

GIB = 2**30
GUIDED = Work(1024, 1024, images=1, steps=28, text_tokens=333, guided=True)
RESULTS = Path(__file__).parents[2] / "benchmarks/results"


def sizes(variant: str, recipe: Recipe | None = None) -> Sizes:
    """Of a variant at full size by its headers alone, in 16 bits unless there is a recipe."""
    checkpoint = RandomCheckpoint(variant, torch.device("cpu"), recipe)
    configs = read_mmdit_config(checkpoint), read_vae_config(checkpoint)
    return sizes_of(checkpoint, *configs, torch.bfloat16)


@pytest.fixture(scope="module")
def large() -> Sizes:
    """Large's, in FP8."""
    return sizes("large", Recipe())


@pytest.fixture(scope="module")
def large_16bit() -> Sizes:
    """Large's in 16 bits."""
    return sizes("large")


def bounds(*gibibytes: float) -> list[int]:
    """In bytes."""
    return [round(amount * GIB) for amount in gibibytes]


def cards(*gibibytes: float) -> list[Card]:
    """Cards by their numbers."""
    return [Card(torch.device("cuda", i), bound) for i, bound in enumerate(bounds(*gibibytes))]


@pytest.mark.parametrize(
    ("variant", "fp8", "budgets", "name", "divided"),
    [
        ("large", True, (24, 24), "resident", None),
        ("large", True, (24, 4), "resident", None),
        ("large", True, (11.2, 11.2), "beside", Division(1, 0, (38, 0))),
        ("large", True, (9, 14), "beside", Division(1, 1, (38, 0))),
        ("large", True, (6.2, 15.2), "split", Division(1, 0, (22, 16))),
        ("large", True, (7.2, 7.2), "staged", None),
        ("large", False, (23, 23), "beside", Division(1, 1, (38, 0))),
        ("large", False, (15.2, 15.2), "split", Division(1, 0, (30, 8))),
        ("large", False, (11.2, 11.2, 11.2), "split", Division(1, 0, (17, 0, 21))),
        ("medium", True, (4, 14), "beside", Division(1, 1, (24, 0))),
        ("medium", True, (2, 14), "split", Division(1, 1, (7, 17))),
        ("demo", True, (3.2, 3.2), "resident", None),
    ],
)
def test_budgets_choose_their_plan(
    variant: str, fp8: bool, budgets: tuple[float, ...], name: str, divided: Division | None
) -> None:
    """Together if one card has room, else the transformer whole, else in ranges, else one card's own plan."""
    found = sizes(variant, Recipe() if fp8 else None)
    plan = division.choose(found, GUIDED, bounds(*budgets))
    assert (plan.name, plan.division) == (name, divided)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("first", [1.5, 4, 6.2, 9, 11.2, 16])
@pytest.mark.parametrize("second", [2, 7.2, 10.8, 14, 24])
def test_whatever_is_chosen_fits(variant: str, first: float, second: float) -> None:
    """No card is asked for more than it may, each weight has one place, and a second card never hurts."""
    found, budgets = sizes(variant), bounds(first, second)
    plan = division.choose_or_smallest(found, GUIDED, budgets)
    alone = division.choose_or_smallest(found, GUIDED, budgets[:1])
    if plan.division is None:
        assert plan == alone
        return
    assert division.fits(plan, found, GUIDED, budgets)
    assert memory.peak(memory.MemoryPlan("resident"), found, GUIDED) > usable(budgets[0])
    held = [division.held_by(card, plan.division, found)[1] for card in range(2)]
    assert sum(held) == found.total
    numbers = [i for blocks in division.ranges(plan.division) for i in blocks]
    assert numbers == list(range(len(found.block_bytes)))


def test_peaks_by_hand(large: Sizes) -> None:
    """Weights that are there, what a stage adds, the reserve; the table of all steps is the first card's."""
    plan = MemoryPlan("split", division=Division(1, 0, (30, 8)))
    blocks = [sum(pair) for pair in zip(large.block_bytes, large.block_modulations, strict=True)]
    final = large.modulations - sum(large.block_modulations)
    table, step = memory.table_bytes(large, GUIDED), memory.step_bytes(plan, large, GUIDED)
    decode = memory.decode_activations(plan, large, GUIDED)
    first = sum(blocks[:30]) + final + large.rest + large.vae
    second = large.encoders + sum(blocks[30:])
    expected = [
        max(first + table + step, first + decode) + RESERVE,
        max(second + memory.ENCODE_ACTIVATIONS, second + step) + RESERVE,
    ]
    assert division.peaks(plan, large, GUIDED) == expected


def test_ranges_are_as_long_as_the_room(large_16bit: Sizes) -> None:
    """Of what its other weights and activations leave, each card gives the same share, but for a block."""
    budgets = bounds(11.2, 11.2, 11.2)
    plan = division.choose(large_16bit, GUIDED, budgets)
    divided = plan.division
    assert divided is not None
    block = max(large_16bit.block_bytes) + max(large_16bit.block_modulations)
    shares = []
    for card, blocks in enumerate(division.ranges(divided)):
        held = sum(large_16bit.block_bytes[i] + large_16bit.block_modulations[i] for i in blocks)
        room = usable(budgets[card]) - division.peaks(plan, large_16bit, GUIDED)[card] + held
        if blocks:
            shares.append((held / room, block / room))
    (one, most), (other, _) = shares
    assert abs(one - other) <= most + 0.01


def test_the_transformer_stays_whole_while_it_can(large: Sizes) -> None:
    """A split begins where the first card can't hold all blocks, and not before."""
    whole = division.peaks(MemoryPlan("beside", division=Division(1, 1, (38, 0))), large, GUIDED)[0]
    plans = [
        division.choose(large, GUIDED, [budget, 16 * GIB])
        for budget in (budget_for(whole), budget_for(whole) - 1)
    ]
    assert [plan.name for plan in plans] == ["beside", "split"]


def test_strips_come_before_a_split(large: Sizes) -> None:
    """A decode in strips gives up less than hops in every step."""
    encoders = large.encoders + memory.ENCODE_ACTIVATIONS + RESERVE
    plan = division.choose(large, GUIDED, [round(9.2 * GIB), budget_for(encoders)])
    assert plan.name == "beside"
    assert plan.strips > 0
    assert plan.division == Division(1, 0, (38, 0))


@pytest.mark.parametrize("divided", [Division(1, 1, (38, 0)), Division(1, 1, (20, 18))])
def test_after_a_card_was_full_the_first_is_alone(divided: Division, large: Sizes) -> None:
    """Whichever it was: the next plan uses the first card, and less of it; from resident others are next."""
    plan = MemoryPlan("split" if divided.blocks[1] else "beside", division=divided)
    budgets = bounds(9, 16)
    smaller = division.smaller_than(plan, large, GUIDED, budgets)
    assert smaller is not None
    assert smaller.moves
    used = division.peaks(plan, large, GUIDED)[0]
    assert memory.peak(smaller, large, GUIDED) < used
    following = division.smaller_than(MemoryPlan("resident"), large, GUIDED, budgets)
    assert following is not None
    assert following.name == "beside"


def test_a_split_that_hardly_used_the_first_card_falls_back_too() -> None:
    """Where no plan of the first card alone needs less of it than the split, its smallest is tried."""
    found, budgets = sizes("medium", Recipe()), bounds(1.2, 14)
    split = division.choose(found, GUIDED, budgets)
    assert split.name == "split"
    smaller = division.smaller_than(split, found, GUIDED, budgets)
    assert smaller == list(memory.ladder())[-1]
    assert division.smaller_than(smaller, found, GUIDED, budgets) is None


def test_one_card_has_the_plans_of_before(large: Sizes) -> None:
    """With one budget, or none, nothing is divided."""
    assert division.choose(large, GUIDED, [None]) == next(memory.ladder())
    for budget in bounds(24, 7.2, 5.2, 3.2):
        fitting = (plan for plan in memory.ladder() if division.fits(plan, large, GUIDED, [budget]))
        assert division.choose(large, GUIDED, [budget]) == next(fitting)
    assert list(division.candidates(large, GUIDED, [None, None])) == list(memory.ladder())


def test_too_little_everywhere_is_one_sentence(large: Sizes) -> None:
    """With the size that would fit on the first card."""
    with pytest.raises(DeviceError, match="largest square that fits is"):
        division.choose(large, Work(4096, 4096, 4, 28, 333, guided=True), bounds(2, 2))


def test_the_table_says_which_card_has_what(large_16bit: Sizes) -> None:
    """A line for each card: parts, weights, the peak with its stage, headroom; JSON has every stage."""
    both = cards(15.2, 15.2)
    plan = division.choose(large_16bit, GUIDED, bounds(15.2, 15.2))
    head, titles, *rows = division.table_text(plan, large_16bit, GUIDED, both).splitlines()
    assert head == "plan: split"
    assert titles.split() == ["card", "holds", "weights", "peak", "in", "headroom"]
    assert "blocks 0 to 29 with AdaLN, embedders, VAE" in rows[0]
    assert "encoders, blocks 30 to 37 with AdaLN" in rows[1]
    for row, peak in zip(rows, division.peaks(plan, large_16bit, GUIDED), strict=True):
        assert row.endswith(gibibytes(usable(round(15.2 * GIB)) - peak))
        assert gibibytes(peak) in row
    found = json.loads(json.dumps(division.as_dict(plan, large_16bit, GUIDED, both)))
    assert found["division"] == {"encoders": 1, "vae": 0, "blocks": [30, 8]}
    assert [entry["device"] for entry in found["devices"]] == ["cuda:0", "cuda:1"]
    tables = [entry["stages"] for entry in found["devices"]]
    peaks = [max(stage["bytes"] for stage in table) for table in tables]
    assert peaks == division.peaks(plan, large_16bit, GUIDED)


@pytest.mark.parametrize(
    ("budgets", "said"),
    [
        ((24, 24), "fits on cuda:0, so cuda:1 will not be used"),
        ((11.2, 11.2), "divided over cuda:0, cuda:1 by the plan 'beside'"),
        ((7.2, 7.2), "no room for a model that stays on them: the plan is 'staged"),
    ],
)
def test_what_becomes_of_the_cards_is_said(budgets: tuple[float, ...], said: str, large: Sizes) -> None:
    """In a sentence, and of one card there is nothing to say."""
    plan = division.choose(large, GUIDED, bounds(*budgets))
    assert said in str(division.news(plan, cards(*budgets)))
    assert division.news(plan, cards(*budgets)[:1]) is None


def test_blocks_are_sized_in_their_order(demo_fp8: Path, pipeline_fp8: Pipeline) -> None:
    """Each block's bytes, and those of its AdaLN layers, are the loaded block's own."""
    opened = open_checkpoint(demo_fp8)
    found = sizes_of(opened, read_mmdit_config(opened), read_vae_config(opened), torch.bfloat16)
    sums = [a + b for a, b in zip(found.block_bytes, found.block_modulations, strict=True)]
    held = [
        sum(tensor.nbytes for tensor in [*block.parameters(), *block.buffers()])
        for block in pipeline_fp8.mmdit.blocks
    ]
    assert sums == held
    ends = list(accumulate(found.block_modulations))
    last = pipeline_fp8.mmdit.final_modulation
    assert found.modulations - ends[-1] == sum(t.nbytes for t in [*last.parameters(), *last.buffers()])


@pytest.mark.parametrize("variant", ["medium", "large"])
def test_full_size_blocks_are_sized_in_their_order(variant: str) -> None:
    """Blocks with dual attention come first and are larger; the last one lacks half of its context stream."""
    found = sizes(variant)
    duals, count = found.mmdit.dual_attention_layers, found.mmdit.num_layers
    plain = [size for i, size in enumerate(found.block_bytes) if i not in duals and i < count - 1]
    assert len(set(plain)) == 1
    assert all(found.block_bytes[i] > plain[0] for i in duals)
    assert found.block_bytes[-1] < plain[0]
    assert found.block_modulations[-1] == min(found.block_modulations)


def test_devices_and_their_bounds_in_words() -> None:
    """Names and amounts with commas between, or as tuples; one amount is for each device."""
    two = RuntimeConfig(devices="cuda:0, cuda:1", max_vram="7.2GiB")
    assert two.device_names == ("cuda:0", "cuda:1")
    assert two.vram_bytes_each == tuple(bounds(7.2, 7.2))
    uneven = RuntimeConfig(devices=("cuda:1", "cuda:0"), max_vram="7.2GiB,11GiB")
    assert uneven.vram_bytes_each == tuple(bounds(7.2, 11))
    assert uneven.vram_bytes == uneven.vram_bytes_each[0]
    assert RuntimeConfig(device="cuda:1").device_names == ("cuda:1",)
    assert RuntimeConfig(devices="cpu,cpu").vram_bytes_each == (None, None)
    assert cards_of(RuntimeConfig(devices="cpu,cpu", max_vram=(1, 2)))[1].budget == 2


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"device": "cuda:0", "devices": "cuda:0,cuda:1"}, "twice"),
        ({"devices": "cuda:0,,cuda:1"}, "names such as"),
        ({"devices": "cuda:0,cuda:1", "max_vram": "1GiB,2GiB,3GiB"}, "3 amounts"),
        ({"max_vram": "1GiB,2GiB"}, "2 amounts .* 1 device"),
        ({"devices": "cuda:0,cuda:1", "max_vram": "1GiB,some"}, "max_vram"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, str], word: str) -> None:
    """Before anything is looked for."""
    with pytest.raises(RequestError, match=word):
        RuntimeConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "word"),
    [
        ("auto,cuda:1", "name each"),
        ("cpu,cuda:0", "not by both"),
        ("cuda:0,cuda:0", "named twice"),
        ("cuda,cuda:0", "named twice"),
        ("cuda:0,cuda:2", "compute differently"),
        ("cuda:0,cuda:3", "not there"),
        ("cuda:0,tpu9", "no kind of device"),
    ],
)
def test_cards_that_can_not_draw_together(names: str, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reason in a sentence: two alike and one of another generation are here."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9 - device.index // 2, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    assert devices_of(RuntimeConfig(devices="cuda,cuda:1")) == (
        torch.device("cuda:0"),
        torch.device("cuda:1"),
    )
    with pytest.raises(DeviceError, match=word):
        devices_of(RuntimeConfig(devices=names))


@pytest.mark.parametrize("result", sorted(RESULTS.glob("devices-*.json")), ids=lambda path: path.stem)
def test_peaks_on_cards_are_the_arithmetic(result: Path) -> None:
    """In every committed run under caps the plan is that which was measured, and each peak within 5%.

    These runs are older than the allocator's share: a plan might need the whole cap.
    """
    content = json.loads(result.read_text())
    divided = [row for row in content["rows"] if row["plan"] in ("beside", "split")]
    assert divided
    for row in divided:
        found = sizes(row["variant"], Recipe())
        budgets = [budget_for(device["cap_bytes"]) for device in row["devices"].values()]
        work = Work(row["width"], row["height"], row["images"], row["steps"], 333, row["guidance"])
        plan = division.choose(found, work, budgets)
        assert plan.name == row["plan"]
        measured = [device["peak_bytes"] for device in row["devices"].values()]
        assert division.peaks(plan, found, work) == pytest.approx(measured, rel=0.05)
