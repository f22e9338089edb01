"""Which plan: where each part's weights are in each stage, chosen by arithmetic before anything is moved.

Plans are rungs of one ladder, from the fastest to the smallest; the first that fits (`budget.py`) is taken.

    resident    nothing leaves
    staged      one after the other leave: the text encoders (they pass layer by layer); the AdaLN layers
                (they pass, leaving a table) and the VAE while it is not its turn; the blocks while it is
                not theirs; half of a step's activations (two passes for guidance)
    streamed    an eighth of the joint blocks, two eighths, up to all pass through two rooms in each step

Each of these has three forms, as the VAE decodes whole, in wide strips or in narrow ones: whatever moves, the
decode takes what room is left.

Activations follow formulas, in units that the network itself has:

    step    12.5 x rows x tokens x channels x itemsize     tokens, heads, hidden values of a block
    table   steps x rows x rows of the modulations x channels x itemsize
    source  5 x the finest activation                      where pictures begin with an image (`beginning.py`)
    decode  6 x the finest activation, whole               C x H x W x itemsize, C being the first level's
            1.14 x it + 5.75 strips of 2 C channels        `vae_strips.py`; or 12 x the coarsest activation

The factors are calibrated: on an H100 a guided step of Large at 1024 x 1024 took 0.48 to 0.52 GiB beside
its weights, the formula says 0.51; a whole decode took 1.6 GiB with its weights, the formula 1.59. Those of
strips come from counting every tensor, and so do four of source's five: the fifth is for a convolution's
workspace. RESERVE is for cuBLAS's workspace (32 MiB) and the allocator's rounding: Large with its AdaLN on
the card peaked at 8.3 GiB in the loop, the formula says 8.5.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from sd35.errors import DeviceError
from sd35.request import Settings
from sd35.runtime import budget as budgets
from sd35.runtime.budget import gibibytes, usable
from sd35.runtime.encoders import CLIP_TOKENS
from sd35.runtime.joint_block import MODULATIONS, MODULATIONS_DUAL, MODULATIONS_LAST_CONTEXT
from sd35.runtime.mmdit import FINAL_ROWS, MMDiTConfig
from sd35.runtime.moving import ALIGNMENT
from sd35.runtime.sizes import Sizes
from sd35.runtime.vae import VaeConfig
from sd35.runtime.vae_strips import NARROW, WIDE
from sd35.variants import LATENT_CHANNELS, PATCH_SIZE, PIXELS_PER_LATENT, PIXELS_PER_TOKEN

STEP_FACTOR = 12.5
WHOLE_DECODE_FACTOR = 6
SOURCE_FACTOR = 5
COARSE_FACTOR = 12
STRIPS_FACTOR = 1.14
STRIP_FACTOR = 5.75  # strips of the finest activation that live at once, of twice its channels
DECODES = (0, WIDE, NARROW)  # `strips` of a plan, the fastest first
RESERVE = 128 << 20
ENCODE_ACTIVATIONS = 32 << 20  # a text's 512 tokens through T5's hidden width, a few times over
PASSING_SHARES = tuple(eighths / 8 for eighths in range(1, 9))
LARGEST_SIDE, SIDE_STEP = 4096, 64  # what `largest_square` looks through

Name = Literal["resident", "beside", "split", "staged", "streamed"]


@dataclass(frozen=True)
class Work:
    """What is to be drawn, as far as memory is concerned."""

    width: int
    height: int
    images: int
    steps: int
    text_tokens: int
    guided: bool
    begins: bool = False  # with an image, which is encoded first

    @classmethod
    def of(cls, settings: Settings, images: int) -> "Work":
        """Of a batch of pictures."""
        tokens = CLIP_TOKENS + settings.max_sequence_length
        size = settings.width, settings.height
        return cls(*size, images, settings.steps_run, tokens, settings.guided, settings.strength < 1)

    @property
    def rows(self) -> int:
        """Of the batch that a step is, with guidance's other half."""
        return self.images * (2 if self.guided else 1)


@dataclass(frozen=True)
class Division:
    """Which of several cards has what, by their numbers; of the blocks, how many, in their order.

    What the transformer has beside its blocks is on the first. All of it stays: see `division.py`.
    """

    encoders: int
    vae: int
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class MemoryPlan:
    """What is on the card when; a part that does not stay comes for its stage, or passes in it."""

    name: Name
    encoders_stay: bool = True
    strips: int = 0  # rows of each, where the VAE decodes strip by strip; 0 where it decodes whole
    modulations_stay: bool = True
    one_pass: bool = True  # guidance as a batch of two; else two passes, one after the other
    blocks_stay: bool = True
    vae_stays: bool = True
    passing: float = 0.0  # the share of the blocks that passes in each step, while the others stay
    division: Division | None = None  # of "beside" and "split"; None where one card has everything

    @property
    def moves(self) -> bool:
        """Whether any weights travel, so that they are loaded into host memory."""
        return self.name in ("staged", "streamed")


@dataclass(frozen=True)
class Stage:
    """One line of a plan's table: what is on the card in a stage, and its bytes."""

    name: str
    on_card: str
    weights: int
    activations: int

    @property
    def bytes(self) -> int:
        """The stage's peak."""
        return self.weights + self.activations + RESERVE


