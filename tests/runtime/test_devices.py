"""One picture over several cards: the same wherever the borders are, and each part where the plan says.

PyTorch has one CPU device, yet it takes "cpu" and "cpu:0" for two names: parts that hop from one to the other
go all the way that they go between cards, but for the wire. Where weights lie is seen with "meta".
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from budgets import budget_for
from torch import nn

from sd35.bench.random_weights import RandomCheckpoint
from sd35.config import RuntimeConfig
from sd35.kernels import reference
from sd35.kernels.operands import Residual
from sd35.quantization.recipe import Recipe
from sd35.request import GenerationRequest
from sd35.runtime import division, memory, mmdit, pipeline, previews, weights
from sd35.runtime import load as loading
from sd35.runtime.devices import Card
from sd35.runtime.embeds import PromptEmbeds
from sd35.runtime.encoders import encode
from sd35.runtime.load import assemble, load_pipeline
from sd35.runtime.memory import Division, MemoryPlan, Work
from sd35.runtime.pipeline import Pipeline
from sd35.runtime.previews import Previews
from sd35.runtime.residence import Residence
from sd35.runtime.stretches import Stretch, hop
from sd35.variants import VARIANTS

log = logging.getLogger(__name__)

TWO_NAMES = ("cpu", "cpu:0")
CPU, META = torch.device("cpu"), torch.device("meta")
GIB = 2**30


@pytest.fixture(scope="module")
def spread(demo_fp8: Path) -> Pipeline:
    """The demo in FP8 with two names for its device."""
    return load_pipeline(demo_fp8, RuntimeConfig(devices=TWO_NAMES, compute_dtype="fp32"))


@pytest.fixture
def small(fox: GenerationRequest) -> GenerationRequest:
    """Two steps of a small picture, with guidance."""
    return GenerationRequest(fox.prompt, seed=7, num_inference_steps=2, width=128, height=256)


def drawn(pipeline: Pipeline, request: GenerationRequest) -> np.ndarray:
    """The picture's values, encoded anew."""
    pipeline.prompts.clear()
    return np.asarray(pipeline.generate(request).images[0].image).astype(int)


