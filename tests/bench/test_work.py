"""The count of arithmetic is that of docs and papers, not of whatever the code happens to run."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sd35.bench.random_weights import RandomCheckpoint, random_embeds
from sd35.bench.work import attention_flop, linear_flop, shapes_of
from sd35.bench.workload import Workload
from sd35.runtime.load import assemble
from sd35.runtime.mmdit import MMDiT


@pytest.mark.parametrize(
    ("variant", "steps", "linear", "attention"),
    [("large", 28, 47.7, 14.5), ("medium", 40, 14.04, 8.46), ("large-turbo", 4, 23.86, 7.25)],
)
def test_work_of_a_step_at_1024(variant: str, steps: int, linear: float, attention: float) -> None:
    """TFLOP of one step with the variant's own guidance: two rows with it, one without."""
    shapes = shapes_of(Workload(variant=variant, steps=steps))
    assert linear_flop(shapes) / 1e12 == pytest.approx(linear, abs=0.05)
    assert attention_flop(shapes) / 1e12 == pytest.approx(attention, abs=0.05)


def test_the_count_is_what_the_network_does(tiny: Workload) -> None:
    """PyTorch's own counter agrees, dual attention included, up to the embedders around the blocks."""
    shapes = shapes_of(tiny)
    pipeline = assemble(RandomCheckpoint("demo", torch.device("cpu")), tiny.config(), tiny.model, "random")
    counted = _counted(pipeline.mmdit, tiny)
    width, patch = shapes.size.channels, 2 * 2 * 16
    around = 2 * 2 * shapes.rows * shapes.image_tokens * width * patch  # patches in and out
    assert counted == linear_flop(shapes) + attention_flop(shapes) + around


def _counted(mmdit: MMDiT, workload: Workload) -> int:
    shapes = shapes_of(workload)
    embeds = random_embeds(shapes, torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        conditioning = mmdit.condition(embeds.sequence, embeds.pooled, torch.tensor([500.0]))
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            mmdit(torch.randn(shapes.rows, 16, 8, 8), conditioning.context, conditioning.table[0])
    return counter.get_total_flops()
