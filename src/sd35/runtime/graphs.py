"""CUDA graphs: a denoising step recorded once for its shapes, then replayed as one launch.

A step is about 700 kernels, and a CPU needs longer to launch some of them than the card to run them. A
graph remembers kernels and addresses, so a replay reads its inputs where the recording found them: they are
copied there first, 10 MB at most, and the result is copied out. Recordings share one pool of memory, as only
one runs at a time. Making one takes as long as launching its kernels does; the first of a kind takes a step
more, in which libraries choose their kernels.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sd35.runtime.mmdit import MMDiT
from sd35.runtime.step import Step, euler_step

MOST_RECORDINGS = 8  # of one model: sizes, batches and kinds of guidance in turn


@dataclass(frozen=True)
class Recording:
    """A graph, where it reads, and where it leaves the latents."""

    graph: torch.cuda.CUDAGraph
    step: Step
    result: Tensor

    def replay(self, step: Step) -> Tensor:
        """The latents after this step."""
        for name, tensor in _tensors(step).items():
            getattr(self.step, name).copy_(tensor)
        self.graph.replay()
        return self.result.clone()


class Recorder:
    """Replays `euler_step` of one model; a step of new shapes is recorded first, the oldest forgotten.

    `before` is called before a recording is made: whatever has to come to the card for it comes then.
    """

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self._before = before
        self._recordings: OrderedDict[tuple[object, ...], Recording] = OrderedDict()
        self._warm: set[tuple[object, ...]] = set()
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, mmdit: MMDiT, step: Step) -> Tensor:
        """The latents after the step, as `euler_step` gives them."""
        kind = _kind(step)
        if kind not in self._recordings:
            if len(self._recordings) == MOST_RECORDINGS:
                self._recordings.popitem(last=False)
            self._recordings[kind] = self._record(mmdit, step, kind)
        self._recordings.move_to_end(kind)
        return self._recordings[kind].replay(step)

    def forget(self) -> None:
        """Let go of all recordings and their memory: weights are about to lie elsewhere."""
        self._recordings.clear()
        self._pool = torch.cuda.graph_pool_handle()  # PyTorch takes no pool back that has lost its last graph

    def _record(self, mmdit: MMDiT, step: Step, kind: tuple[object, ...]) -> Recording:
        copies = {name: tensor.clone() for name, tensor in _tensors(step).items()}
        step = Step(**copies, guided=step.guided, skip_layers=step.skip_layers, one_pass=step.one_pass)
        self._before()
        if kind not in self._warm:
            _warm_up(mmdit, step)
            self._warm.add(kind)
        torch.cuda.empty_cache()  # while a recording is made, the allocator gives nothing back by itself
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = euler_step(mmdit, step)
        return Recording(graph, step, result)


def _warm_up(mmdit: MMDiT, step: Step) -> None:
    """Libraries choose kernels and allocate workspaces at their first call, which no graph may record."""
    side = torch.cuda.Stream(step.latents.device)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        euler_step(mmdit, step)
    torch.cuda.current_stream().wait_stream(side)


def _tensors(step: Step) -> dict[str, Tensor]:
    values = {field.name: getattr(step, field.name) for field in fields(step)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _kind(step: Step) -> tuple[object, ...]:
    """What a recording can't change: shapes, dtypes, and what is computed."""
    tensors = _tensors(step).values()
    return (
        *((tensor.shape, tensor.dtype) for tensor in tensors),
        step.guided,
        step.skip_layers,
        step.one_pass,
    )