def plans_of(layers: int, card: int = 1) -> Iterator[MemoryPlan]:
    """Beside, and split at both ends and in the middle."""
    yield MemoryPlan("beside", division=Division(card, card, (layers, 0)))
    for border in (1, layers // 2, layers - 1):
        yield MemoryPlan("split", division=Division(card, 0, (border, layers - border)))
    yield MemoryPlan("split", division=Division(0, card, (0, layers)))


@pytest.mark.parametrize("number", range(5))
def test_the_picture_is_that_of_one_card(number: int, spread: Pipeline, small: GenerationRequest) -> None:
    """To the last bit, wherever the border is: what hops is what the next block would have read."""
    plan = list(plans_of(len(spread.mmdit.blocks)))[number]
    spread.residence.change(MemoryPlan("resident"))
    expected = drawn(spread, small)
    spread.residence.change(plan)
    assert np.array_equal(drawn(spread, small), expected)


@pytest.mark.parametrize("skipped", [(), (0,), (1, 2), (3,), (2, 3)])
def test_blocks_are_skipped_on_every_card(skipped: tuple[int, ...], spread: Pipeline) -> None:
    """Around a border, and a card's whole range: the velocity is that of one card."""
    network = spread.mmdit
    last = len(network.blocks)
    skipped = tuple(min(i, last - 1) for i in skipped)
    latents, text = torch.randn(2, 16, 16, 16), torch.randn(2, 9, network.config.text_channels)
    pooled = torch.randn(2, network.config.pooled_channels)
    with torch.inference_mode():
        spread.residence.change(MemoryPlan("resident"))
        known = network.condition(text, pooled, torch.tensor([700.0]))
        expected = network(latents, known.context, known.table[0], skipped)
        all_blocks = network(latents, known.context, known.table[0])
        assert torch.equal(expected, all_blocks) == (not skipped)
        spread.residence.change(MemoryPlan("split", division=Division(0, 0, (2, last - 2))))
        found = network.condition(text, pooled, torch.tensor([700.0]))
        assert torch.equal(found.table, known.table)
        assert torch.equal(network(latents, found.context, found.table[0], skipped), expected)


def test_streams_hop_once_at_each_border(
    spread: Pipeline, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each step both streams to the second card and one back, settled; the last text is nobody's."""
    hops = []

    def seen(stream: Residual, device: torch.device, operations: object) -> Residual:
        """Note where it goes."""
        arrived = hop(stream, device, operations)  # type: ignore[arg-type]
        hops.append((str(device), arrived.branch is None))
        return arrived

    monkeypatch.setattr("sd35.runtime.stretches.hop", seen)
    monkeypatch.setattr(mmdit, "hop", seen)
    layers = len(spread.mmdit.blocks)
    spread.residence.change(MemoryPlan("split", division=Division(0, 0, (2, layers - 2))))
    drawn(spread, small)
    steps = small.num_inference_steps
    assert steps is not None
    outward = [settled for device, settled in hops if device == "cpu:0"]
    assert outward == [True] * 2 * steps
    assert len(hops) == (2 + 2 + 1) * steps  # the first card's own stretch has both streams already


def test_a_stream_is_settled_before_it_hops() -> None:
    """Tokens and gated branch as one tensor, as the next norm reads them; one that is there is left alone."""
    stream = Residual(torch.randn(1, 3, 8), torch.randn(1, 3, 8), torch.randn(1, 8))
    assert hop(stream, CPU, reference) is stream
    there = hop(stream, torch.device("cpu:0"), reference)
    assert there.branch is None
    assert torch.equal(there.tokens, reference.settle(stream))


def places(module: nn.Module) -> set[str]:
    """The kinds of devices that all of its values are on."""
    return {tensor.device.type for tensor in [*module.parameters(), *module.buffers()]}


@pytest.mark.parametrize("number", range(5))
def test_every_part_lies_where_the_plan_says(number: int, demo_fp8: Path) -> None:
    """With "meta" for the second card: encoders, VAE, each block with its AdaLN layers, and all else."""
    loaded = load_pipeline(demo_fp8, RuntimeConfig(device="cpu"))
    plan = list(plans_of(len(loaded.mmdit.blocks)))[number]
    divided = plan.division
    assert divided is not None
    cards = [Card(CPU, None), Card(META, None)]
    Residence(loaded.text_encoders, loaded.mmdit, loaded.vae, loaded.residence.sizes, cards, plan)
    kinds = ("cpu", "meta")
    encoders = loaded.text_encoders
    assert encoders.t5 is not None
    for encoder in (encoders.clip_l, encoders.clip_g, encoders.t5):
        assert places(encoder.model) == {kinds[divided.encoders]}
        assert encoder.device.type == kinds[divided.encoders]
    assert places(loaded.vae) == {kinds[divided.vae]}
    for kind, numbers in zip(kinds, division.ranges(divided), strict=True):
        assert all(places(loaded.mmdit.blocks[i]) == {kind} for i in numbers)
    rest = [child for name, child in loaded.mmdit.named_children() if name != "blocks"]
    assert {kind for child in rest for kind in places(child)} == {"cpu"}
    assert loaded.mmdit.pos_embed.device == CPU


def test_bytes_on_each_card_are_the_arithmetics(demo_fp8: Path) -> None:
    """What lies on a card is, to the byte, what the plan's table says of it."""
    loaded = load_pipeline(demo_fp8, RuntimeConfig(device="cpu", compute_dtype="bf16"))
    sizes, layers = loaded.residence.sizes, len(loaded.mmdit.blocks)
    plan = MemoryPlan("split", division=Division(1, 0, (2, layers - 2)))
    residence = Residence(
        loaded.text_encoders, loaded.mmdit, loaded.vae, sizes, [Card(CPU, None), Card(META, None)], plan
    )
    tensors = {
        id(tensor): tensor for part in residence.parts() for tensor in [*part.parameters(), *part.buffers()]
    }
    for card, kind in enumerate(("cpu", "meta")):
        held = sum(tensor.nbytes for tensor in tensors.values() if tensor.device.type == kind)
        assert plan.division is not None
        assert held == division.held_by(card, plan.division, sizes)[1]


def test_a_block_is_given_what_it_reads_on_its_own_card(demo_fp8: Path) -> None:
    """Both streams and its rows of the table come to "meta", where the second card's blocks are."""
    network = load_pipeline(demo_fp8, RuntimeConfig(device="cpu", compute_dtype="fp32")).mmdit
    layers, seen = len(network.blocks), []
    network.stretches = (Stretch(range(2), CPU), Stretch(range(2, layers), META))
    for i, block in enumerate(network.blocks):
        if i >= 2:
            block.to(META)
        block.register_forward_pre_hook(
            lambda _, given: seen.append([given[0].tokens.device, given[1].tokens.device, given[2].device])
        )
    table = torch.randn(1, sum(network._table_rows()), network.config.channels)
    context = torch.randn(1, 9, network.config.channels)
    with pytest.raises(NotImplementedError, match="meta"):  # values that are nowhere can't come home
        network(torch.randn(1, 16, 8, 8), context, table)
    assert seen == [[CPU] * 3] * 2 + [[META] * 3] * (layers - 2)


def test_weights_are_read_to_their_own_cards(
    demo_fp8: Path, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading asks for each block's device, and no card holds what is another's meanwhile."""
    read: dict[str, torch.device] = {}
    fill = weights._fill_layer

    def seen(module: nn.Module, path: str, layers: tuple[str, ...], source: weights._Source) -> None:
        """Note where the layer goes."""
        if isinstance(module, mmdit.MMDiT):
            read[path] = source.placement.home
        fill(module, path, layers, source)

    def seen_part(load_part: Callable[..., object], number: int) -> Callable[..., object]:
        """Note where a part goes: its placement is the argument of that number."""

        def load_seen(*given: object) -> object:
            placement = given[number]
            assert isinstance(placement, weights.Placement)
            parts.append(placement.home)
            return load_part(*given)

        return load_seen

    parts: list[torch.device] = []
    monkeypatch.setattr(loading, "load_text_encoders", seen_part(loading.load_text_encoders, 3))
    monkeypatch.setattr(loading, "_load_vae", seen_part(loading._load_vae, 1))
    monkeypatch.setattr(weights, "_fill_layer", seen)
    sizes = load_pipeline(demo_fp8, RuntimeConfig(device="cpu")).residence.sizes
    layers, work = len(sizes.block_bytes), Work.of(_settings("demo"), 1)
    plan = MemoryPlan("split", division=Division(1, 0, (2, layers - 2)))
    monkeypatch.setattr(loading, "choose_or_smallest", lambda *_: plan)
    parts.clear()
    loaded = load_pipeline(demo_fp8, RuntimeConfig(devices=TWO_NAMES))
    assert loaded.residence.plan == plan
    assert division.fits(plan, sizes, work, [None, None])
    second = {int(path.split(".")[1]) for path, home in read.items() if home == torch.device("cpu:0")}
    assert second == set(range(2, layers))
    assert all(home == CPU for path, home in read.items() if not path.startswith("blocks."))
    assert loaded.text_encoders.clip_l.device == torch.device("cpu:0")
    assert parts == [torch.device("cpu:0"), CPU]


def test_colours_are_found_on_the_vaes_card(spread: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The VAE gets its fields where it is, and the matrix goes where the latents are."""
    decoded = []

    def flat(vae: object, field: torch.Tensor) -> torch.Tensor:
        """A grey picture, on the host."""
        decoded.append(field.device)
        side = 8 * field.shape[-1]
        return torch.full((side, side, 3), 128, dtype=torch.uint8)

    monkeypatch.setattr(previews, "decode_pixels", flat)
    colours = previews.LatentColours()
    colours.fit(spread.vae, META, CPU)
    assert set(decoded) == {META}
    assert colours.paint(torch.zeros(1, 16, 4, 4)).device == CPU
    away = previews.LatentColours()
    away.fit(spread.vae, CPU, META)
    assert away.paint(torch.zeros(1, 16, 4, 4, device=META)).device == META


def test_embeds_come_to_the_transformers_card(
    spread: Pipeline, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both tensors of what the encoders gave, before the loop."""
    embeds = PromptEmbeds(torch.ones(1, 2, 3), torch.ones(1, 4)).to(META)
    assert {embeds.sequence.device, embeds.pooled.device} == {META}
    spread.residence.change(next(plans_of(len(spread.mmdit.blocks))))
    asked = []
    monkeypatch.setattr(PromptEmbeds, "to", lambda self, device: asked.append(device) or self)
    drawn(spread, small)
    assert asked == [torch.device("cpu:0")] * 2 + [CPU]  # the negative prompt's, the prompt's, both


def test_kept_prompts_follow_the_encoders(spread: Pipeline, small: GenerationRequest) -> None:
    """What was encoded on another device before the plan changed is joined with what is encoded now."""
    spread.residence.change(MemoryPlan("resident"))
    drawn(spread, small)
    for encoder in (spread.text_encoders.clip_l, spread.text_encoders.clip_g, spread.text_encoders.t5):
        assert encoder is not None
        encoder.device = META
    embeds = encode(spread.text_encoders, small.pictures(spread.variant), spread.prompts)
    assert {embeds.sequence.device, embeds.pooled.device} == {META}


def test_previews_are_painted_where_the_latents_are(spread: Pipeline, small: GenerationRequest) -> None:
    """The VAE's colours are found on its card and used on the first: as with one card."""
    shown: list[torch.Tensor] = []
    for plan in (MemoryPlan("resident"), next(plans_of(len(spread.mmdit.blocks)))):
        spread.residence.change(plan)
        replace(spread, colours=type(spread.colours)()).draw(
            small.pictures(spread.variant),
            previews=Previews(frozenset({1}), lambda _, picture: shown.append(picture)),
        )
    assert torch.equal(*shown)


def test_budgets_divide_at_load(demo_fp8: Path, small: GenerationRequest) -> None:
    """Loaded with too little on the first, the demo draws the picture of one that is all in one place."""
    free = load_pipeline(demo_fp8, RuntimeConfig(device="cpu", compute_dtype="fp32"))
    sizes, native = free.residence.sizes, Work.of(_settings("demo"), 1)
    tight = budget_for(memory.peak(MemoryPlan("resident"), sizes, native) - sizes.encoders)
    config = RuntimeConfig(devices=TWO_NAMES, compute_dtype="fp32", max_vram=(tight, 10 * tight))
    beside = load_pipeline(demo_fp8, config)
    assert beside.residence.plan.name == "beside"
    assert np.array_equal(drawn(beside, small), drawn(free, small))
    larger = Work(512, 512, 1, 28, 141, guided=True)
    assert beside.residence.needs_change(larger) == (
        not division.fits(beside.residence.plan, sizes, larger, [tight, 10 * tight])
    )


@pytest.mark.parametrize("stage", ["encode", "denoise", "decode"])
def test_a_full_card_leads_to_the_first_alone(
    stage: str,
    spread: Pipeline,
    small: GenerationRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Said aloud once; all parts are gathered for the first card, and the picture is drawn after all."""
    spread.residence.change(MemoryPlan("resident"))
    expected = drawn(spread, small)
    layers = len(spread.mmdit.blocks)
    spread.residence.change(MemoryPlan("split", division=Division(1, 1, (2, layers - 2))))
    original, left = getattr(pipeline, stage), [1]

    def full(*args: object, **kwargs: object) -> object:
        """Fail as a card does, once."""
        if left:
            left.pop()
            raise torch.cuda.OutOfMemoryError("planted")
        return original(*args, **kwargs)

    monkeypatch.setattr(pipeline, stage, full)
    with caplog.at_level(logging.WARNING, "sd35"):
        assert np.abs(drawn(spread, small) - expected).max() <= 1
    assert spread.residence.plan.moves
    assert spread.text_encoders.clip_l.device == CPU
    assert len(spread.mmdit.stretches) == 1
    assert "no room for the plan 'split'" in caplog.text


def test_a_recording_is_of_one_card(spread: Pipeline) -> None:
    """Steps are replayed where the transformer is whole, and not where its blocks are divided."""
    recorder = object()
    recording = replace(spread, recorder=recorder)  # type: ignore[arg-type]
    usable = []
    for plan in plans_of(len(spread.mmdit.blocks)):
        spread.residence.change(plan)
        with recording.recording() as found:
            usable.append(found)
    assert usable == [recorder, None, None, None, None]


def _settings(variant: str) -> "memory.Settings":
    return GenerationRequest("").pictures(VARIANTS[variant])[0].settings


needs_two = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason=f"two cards are needed, {torch.cuda.device_count()} are here"
)
CARDS = ("cuda:0", "cuda:1")
# Medium in FP8: bounds in GiB that lead to each plan, arithmetic by `division.py`.
BOUNDS = {"beside": (4.0, 14.0), "split": (2.6, 14.0)}


def medium(max_vram: tuple[int, ...] | None, devices: tuple[str, ...]) -> Pipeline:
    """Medium of random weights in FP8, on these cards, without graphs: pictures are to be compared."""
    config = RuntimeConfig(devices=devices, max_vram=max_vram, cuda_graphs=False)
    checkpoint = RandomCheckpoint("medium", torch.device(devices[0]), Recipe())
    pipeline = assemble(checkpoint, config, VARIANTS["medium"], "random")
    pipeline.rest()  # drawing and quantizing leave holes between the weights
    pipeline.wake()
    return pipeline


@pytest.fixture(scope="module")
def on_one_card() -> np.ndarray:
    """Medium's picture by the first card alone."""
    alone = medium(None, CARDS[:1])
    picture = drawn(alone, GenerationRequest("a fox", seed=3, num_inference_steps=4))
    del alone
    torch.cuda.empty_cache()
    return picture


@pytest.mark.gpu
@needs_two
@pytest.mark.parametrize("name", BOUNDS)
def test_two_cards_draw_the_picture_of_one_within_their_caps(name: str, on_one_card: np.ndarray) -> None:
    """Under a cap on each allocator the plan holds, peaks are the arithmetic's to 5%, pixels those of one."""
    bounds = tuple(round(amount * GIB) for amount in BOUNDS[name])
    divided = medium(bounds, CARDS)
    assert divided.residence.plan.name == name
    torch.cuda.empty_cache()
    devices = [torch.device(card) for card in CARDS]
    for device, bound in zip(devices, bounds, strict=True):
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(bound / total, device)
        torch.cuda.reset_peak_memory_stats(device)
    try:
        request = GenerationRequest("a fox", seed=3, num_inference_steps=4)
        picture = drawn(divided, request)
        assert divided.residence.plan.name == name
        assert np.abs(picture - on_one_card).max() <= 3
        work = Work.of(request.pictures(divided.variant)[0].settings, 1)
        expected = division.peaks(divided.residence.plan, divided.residence.sizes, work)
        measured = [torch.cuda.max_memory_allocated(device) for device in devices]
        reserved = [torch.cuda.max_memory_reserved(device) for device in devices]
        log.info("%s: peaks %s, by arithmetic %s, reserved %s", name, measured, expected, reserved)
        assert measured == pytest.approx(expected, rel=0.05)
        assert all(most <= bound for most, bound in zip(reserved, bounds, strict=True))
    finally:
        for device in devices:
            torch.cuda.set_per_process_memory_fraction(1.0, device)


@pytest.mark.gpu
@needs_two
def test_a_cap_that_is_broken_leads_to_the_first_card(
    on_one_card: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    """The second card has less than it promised: out of memory, then the picture by the first alone."""
    bounds = tuple(round(amount * GIB) for amount in BOUNDS["beside"])
    divided = medium(bounds, CARDS)
    torch.cuda.empty_cache()
    second = torch.device(CARDS[1])
    held = torch.cuda.memory_allocated(second)
    total = torch.cuda.get_device_properties(second).total_memory
    torch.cuda.set_per_process_memory_fraction((held + 256 * 2**20) / total, second)
    try:
        with caplog.at_level(logging.WARNING, "sd35"):
            picture = drawn(divided, GenerationRequest("a fox", seed=3, num_inference_steps=4))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, second)
    assert divided.residence.plan.moves
    assert "no room for the plan 'beside'" in caplog.text
    assert torch.cuda.memory_allocated(second) < 64 * 2**20
    assert np.abs(picture - on_one_card).max() <= 6  # in strips and two passes, of noise


@pytest.mark.gpu
@needs_two
def test_graphs_replay_beside(demo_fp8: Path, small: GenerationRequest) -> None:
    """With the transformer whole, steps are replayed as on one card, encoders and VAE being elsewhere."""
    alone = load_pipeline(demo_fp8, RuntimeConfig(device=CARDS[0]))
    expected = drawn(alone, small)
    divided = load_pipeline(demo_fp8, RuntimeConfig(devices=CARDS))
    layers = len(divided.mmdit.blocks)
    divided.residence.change(MemoryPlan("beside", division=Division(1, 1, (layers, 0))))
    with divided.recording() as recorder:
        assert recorder is not None
    for _ in range(2):
        assert np.abs(drawn(divided, small) - expected).max() <= 3