def ladder() -> Iterator[MemoryPlan]:
    """All plans, the fastest first: each gives up what costs the least time for its memory."""
    yield MemoryPlan("resident")
    for rung in _rungs():
        for strips in DECODES:
            yield replace(rung, strips=strips)


def _rungs() -> Iterator[MemoryPlan]:
    """What moves; how the VAE decodes depends on what is left for it then."""
    yield MemoryPlan("staged", encoders_stay=False)
    few = MemoryPlan("staged", encoders_stay=False, modulations_stay=False, vae_stays=False)
    yield few
    yield replace(few, blocks_stay=False)
    yield replace(few, blocks_stay=False, one_pass=False)
    for share in PASSING_SHARES:
        yield replace(few, name="streamed", passing=share)
    yield replace(few, name="streamed", passing=1.0, one_pass=False)


def passing_blocks(plan: MemoryPlan, num_layers: int) -> list[int]:
    """The numbers of the blocks that pass, spread evenly, so that each has time to come."""
    return [i for i in range(num_layers) if int((i + 1) * plan.passing) > int(i * plan.passing)]


def stages(plan: MemoryPlan, sizes: Sizes, work: Work) -> list[Stage]:
    """The plan's table: encode, tables (the modulations of all steps), loop, decode."""
    assert plan.division is None, "several cards have a table each, in `division.py`"
    always, words = _always(plan, sizes)
    visiting = 0 if plan.encoders_stay else 2 * _room(sizes.largest_encoder_layer)
    passing = 0 if plan.modulations_stay else 2 * _room(sizes.largest_modulation)
    loop_blocks, loop_words = _loop_blocks(plan, sizes)
    decoder = 0 if plan.vae_stays else sizes.vae
    table, step = table_bytes(sizes, work), step_bytes(plan, sizes, work)
    source, decode = source_bytes(plan, sizes, work), decode_activations(plan, sizes, work)
    guests = _and(words, not plan.encoders_stay and "encoders passing")
    return [
        Stage("encode", guests, always + visiting, ENCODE_ACTIVATIONS),
        *([Stage("source", _and(words, "VAE's encoder"), always, source)] if source else []),
        Stage("tables", _and(words, passing > 0 and "AdaLN passing"), always + passing, table),
        Stage("loop", _and(words, loop_words), always + loop_blocks, table + step),
        Stage("decode", _and(words, decoder > 0 and "VAE"), always + decoder, decode),
    ]


def source_bytes(plan: MemoryPlan, sizes: Sizes, work: Work) -> int:
    """Of the VAE's encoder and its activations; 0 without an image, and where the host encodes."""
    if not work.begins or plan.strips:
        return 0
    finest = sizes.vae_config.channels[0] * work.width * work.height * sizes.itemsize
    return sizes.vae_encoder + SOURCE_FACTOR * finest


def peak(plan: MemoryPlan, sizes: Sizes, work: Work) -> int:
    """The most bytes that PyTorch will have allocated."""
    return max(stage.bytes for stage in stages(plan, sizes, work))


def smaller_than(plan: MemoryPlan, sizes: Sizes, work: Work) -> MemoryPlan | None:
    """The next plan down the ladder that needs less than this one, None below the last."""
    used = peak(plan, sizes, work)
    plans = list(ladder())
    below = plans[plans.index(plan) + 1 :]
    return next((other for other in below if peak(other, sizes, work) < used), None)


def too_large(sizes: Sizes, work: Work, budget: int) -> DeviceError:
    """The error for work that no plan makes small enough, with the largest size that one would."""
    least = min(peak(plan, sizes, work) for plan in ladder())
    return DeviceError(
        f"{in_words(work)} need {budgets.too_little(least, budget)}: {largest_in_words(sizes, work, budget)}."
    )


def in_words(work: Work) -> str:
    """The beginning of a sentence about work that is too much."""
    return f"{work.width}x{work.height} pixels, {work.images} at once,"


def largest_in_words(sizes: Sizes, work: Work, budget: int) -> str:
    """What would fit into the budget: the end of such a sentence."""
    side = largest_square(sizes, work, budget)
    if side is None:
        return "no size fits, so use a smaller variant, FP8 weights or another device"
    return f"the largest square that fits is {side}x{side}"


def largest_square(sizes: Sizes, work: Work, budget: int) -> int | None:
    """The side in pixels of the largest picture, drawn alone, that some plan fits into the budget."""
    smallest = list(ladder())[-1]
    limit = min(sizes.mmdit.pos_embed_max_size * PIXELS_PER_TOKEN, LARGEST_SIDE)
    for side in range(limit - limit % SIDE_STEP, 0, -SIDE_STEP):
        alone = replace(work, width=side, height=side, images=1)
        if peak(smallest, sizes, alone) <= usable(budget):
            return side
    return None


def described(plan: MemoryPlan) -> str:
    """The plan in a few words."""
    return f"{plan.name}{_remarks(plan)}"


