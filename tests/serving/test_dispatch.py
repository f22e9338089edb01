"""Which jobs a worker gets next, and which together."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from sd35.serving.dispatch import Dispatcher
from sd35.serving.fair_queue import FairQueue
from sd35.serving.jobs import Job, Priority, Spec
from sd35.serving.live import LiveJob
from sd35.serving.settings import Model

SPEC = Spec(
    prompt="a fox", negative_prompt="", model="a", width=64, height=64,
    num_inference_steps=10, guidance_scale=4.0, seed=0, n=1,
)  # fmt: skip
SKIP_S = 30.0


class Desk:
    """A queue, its dispatcher and a clock that is moved by hand."""

    def __init__(self, max_batch: int = 1) -> None:
        self.now = 0.0
        self.queue, self.lives = FairQueue(1000, 1000), {}
        self.dispatcher = Dispatcher(
            self.queue, self.lives, max_batch=max_batch, skip_s=SKIP_S, clock=lambda: self.now
        )

    def put(self, name: str, *, priority: Priority = Priority.NORMAL, **spec: object) -> LiveJob:
        """Let a job wait."""
        job = Job(spec=replace(SPEC, **spec), id=name, priority=priority)
        self.lives[name] = LiveJob(job, Model.parse(f"{job.spec.model}@demo=demo"))
        self.queue.put(job)
        return self.lives[name]

    def take(self, *held: str, elsewhere: Mapping[str, float] | None = None) -> list[str]:
        """Names of the batch that a worker with these models gets."""
        return [live.job.id for live in self.dispatcher.take(held, elsewhere or {})]


def test_alternating_models_are_drawn_in_rows() -> None:
    """A, B, A, B on a worker that holds one: two loads, not four."""
    desk = Desk()
    for name in ("a1", "b1", "a2", "b2"):
        desk.put(name, model=name[0])
    order, held, loads = [], "", 0
    while batch := desk.take(held):
        order += batch
        loads += batch[0][0] != held
        held = batch[0][0]
    assert (order, loads) == (["a1", "a2", "b1", "b2"], 2)


def test_nobody_is_passed_over_for_longer_than_the_bound() -> None:
    """However many come for the model that is held, the other's turn comes after `skip_s`."""
    desk = Desk()
    desk.put("b0", model="b")
    for count in range(40):
        desk.put(f"a{count}")
        if (taken := desk.take("a")) == ["b0"]:
            break
        desk.now += 1.0
    assert taken == ["b0"]
    assert desk.now == pytest.approx(SKIP_S, abs=1)


def test_nobody_passes_a_higher_priority() -> None:
    """A held model is no reason to let an urgent job wait, nor is a batch to take a lesser one along."""
    desk = Desk(max_batch=4)
    desk.put("low")
    desk.put("high", model="b", priority=Priority.HIGH)
    desk.put("high too", model="b", priority=Priority.HIGH)
    assert desk.take("a") == ["high", "high too"]
    assert desk.take("a") == ["low"]


def test_job_is_left_to_the_worker_that_holds_its_model() -> None:
    """For as long as a load would take; another job is taken instead, if there is one."""
    desk = Desk()
    desk.put("b1", model="b")
    assert desk.take("a", elsewhere={"b": 8.0}) == []
    desk.put("c1", model="c")
    assert desk.take("a", elsewhere={"b": 8.0}) == ["c1"]
    desk.now = 7.9
    assert desk.take("a", elsewhere={"b": 8.0}) == []
    desk.now = 8.1
    assert desk.take("a", elsewhere={"b": 8.0}) == ["b1"]


def test_batch_holds_what_can_share_its_steps() -> None:
    """Same model, size, steps and kind of guidance; seeds, prompts and strength may differ."""
    desk = Desk(max_batch=8)
    desk.put("first")
    desk.put("prompt", prompt="a cat", seed=5, guidance_scale=7.5, negative_prompt="a dog")
    for name, change in {
        "model": {"model": "b"},
        "width": {"width": 128},
        "height": {"height": 128},
        "steps": {"num_inference_steps": 9},
        "unguided": {"guidance_scale": 1.0},
    }.items():
        desk.put(name, **change)
    desk.put("last", n=2)
    assert desk.take() == ["first", "prompt", "last"]


def test_batch_is_bounded_by_pictures() -> None:
    """A job that would make it too large waits; a smaller one behind it may come along."""
    desk = Desk(max_batch=4)
    for name, n in (("two", 2), ("three", 3), ("also two", 2), ("one", 1)):
        desk.put(name, n=n)
    assert desk.take() == ["two", "also two"]
    assert desk.take() == ["three", "one"]


def test_incompatible_job_is_passed_within_the_bound_only() -> None:
    """A job of another size does not block a batch, until it has been passed for too long."""
    desk = Desk(max_batch=2)
    desk.put("a1")
    desk.put("wide", width=128)
    desk.put("a2")
    assert desk.take("a") == ["a1", "a2"]
    desk.now = SKIP_S
    desk.put("a3")
    assert desk.take("a") == ["wide"]


def test_suspect_is_drawn_alone() -> None:
    """A job that a worker may have died of neither takes others along nor goes along."""
    desk = Desk(max_batch=4)
    desk.put("suspect").is_suspect = True
    desk.put("good")
    desk.put("other suspect").is_suspect = True
    desk.put("good too")
    assert [desk.take() for _ in range(3)] == [["suspect"], ["good", "good too"], ["other suspect"]]


def test_only_equal_strengths_are_drawn_together() -> None:
    """Pictures that begin at another step can't share steps; those of equal strength can, whatever image."""
    desk = Desk(max_batch=4)
    desk.put("text")
    desk.put("weak", image="a" * 64, strength=0.3)
    desk.put("strong", image="a" * 64, strength=0.6)
    desk.put("other", image="b" * 64, strength=0.3)
    assert [desk.take("a") for _ in range(3)] == [["text"], ["weak", "other"], ["strong"]]


def test_cost_counts_the_steps_that_run() -> None:
    """A job's share of the card is that of the steps it runs."""
    whole = Spec(**{**vars(SPEC), "num_inference_steps": 10})
    assert replace(whole, image="a" * 64, strength=0.3).cost == pytest.approx(whole.cost * 0.3)
