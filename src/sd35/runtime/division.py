"""Which card holds what where several are named for one picture, by the arithmetic of `memory.py`.

The first card has the latents. Of these plans, in the order of what they cost, the first that fits is taken:

    resident   all of it on the first card; the others stay unused
    beside     the whole transformer on the first card, the text encoders and the VAE where there is room
    split      the joint blocks too are divided: a range of them for each card, with their AdaLN layers
    else       the plans of a single card, on the first

In the first three nothing moves. Embeds and latents hop once a picture, and in a split both streams hop at
each border once a step (43 MB for a guided step of Large at 1024 x 1024). The cards so take turns: they
give room, not speed.

A split takes the same share of each card's room, the smallest that is enough for all blocks; a card's room
is what its other weights, activations and the reserve leave of what is usable. A card that has blocks needs
a whole step's activations.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import accumulate, pairwise, product
from typing import Any

from sd35.errors import DeviceError
from sd35.runtime import memory
from sd35.runtime.budget import gibibytes, usable
from sd35.runtime.devices import Card
from sd35.runtime.memory import Division, MemoryPlan, Stage, Work
from sd35.runtime.sizes import Sizes

_DIVIDED: tuple[memory.Name, ...] = ("beside", "split")  # strips cost less than hops in every step
_PERCENT = range(1, 101)

Budgets = Sequence[int | None]  # of each card; None where there is no bound


def candidates(sizes: Sizes, work: Work, budgets: Budgets) -> Iterator[MemoryPlan]:
    """The plans for these cards, the fastest first; of the divided ones those alone that fit."""
    resident, *smaller = memory.ladder()
    yield resident
    bounds = [budget for budget in budgets if budget is not None]
    if len(bounds) == len(budgets) > 1:
        for name, strips in product(_DIVIDED, memory.DECODES):
            yield from _roomiest(MemoryPlan(name, strips=strips), sizes, work, bounds)
    yield from smaller


def choose(sizes: Sizes, work: Work, budgets: Budgets) -> MemoryPlan:
    """The fastest plan that fits; DeviceError with what would."""
    for plan in candidates(sizes, work, budgets):
        if fits(plan, sizes, work, budgets):
            return plan
    assert budgets[0] is not None, "without a bound everything fits"
    raise memory.too_large(sizes, work, budgets[0])


def choose_or_smallest(sizes: Sizes, work: Work, budgets: Budgets) -> MemoryPlan:
    """The fastest plan that fits, else the smallest: smaller work than this may still fit it."""
    plans = list(candidates(sizes, work, budgets))
    return next((plan for plan in plans if fits(plan, sizes, work, budgets)), plans[-1])


def smaller_than(plan: MemoryPlan, sizes: Sizes, work: Work, budgets: Budgets) -> MemoryPlan | None:
    """After a card had less room than was promised: the next plan that needs less of the first, if any.

    Nobody knows which card it was. So after a divided plan come those of the first card alone: of them the
    smallest too where none needs less of that card, as it may well have been another.
    """
    if plan.moves:
        return memory.smaller_than(plan, sizes, work)
    used = peaks(plan, sizes, work)[0]
    later = [other for other in candidates(sizes, work, budgets) if other.moves or plan.division is None]
    smaller = next((other for other in later if peaks(other, sizes, work)[0] < used), None)
    return later[-1] if smaller is None and plan.division else smaller


def fits(plan: MemoryPlan, sizes: Sizes, work: Work, budgets: Budgets) -> bool:
    """Whether no card has to hold more than is usable there."""
    needed = peaks(plan, sizes, work)
    pairs = zip(needed, budgets[: len(needed)], strict=True)
    return all(budget is None or peak <= usable(budget) for peak, budget in pairs)


def no_room(plan: MemoryPlan, sizes: Sizes, work: Work) -> DeviceError:
    """The error after a device had less room than it had promised to this plan."""
    needed = peaks(plan, sizes, work)[0]
    return DeviceError(
        f"{memory.in_words(work)} need {gibibytes(needed)} by the plan '{memory.described(plan)}', and the "
        "device had less: say with max_vram how much it may be, or draw less; in less than this plan's, "
        f"{memory.largest_in_words(sizes, work, needed - 1)}."
    )


def peaks(plan: MemoryPlan, sizes: Sizes, work: Work) -> list[int]:
    """The most bytes that PyTorch will have allocated on each card (undivided: on the first alone)."""
    if plan.division is None:
        return [memory.peak(plan, sizes, work)]
    return [
        max(stage.bytes for stage in stages_on(card, plan, sizes, work))
        for card in range(len(plan.division.blocks))
    ]


def stages_on(card: int, plan: MemoryPlan, sizes: Sizes, work: Work) -> list[Stage]:
    """A divided plan's table for one card."""
    division = plan.division
    assert division is not None
    words, weights = held_by(card, division, sizes)
    is_first, table = card == 0, memory.table_bytes(sizes, work)
    step = memory.step_bytes(plan, sizes, work) if is_first or division.blocks[card] else 0
    source = memory.source_bytes(plan, sizes, work)  # whose weights come for the stage
    activations = {
        "encode": memory.ENCODE_ACTIVATIONS if card == division.encoders else 0,
        **({"source": source if card == division.vae else 0} if source else {}),
        "tables": table if is_first else 0,
        "loop": (table if is_first else 0) + step,
        "decode": memory.decode_activations(plan, sizes, work) if card == division.vae else 0,
    }
    return [Stage(name, ", ".join(words), weights, nbytes) for name, nbytes in activations.items()]


