"""The arithmetic of a step, with a transformer whose answers are known."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

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
