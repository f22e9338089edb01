"""Where a step's time goes: the kernels of one step, by kind and by name, from PyTorch's profiler.

A profiler slows the program down and not the kernels, so their sum may be less than the step: what is
missing was waiting. Kinds are told by names, in this order: attention, gemm, copies, kernels that
torch.compile has written, our own Triton kernels, and all others.
"""

import re
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from sd35.bench.measure import Engine
from sd35.bench.timing import drain
from sd35.bench.workload import Workload

TOP = 25  # rows kept
_DOES = (
    ("attention", re.compile(r"attention|attend|flash|fmha|sdpa", re.IGNORECASE)),
    ("gemm", re.compile(r"gemm|cutlass|cublas|nvjet|scaled_mm|addmm|::b?mm\b|mkldnn|linear", re.IGNORECASE)),
    ("copy", re.compile(r"memcpy|memset|copy|CatArray|aten::(cat|to|contiguous)\b", re.IGNORECASE)),
)
_OWNERS = (
    ("torch.compile", re.compile(r"triton_\w+|cpp_fused\w*")),
    ("sd35", re.compile(r"_?[a-z]\w*_kernel\w*$")),
)


def kind_of(name: str) -> str:
    """What a kernel of that name does, or whose it is."""
    does = [kind for kind, pattern in _DOES if pattern.search(name)]
    belongs_to = [kind for kind, pattern in _OWNERS if pattern.match(name)]
    return [*does, *belongs_to, "other"][0]


def profile_step(engine: Engine, workload: Workload) -> list[dict[str, Any]]:
    """The kernels of one step, longest first: name, kind, calls, milliseconds. Empty below three steps."""
    recorder = _StepRecorder(engine.device)
    engine.draw(workload.pictures(0), recorder)
    return recorder.rows()[:TOP]


def by_kind(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Milliseconds of each kind, longest first."""
    sums: dict[str, float] = {}
    for row in rows:
        sums[row["kind"]] = sums.get(row["kind"], 0.0) + row["ms"]
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


class _StepRecorder:
    """Listens to a drawing and has one step recorded, after the first, which carries what is done once.

    Where the device has a queue it is drained before the recording begins and ends: then the step that was
    queued beside the one heard of is over too, and it is the third that is recorded.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_card = device.type == "cuda"
        activity = ProfilerActivity.CUDA if self._is_card else ProfilerActivity.CPU
        self._profile = profile(activities=[activity])
        self._is_done = False

    def __call__(self, done: int, of: int) -> None:
        """Begin when the first step is over, end when the second is."""
        if done > 2 or of < 3:
            return
        drain(self._device)
        if done == 1:
            self._profile.start()
        else:
            self._profile.stop()
            self._is_done = True

    def rows(self) -> list[dict[str, Any]]:
        """What was recorded."""
        if not self._is_done:
            return []
        rows = [self._row(event) for event in self._profile.key_averages()]
        return sorted((row for row in rows if row["ms"] > 0), key=lambda row: -row["ms"])

    def _row(self, event: Any) -> dict[str, Any]:
        microseconds = event.self_device_time_total if self._is_card else event.self_cpu_time_total
        return {
            "name": event.key,
            "kind": kind_of(event.key),
            "calls": event.count,
            "ms": microseconds / 1e3,
        }
