"""Recorded steps: what a graph gives is what the step gives, whatever was recorded before."""

from dataclasses import replace

import pytest
import torch

from sd35.runtime.graphs import MOST_RECORDINGS, Recorder
from sd35.runtime.mmdit import MMDiT, MMDiTConfig
from sd35.runtime.step import Step, euler_step

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def mmdit() -> MMDiT:
    """A small transformer on the card, random everywhere."""
    torch.manual_seed(0)
    model = MMDiT(MMDiTConfig(3, 128, 96, 48, 24, (0,))).cuda()
    for parameter in [*model.parameters(), model.pos_embed]:
        torch.nn.init.normal_(parameter, std=0.1)
    return model.bfloat16().eval()


def step(size: int = 16, *, guided: bool = True, skip_layers: tuple[int, ...] = ()) -> Step:
    """A step's inputs, fresh."""
    rows = 2 if guided else 1
    table_rows = (9 + 6) + (6 + 6) + (6 + 2) + 2
    half = {"device": "cuda", "dtype": torch.bfloat16}
    return Step(
        torch.randn(1, 16, size, size, device="cuda"),
        torch.randn(rows, 7, 128, **half),
        torch.randn(rows, table_rows, 128, **half),
        torch.tensor(-0.1, device="cuda"),
        torch.tensor(4.5, device="cuda"),
        torch.tensor(2.8, device="cuda"),
        guided=guided,
        skip_layers=skip_layers,
    )


@torch.inference_mode()
def test_a_replay_is_the_step(mmdit: MMDiT) -> None:
    """To the last bit, for inputs that the recording never saw, and for a table that is a view."""
    recorder = Recorder()
    for _ in range(3):
        one = step()
        assert torch.equal(recorder.run(mmdit, one), euler_step(mmdit, one))
    table = torch.randn(5, *one.table.shape, device="cuda", dtype=torch.bfloat16)
    one = replace(one, table=table[3])
    assert torch.equal(recorder.run(mmdit, one), euler_step(mmdit, one))


@torch.inference_mode()
def test_every_kind_of_step_has_its_own_recording(mmdit: MMDiT) -> None:
    """Sizes, guidance and skipped layers in turn, more of them than are kept, in any order."""
    recorder = Recorder()
    kinds = [step(), step(guided=False), step(skip_layers=(1,)), *(step(8 + 2 * i) for i in range(7))]
    assert len(kinds) > MOST_RECORDINGS
    for one in [*kinds, *reversed(kinds)]:
        assert torch.equal(recorder.run(mmdit, one), euler_step(mmdit, one))


@torch.inference_mode()
def test_a_result_outlives_the_next_replay(mmdit: MMDiT) -> None:
    """What was returned is the caller's: the next replay writes elsewhere."""
    recorder, one = Recorder(), step()
    first = recorder.run(mmdit, one)
    kept = first.clone()
    recorder.run(mmdit, step())
    assert torch.equal(first, kept)
