"""The arithmetic of a step, with a transformer whose answers are known."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sd35.runtime.pipeline import Pipeline
from sd35.runtime.sampling import Progress
from sd35.runtime.step import Step, euler_step, velocity

SKIPPED = 100.0


def network(latents: Tensor, context: Tensor, table: Tensor, skip_layers: tuple[int, ...] = ()) -> Tensor:
    """Latents plus each row's text plus its table; layers that are skipped are missed."""
    text = context.mean(dim=(1, 2)) + table.mean(dim=(1, 2)) - SKIPPED * len(skip_layers)
    return latents + text[:, None, None, None]


@pytest.fixture
def step() -> Step:
    """One picture: the negative row says 1 + 0.25, the prompt's 3 + 0.25."""
    context = torch.tensor([1.0, 3.0])[:, None, None].expand(2, 5, 8)
    table = torch.full((2, 4, 8), 0.25)
    numbers = [torch.tensor(value) for value in (-0.5, 4.0, 2.0)]
    return Step(torch.ones(1, 16, 2, 2), context, table, *numbers, guided=True, skip_layers=())


def test_guidance_goes_on_from_the_negative(step: Step) -> None:
    """negative + scale * (prompt - negative)."""
    expected = (1 + 1.25) + 4 * (3.25 - 1.25)
    assert torch.equal(velocity(network, step), torch.full((1, 16, 2, 2), expected))  # type: ignore[arg-type]


def test_no_guidance_is_the_prompt_alone(step: Step) -> None:
    """One row, one pass, nothing scaled."""
    alone = replace(step, context=step.context[1:], table=step.table[1:], guided=False)
    assert torch.equal(velocity(network, alone), torch.full((1, 16, 2, 2), 4.25))  # type: ignore[arg-type]


def test_skipped_layers_push_away_from_what_misses_them(step: Step) -> None:
    """guided + scale * (prompt - prompt without the layers), of the prompt's row alone."""
    expected = (1 + 1.25) + 4 * 2 + 2 * SKIPPED
    skipping = replace(step, skip_layers=(7,))
    assert torch.equal(velocity(network, skipping), torch.full((1, 16, 2, 2), expected))  # type: ignore[arg-type]


def test_an_euler_step_goes_its_stride(step: Step) -> None:
    """latents + stride * velocity, and the given latents stay."""
    before = step.latents.clone()
    expected = 1 - 0.5 * (2.25 + 8)
    assert torch.equal(euler_step(network, step), torch.full((1, 16, 2, 2), expected))  # type: ignore[arg-type]
    assert torch.equal(step.latents, before)


def test_progress_is_told_once_a_step() -> None:
    """On a CPU each step is done when it is queued; nothing is left to tell at the end."""
    told: list[tuple[int, int]] = []
    progress = Progress(lambda done, of: told.append((done, of)), 3, torch.device("cpu"))
    for count in (1, 2, 3):
        progress.queued()
        assert told == [(i, 3) for i in range(1, count + 1)]
    progress.finish()
    assert len(told) == 3


def test_a_card_has_one_more_step_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is waited for, and told, only when the next is in the queue behind it; all by the end."""
    said: list[str] = []

    class Event:
        """Of a card that is not there."""

        def record(self, stream: object) -> None:
            """Behind what is queued."""
            said.append("queued")

        def synchronize(self) -> None:
            """The host waits."""
            said.append("waited")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    progress = Progress(lambda done, of: said.append(f"{done}/{of}"), 3, torch.device("cuda"))
    for _ in range(3):
        progress.queued()
    assert said == ["queued", "queued", "waited", "1/3", "queued", "waited", "2/3"]
    progress.finish()
    assert said[7:] == ["waited", "3/3"]


@pytest.mark.parametrize("skip_layers", [(), (2, 3)])
@torch.inference_mode()
def test_two_passes_are_one(pipeline_fp32: Pipeline, skip_layers: tuple[int, ...]) -> None:
    """Guidance's halves one after the other: the velocity of both at once, and no batch larger than one."""
    torch.manual_seed(0)
    mmdit = pipeline_fp32.mmdit
    text, pooled = torch.randn(2, 9, mmdit.config.text_channels), torch.randn(2, mmdit.config.pooled_channels)
    known = mmdit.condition(text, pooled, torch.tensor([700.0]))
    one = Step(
        torch.randn(1, 16, 8, 12), known.context, known.table[0], torch.tensor(-0.1), torch.tensor(4.5),
        torch.tensor(2.8), guided=True, skip_layers=skip_layers,
    )  # fmt: skip
    expected = velocity(mmdit, one)
    batches: list[int] = []
    listen: Callable[..., None] = lambda _, inputs: batches.append(len(inputs[0]))  # noqa: E731
    hook = mmdit.register_forward_pre_hook(listen)
    found = velocity(mmdit, replace(one, one_pass=False))
    hook.remove()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert set(batches) == {1}