def held_by(card: int, division: Division, sizes: Sizes) -> tuple[list[str], int]:
    """What a card holds in words, and its bytes."""
    blocks = ranges(division)[card]
    in_blocks = sum(sizes.block_bytes[i] + sizes.block_modulations[i] for i in blocks)
    outside = sizes.rest + sizes.modulations - sum(sizes.block_modulations)
    parts = [
        (card == division.encoders, "encoders", sizes.encoders),
        (len(blocks) > 0, _blocks_in_words(blocks, sizes), in_blocks),
        (card == 0, "embedders", outside),
        (card == division.vae, "VAE", sizes.vae),
    ]
    held = [(words, nbytes) for is_here, words, nbytes in parts if is_here]
    return [words for words, _ in held], sum(nbytes for _, nbytes in held)


def ranges(division: Division) -> list[range]:
    """The numbers of each card's blocks."""
    return [range(first, end) for first, end in pairwise([0, *accumulate(division.blocks)])]


def news(plan: MemoryPlan, cards: Sequence[Card]) -> str | None:
    """In a sentence, what has become of the cards that were named; None where it is one."""
    if len(cards) == 1:
        return None
    first, *others = (str(card.device) for card in cards)
    if plan.name == "resident":
        return f"All of the model fits on {first}, so {', '.join(others)} will not be used."
    if plan.division is None:
        return (
            f"The cards have no room for a model that stays on them: the plan is "
            f"'{memory.described(plan)}' on {first}, and {', '.join(others)} will not be used."
        )
    return f"The model is divided over {', '.join([first, *others])} by the plan '{plan.name}'."


def as_dict(plan: MemoryPlan, sizes: Sizes, work: Work, cards: Sequence[Card]) -> dict[str, Any]:
    """The plan and its tables, for JSON."""
    if plan.division is None:
        return memory.as_dict(plan, sizes, work, cards[0].budget)
    tables = [
        {
            "device": str(card.device),
            "budget_bytes": card.budget,
            "stages": [
                {"stage": stage.name, "on_card": stage.on_card, "bytes": stage.bytes}
                for stage in stages_on(number, plan, sizes, work)
            ],
        }
        for number, card in enumerate(cards)
    ]
    return {**asdict(plan), "devices": tables}


def table_text(plan: MemoryPlan, sizes: Sizes, work: Work, cards: Sequence[Card]) -> str:
    """The plan for people: of a divided one each card, what it holds, its fullest stage and headroom."""
    if plan.division is None:
        text = memory.table_text(plan, sizes, work, cards[0].budget)
        return "\n".join([text, *(f"{card.device}: not used" for card in cards[1:])])
    rows = [("card", "holds", "weights", "peak", "in", "headroom")]
    for number, card in enumerate(cards):
        fullest = max(stages_on(number, plan, sizes, work), key=lambda stage: stage.bytes)
        left = "" if card.budget is None else gibibytes(usable(card.budget) - fullest.bytes)
        sums = (gibibytes(fullest.weights), gibibytes(fullest.bytes), fullest.name, left)
        rows.append((str(card.device), fullest.on_card, *sums))
    return "\n".join([f"plan: {memory.described(plan)}", *memory.aligned_columns(rows)])


def _roomiest(kind: MemoryPlan, sizes: Sizes, work: Work, bounds: Sequence[int]) -> list[MemoryPlan]:
    """Of the divisions of this kind that fit, the one whose fullest card has the most left."""
    divide = _divided if kind.name == "split" else _undivided
    found = [
        replace(kind, division=division)
        for encoders, vae in product(range(len(bounds)), repeat=2)
        if (division := divide(kind, Division(encoders, vae, (0,) * len(bounds)), sizes, work, bounds))
    ]
    fitting = [plan for plan in found if fits(plan, sizes, work, bounds)]
    return [max(fitting, key=lambda plan: _headroom(plan, sizes, work, bounds))] if fitting else []


def _headroom(plan: MemoryPlan, sizes: Sizes, work: Work, bounds: Sequence[int]) -> int:
    needed = peaks(plan, sizes, work)
    return min(usable(bound) - peak for bound, peak in zip(bounds, needed, strict=True))


def _undivided(
    kind: MemoryPlan, empty: Division, sizes: Sizes, work: Work, bounds: Sequence[int]
) -> Division:
    """All blocks on the first card."""
    return replace(empty, blocks=(len(sizes.block_bytes), *empty.blocks[1:]))


def _divided(
    kind: MemoryPlan, empty: Division, sizes: Sizes, work: Work, bounds: Sequence[int]
) -> Division | None:
    """Blocks over the cards, the same share of each one's room taken; None where there is too little."""
    bare, step = replace(kind, division=empty), memory.step_bytes(kind, sizes, work)
    rooms = []
    for card, bound in enumerate(bounds):
        stages = stages_on(card, bare, sizes, work)
        taken = max(stage.bytes + (step if stage.name == "loop" and card else 0) for stage in stages)
        rooms.append(max(0, usable(bound) - taken))
    blocks = [sum(pair) for pair in zip(sizes.block_bytes, sizes.block_modulations, strict=True)]
    for percent in _PERCENT:
        counts = _filled(blocks, [room * percent // 100 for room in rooms])
        if counts is not None:
            return replace(empty, blocks=counts)
    return None


def _filled(blocks: Sequence[int], rooms: Sequence[int]) -> tuple[int, ...] | None:
    """How many blocks come to each room, one room after the other; None where some are left over."""
    counts, waiting = [], list(blocks)
    for room in rooms:
        sums = list(accumulate(waiting))
        count = sum(total <= room for total in sums)
        counts.append(count)
        waiting = waiting[count:]
    return None if waiting else tuple(counts)


def _blocks_in_words(blocks: range, sizes: Sizes) -> str:
    if len(blocks) == len(sizes.block_bytes):
        return "AdaLN, blocks"
    return f"blocks {blocks.start} to {blocks.stop - 1} with AdaLN"
