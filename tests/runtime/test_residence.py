"""Plans carried out on the demo: the same pictures whatever moves, and no end when memory is short."""

import logging
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from budgets import budget_for
from torch.nn import functional

from sd35.config import RuntimeConfig
from sd35.errors import DeviceError
from sd35.fp8 import ScaledTensor
from sd35.kernels.operands import Product
from sd35.kernels.reference import fp8_values
from sd35.request import GenerationRequest
from sd35.runtime import load, memory, pipeline
from sd35.runtime.budget import usable
from sd35.runtime.graphs import Recorder
from sd35.runtime.linear import Fp8Linear
from sd35.runtime.load import load_pipeline
from sd35.runtime.memory import MemoryPlan, Work
from sd35.runtime.moving import aligned
from sd35.runtime.pipeline import Pipeline
from sd35.runtime.relay import Relay

PLANS = list(memory.ladder())
EACH = [PLANS[0], *(PLANS[1 + 3 * rung + rung % 3] for rung in range(len(PLANS) // 3))]  # decodes in turn
CPU = RuntimeConfig(device="cpu", compute_dtype="fp32")


@pytest.fixture(scope="module")
def movable(demo_fp8: Path) -> Pipeline:
    """The demo in FP8, whose plan tests may change."""
    return load_pipeline(demo_fp8, CPU)


@pytest.fixture
def small(fox: GenerationRequest) -> GenerationRequest:
    """Two steps of a small picture, with guidance."""
    return GenerationRequest(fox.prompt, seed=7, num_inference_steps=2, width=128, height=256)


def drawn(pipeline: Pipeline, request: GenerationRequest) -> np.ndarray:
    """The picture's values, encoded anew."""
    pipeline.prompts.clear()
    return np.asarray(pipeline.generate(request).images[0].image).astype(int)


def bytes_of_modules(*modules: torch.nn.Module) -> int:
    """The room that their values take."""
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    return sum(aligned(tensor.nbytes) for tensor in tensors)


@pytest.mark.parametrize("plan", EACH, ids=[f"{i}-{plan.name}" for i, plan in enumerate(EACH)])
def test_the_picture_is_the_residents(plan: MemoryPlan, movable: Pipeline, small: GenerationRequest) -> None:
    """By every plan, to the last bit where nothing is computed in pieces, and twice in a row."""
    movable.residence.change(PLANS[0])
    expected = drawn(movable, small)
    movable.residence.change(plan)
    in_pieces = plan.strips or not plan.one_pass
    for _ in range(2):
        assert np.abs(drawn(movable, small) - expected).max() <= (1 if in_pieces else 0)
    assert movable.residence.dock.held == 0


def unfinished(layer: Fp8Linear, x: ScaledTensor) -> Product:
    """The layer's product as a card's tensor cores leave it: scales and bias are the reader's to apply."""
    values = functional.linear(fp8_values(x.data, torch.float32), fp8_values(layer.data, torch.float32))
    return Product(values, x.scale, layer.scale.flatten(), layer.bias)


def test_threads_that_share_a_pipeline_take_turns(movable: Pipeline, small: GenerationRequest) -> None:
    """Weights that travel for one drawing are not sent home by another: each gets its own picture."""
    movable.residence.change(next(plan for plan in PLANS if plan.passing == 1))
    requests = [replace(small, seed=seed, width=64, height=64) for seed in range(4)]
    alone = [drawn(movable, request) for request in requests]
    with ThreadPoolExecutor(len(requests)) as threads:
        together = list(threads.map(movable.generate, requests))
    assert all(np.array_equal(a.images[0].image, b) for a, b in zip(together, alone, strict=True))


def test_a_block_that_has_gone_leaves_its_last_product_whole(
    demo_fp8: Path, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next block finishes it, when another's weights are in the room already."""
    monkeypatch.setattr(Fp8Linear, "_product", unfinished)
    pipeline = load_pipeline(demo_fp8, replace(CPU, activations="fp8"))
    expected = drawn(pipeline, small)
    pipeline.residence.change(next(plan for plan in PLANS if plan.passing == 1 and plan.one_pass))
    assert np.abs(drawn(pipeline, small) - expected).max() <= 1


def test_the_smallest_plan_holds_what_its_table_says(movable: Pipeline, small: GenerationRequest) -> None:
    """Of weights that move there are never more on the device than the largest stage's, to 1%."""
    movable.residence.change(PLANS[-1])
    residence = movable.residence
    residence.dock.peak = 0
    drawn(movable, small)
    work = Work.of(small.pictures(movable.variant)[0].settings, 1)
    said = (
        max(stage.weights for stage in memory.stages(PLANS[-1], residence.sizes, work)) - residence.sizes.rest
    )
    assert residence.dock.peak <= 1.01 * said
    assert residence.dock.peak == pytest.approx(said, rel=0.05)


def test_adaln_passes_one_layer_at_a_time(movable: Pipeline) -> None:
    """The table is made with two AdaLN layers on the device at most, and is the same to the last bit."""
    mmdit, residence = movable.mmdit, movable.residence
    text = torch.randn(2, 9, mmdit.config.text_channels)
    pooled = torch.randn(2, mmdit.config.pooled_channels)
    timesteps = torch.tensor([900.0, 500.0, 3.0])
    residence.change(PLANS[0])
    with torch.inference_mode():
        expected = mmdit.condition(text, pooled, timesteps)
        residence.change(next(plan for plan in PLANS if not plan.modulations_stay))
        assert (residence.plan.modulations_stay, residence.plan.blocks_stay) == (False, True)
        residence.dock.peak = 0
        found = mmdit.condition(text, pooled, timesteps)
    assert torch.equal(found.table, expected.table)
    assert residence.dock.peak == 2 * max(bytes_of_modules(layer) for layer in mmdit.modulation_layers())
    assert residence.dock.held == 0


def test_blocks_come_when_they_are_brought(movable: Pipeline) -> None:
    """Before a loop is recorded: all that the transformer's call would bring, and nothing of the others'."""
    movable.residence.change(next(plan for plan in PLANS if not plan.blocks_stay))
    movable.residence.bring(movable.vae)
    brought = movable.residence.dock.held
    movable.residence.bring(movable.mmdit)
    sizes = movable.residence.sizes
    assert movable.residence.dock.held - brought == pytest.approx(sizes.blocks, rel=0.02)
    assert brought == pytest.approx(sizes.vae, rel=0.02)
    movable.residence.change(PLANS[0])
    assert movable.residence.dock.held == 0


def test_kept_prompts_need_no_encoders(movable: Pipeline, small: GenerationRequest) -> None:
    """A second request with the same texts moves no encoder: nothing visits in the encode stage."""
    movable.residence.change(next(plan for plan in PLANS if not plan.encoders_stay))
    movable.generate(small)
    movable.residence.dock.peak = 0
    movable.generate(small)
    assert movable.residence.dock.peak == 0


def relay_threads() -> list[str]:
    """Of those that fill buckets, whoever's they are."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("sd35-relay")]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_whoever_fills_buckets_is_gone_with_the_stage(
    error: type[BaseException] | None, movable: Pipeline, small: GenerationRequest
) -> None:
    """Threads that bring the encoders' layers are there in the encode stage alone, however that ends."""
    movable.residence.change(next(plan for plan in PLANS if not plan.encoders_stay))
    expected = drawn(movable, small)
    seen: list[list[str]] = []

    def listen(*_: object) -> None:
        """In the middle of T5: who is there now, and perhaps no further."""
        seen.append(relay_threads())
        if error is not None:
            raise error

    assert movable.text_encoders.t5 is not None
    hook = movable.text_encoders.t5.layers()[1].register_forward_hook(listen)
    if error is None:
        drawn(movable, small)
    else:
        with pytest.raises(error):
            drawn(movable, small)
    hook.remove()
    assert seen[0]
    assert relay_threads() == []
    assert movable.residence.dock.held == 0
    assert np.array_equal(drawn(movable, small), expected)


def test_buckets_go_with_the_plan(movable: Pipeline, small: GenerationRequest) -> None:
    """Memory that is locked for a plan is nobody's once another begins, or the device is given back."""
    few = next(plan for plan in PLANS if not plan.encoders_stay)
    for leave in (lambda: movable.residence.change(PLANS[0]), movable.rest):
        movable.residence.change(few)
        drawn(movable, small)
        locked = weakref.ref(movable.residence._relay._memory)  # type: ignore[union-attr]
        leave()
        assert locked() is None
    movable.wake()


def test_two_new_texts_bring_each_layer_once(
    movable: Pipeline, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both prompts are new: each text by itself, and the encoders' layers come for both together."""
    sent: list[int] = []
    original = Relay.send
    monkeypatch.setattr(
        Relay, "send", lambda self, load, *rest: sent.append(load.nbytes) or original(self, load, *rest)
    )
    movable.residence.change(next(plan for plan in PLANS if not plan.encoders_stay))
    drawn(movable, small)
    assert len(sent) == sum(len(one.layers()) for one in movable.residence._text_encoders())


def test_a_budget_decides_at_load(demo_fp8: Path, small: GenerationRequest) -> None:
    """A pipeline that is loaded for little memory draws the picture of one that has all."""
    free = load_pipeline(demo_fp8, CPU)
    native = Work.of(GenerationRequest("").pictures(free.variant)[0].settings, 1)
    budget = budget_for(memory.peak(PLANS[-1], free.residence.sizes, native))
    tight = load_pipeline(demo_fp8, RuntimeConfig(device="cpu", compute_dtype="fp32", max_vram=budget))
    assert free.residence.plan == PLANS[0]
    assert memory.peak(tight.residence.plan, free.residence.sizes, native) <= usable(budget)
    assert tight.residence.plan.moves
    assert np.abs(drawn(tight, small) - drawn(free, small)).max() <= 1


def test_larger_work_takes_a_smaller_plan(demo_fp8: Path) -> None:
    """A request beyond the plan's reach changes the plan; one beyond all plans is told what would fit."""
    sizes = load_pipeline(demo_fp8, CPU).residence.sizes
    little, more = (Work(side, side, 1, 28, 141, True) for side in (256, 512))
    budget = budget_for(memory.peak(PLANS[0], sizes, little))
    config = RuntimeConfig(device="cpu", compute_dtype="fp32", max_vram=budget)
    pipeline = load_pipeline(demo_fp8, config)
    assert pipeline.residence.plan == PLANS[0]
    assert pipeline.residence.fit(more) == (memory.peak(PLANS[0], sizes, more) > usable(budget))
    assert memory.peak(pipeline.residence.plan, sizes, more) <= usable(budget)
    with pytest.raises(DeviceError, match="largest square that fits"):
        pipeline.generate(
            GenerationRequest("a fox", width=512, height=512, num_images=64, num_inference_steps=28)
        )


def test_sharers_hear_before_parts_move(demo_fp8: Path) -> None:
    """Another plan sends all parts home; who shares some is told before."""
    residence = load_pipeline(demo_fp8, CPU).residence
    seen: list[MemoryPlan] = []
    residence.before_change = lambda: seen.append(residence.plan)
    residence.change(PLANS[-1])
    assert seen == [PLANS[0]]


@pytest.mark.parametrize(("plan", "forgotten"), [(PLANS[0], 0), (PLANS[1], 1)])
def test_recordings_end_with_the_addresses_that_they_know(
    plan: MemoryPlan, forgotten: int, movable: Pipeline
) -> None:
    """Where weights move between stages a loop's recordings are gone after it; else they are kept."""
    recorder = Mock()
    movable.residence.change(plan)
    recording = replace(movable, recorder=recorder)
    with recording.recording() as found:
        assert found is recorder
        assert recorder.forget.call_count == 0
    assert recorder.forget.call_count == forgotten


def failing(times: int, original: Callable) -> Callable:  # type: ignore[type-arg]
    """The function, out of memory for the first so many calls."""
    left = [times]

    def planted(*args: object, **kwargs: object) -> object:
        """Fail as a card does."""
        if left[0] > 0:
            left[0] -= 1
            raise torch.cuda.OutOfMemoryError("planted")
        return original(*args, **kwargs)

    return planted


@pytest.mark.parametrize("stage", ["encode", "denoise", "decode"])
def test_out_of_memory_is_followed_by_a_smaller_plan(
    stage: str,
    movable: Pipeline,
    small: GenerationRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In any stage: said aloud once, and the picture is drawn after all."""
    movable.residence.change(PLANS[0])
    expected = drawn(movable, small)
    monkeypatch.setattr(pipeline, stage, failing(1, getattr(pipeline, stage)))
    with caplog.at_level(logging.WARNING, "sd35"):
        assert np.abs(drawn(movable, small) - expected).max() <= 1
    assert movable.residence.plan != PLANS[0]
    assert [record.getMessage()[:26] for record in caplog.records] == ["The device had no room for"]


@pytest.mark.parametrize("plan", [PLANS[1], PLANS[-1]])
def test_after_the_last_failure_the_next_request_is_served(
    plan: MemoryPlan, movable: Pipeline, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No room twice, or below the smallest plan: one sentence with that plan and a size; then all is well."""
    movable.residence.change(PLANS[0])
    expected = drawn(movable, small)
    movable.residence.change(plan)
    monkeypatch.setattr(pipeline, "decode", failing(2 if plan != PLANS[-1] else 1, pipeline.decode))
    with pytest.raises(DeviceError, match=r"^128x256 pixels, .* had less: .* fits") as caught:
        movable.generate(small)
    assert f"by the plan '{memory.described(movable.residence.plan)}'" in str(caught.value)
    assert movable.residence.dock.held == 0
    assert np.abs(drawn(movable, small) - expected).max() <= 1


def test_a_failure_in_the_middle_of_a_parade(movable: Pipeline, small: GenerationRequest) -> None:
    """A block that fails while it visits is at home afterwards, and so is all that was on its way."""
    movable.residence.change(PLANS[-1])
    expected = drawn(movable, small)
    hook = movable.mmdit.blocks[2].register_forward_pre_hook(failing(1, lambda *_: None))
    with pytest.raises(DeviceError):
        movable.generate(small)
    hook.remove()
    assert movable.residence.dock.held == 0
    assert np.array_equal(drawn(movable, small), expected)


@pytest.mark.parametrize("times", [1, 2])
def test_out_of_memory_at_load(
    times: int, demo_fp8: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once: loaded by a smaller plan, said aloud. Twice: one sentence."""
    monkeypatch.setattr(load, "_load_vae", failing(times, load._load_vae))
    if times == 2:
        with pytest.raises(DeviceError, match="largest square that fits"):
            load_pipeline(demo_fp8, CPU)
        return
    with caplog.at_level(logging.WARNING, "sd35"):
        assert load_pipeline(demo_fp8, CPU).residence.plan.moves
    assert "had no room" in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize("plan", EACH[1:], ids=[f"{i}-{plan.name}" for i, plan in enumerate(EACH[1:])])
def test_on_a_card(plan: MemoryPlan, demo_fp8: Path, small: GenerationRequest) -> None:
    """What visits a card computes there what it computes when it stays, and afterwards its memory is free."""
    on_card = load_pipeline(demo_fp8, RuntimeConfig(device="cuda", cuda_graphs=False))
    expected = drawn(on_card, small)
    on_card.residence.change(plan)
    drawn(on_card, small)
    before = torch.cuda.memory_allocated()
    assert np.abs(drawn(on_card, small) - expected).max() <= (3 if plan.strips or not plan.one_pass else 0)
    assert torch.cuda.memory_allocated() <= before


@pytest.mark.gpu
@pytest.mark.parametrize(
    "plan", [p for p in EACH[1:] if not p.passing], ids=lambda plan: str(EACH.index(plan))
)
def test_a_loop_is_recorded_where_weights_move_between_stages(
    plan: MemoryPlan, demo_fp8: Path, small: GenerationRequest
) -> None:
    """Replayed steps give the picture of steps that were not, and leave no memory behind them."""
    eager = load_pipeline(demo_fp8, RuntimeConfig(device="cuda", cuda_graphs=False))
    eager.residence.change(plan)
    expected = drawn(eager, small)
    recorded = replace(eager, recorder=Recorder(lambda: eager.residence.bring(eager.mmdit)))
    assert np.array_equal(drawn(recorded, small), expected)
    before = torch.cuda.memory_allocated()
    assert np.array_equal(drawn(recorded, small), expected)
    assert torch.cuda.memory_allocated() <= before


@pytest.mark.gpu
def test_a_card_that_is_full(demo_fp8: Path, small: GenerationRequest) -> None:
    """A true out of memory: drawn by a smaller plan after all, or one sentence; then all is as it was."""
    on_card = load_pipeline(demo_fp8, RuntimeConfig(device="cuda"))
    expected = drawn(on_card, small)
    on_card.recorder.forget()  # type: ignore[union-attr]
    torch.cuda.empty_cache()
    baseline, total = torch.cuda.memory_reserved(), torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction((baseline + (24 << 20)) / total)
        with pytest.raises(DeviceError, match="largest square that fits"):
            on_card.generate(replace(small, width=512, height=512, num_images=64))
        assert on_card.residence.plan != PLANS[0]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert np.abs(drawn(on_card, small) - expected).max() <= 3
    assert on_card.residence.dock.held == 0
