"""One step's guidance, in one pass and in two."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from sd35.runtime.pipeline import Pipeline
from sd35.runtime.step import Step, velocity


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