def as_dict(plan: MemoryPlan, sizes: Sizes, work: Work, budget: int | None) -> dict[str, Any]:
    """The plan and its table, for JSON."""
    table = [
        {"stage": stage.name, "on_card": stage.on_card, "bytes": stage.bytes}
        for stage in stages(plan, sizes, work)
    ]
    return {**asdict(plan), "budget_bytes": budget, "stages": table}


def table_text(plan: MemoryPlan, sizes: Sizes, work: Work, budget: int | None) -> str:
    """The plan for people: stage, what is on the card, bytes, headroom below what is usable."""
    rows = [("stage", "on the card", "peak", "headroom")]
    for stage in stages(plan, sizes, work):
        left = "" if budget is None else gibibytes(usable(budget) - stage.bytes)
        rows.append((stage.name, stage.on_card, gibibytes(stage.bytes), left))
    within = "" if budget is None else f" within {budgets.in_words(budget)}"
    return "\n".join([f"plan: {described(plan)}{within}", *aligned_columns(rows)])


def aligned_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def decode_activations(plan: MemoryPlan, sizes: Sizes, work: Work) -> int:
    """Beside the VAE's weights; pictures are decoded one at a time."""
    return decode_bytes(sizes.vae_config, work.width, work.height, sizes.itemsize, strips=plan.strips)


def decode_bytes(config: VaeConfig, width: int, height: int, itemsize: int, *, strips: int) -> int:
    """Activations of one picture's decode; in strips the coarsest level, which is whole, may be the most."""
    row = config.channels[0] * width * itemsize
    if not strips:
        return WHOLE_DECODE_FACTOR * row * height
    coarsest = config.channels[-1] * (width * height // PIXELS_PER_LATENT**2) * itemsize
    strip = 2 * row * min(strips, height)
    return max(round(STRIPS_FACTOR * row * height + STRIP_FACTOR * strip), COARSE_FACTOR * coarsest)


def table_rows(config: MMDiTConfig) -> int:
    """Rows of one step's modulation table."""
    duals = len(config.dual_attention_layers)
    joint = 2 * MODULATIONS * config.num_layers + duals * (MODULATIONS_DUAL - MODULATIONS)
    return joint - MODULATIONS + MODULATIONS_LAST_CONTEXT + FINAL_ROWS


def table_bytes(sizes: Sizes, work: Work) -> int:
    """The modulations of all steps."""
    return work.steps * work.rows * table_rows(sizes.mmdit) * sizes.mmdit.channels * sizes.itemsize


def step_bytes(plan: MemoryPlan, sizes: Sizes, work: Work) -> int:
    """Activations of one step, and the embeds and latents beside them."""
    tokens = work.text_tokens + (work.width // PIXELS_PER_TOKEN) * (work.height // PIXELS_PER_TOKEN)
    rows = work.rows if plan.one_pass or not work.guided else work.rows // 2
    unit = tokens * sizes.mmdit.channels * sizes.itemsize
    embeds = (
        work.rows * work.text_tokens * (sizes.mmdit.text_channels + sizes.mmdit.channels) * sizes.itemsize
    )
    latents = 4 * work.rows * LATENT_CHANNELS * PATCH_SIZE**2 * tokens
    return round(STEP_FACTOR * rows * unit) + embeds + latents


def _always(plan: MemoryPlan, sizes: Sizes) -> tuple[int, list[str]]:
    """Bytes that never leave, and their names."""
    parts = [
        (plan.encoders_stay, "encoders", sizes.encoders),
        (not plan.encoders_stay, "", sizes.encoder_ends),
        (plan.modulations_stay, "AdaLN", sizes.modulations),
        (plan.blocks_stay and plan.passing < 1, "blocks", sizes.blocks - _passing_bytes(plan, sizes)),
        (True, "embedders", sizes.rest),
        (plan.vae_stays, "VAE", sizes.vae),
    ]
    staying = [(name, size) for stays, name, size in parts if stays]
    return sum(size for _, size in staying), [name for name, _ in staying if name]


def _loop_blocks(plan: MemoryPlan, sizes: Sizes) -> tuple[int, str | bool]:
    """What comes for the loop."""
    if not plan.blocks_stay:
        return sizes.blocks, "blocks"
    passing = [sizes.block_bytes[i] for i in passing_blocks(plan, len(sizes.block_bytes))]
    return (2 * _room(max(passing)), f"{len(passing)} blocks passing") if passing else (0, False)


def _passing_bytes(plan: MemoryPlan, sizes: Sizes) -> int:
    return sum(sizes.block_bytes[i] for i in passing_blocks(plan, len(sizes.block_bytes)))


def _room(nbytes: int) -> int:
    """A room for a layer: each of its few dozen values begins at an aligned place."""
    return nbytes + 32 * ALIGNMENT if nbytes else 0


def _and(words: list[str], more: str | bool) -> str:
    return ", ".join([*words, *([more] if isinstance(more, str) else [])])


def _remarks(plan: MemoryPlan) -> str:
    """What the table can't show."""
    remarks = [
        *(["decode in strips"] if plan.strips else []),
        *([] if plan.one_pass else ["guidance in two passes"]),
    ]
    return f" ({', '.join(remarks)})" if remarks else ""
