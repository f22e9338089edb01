"""Figures are medians of the rounds; the warm-up and each drawing's first step are told apart."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import psutil
import pytest
import torch

from sd35.bench import measure as measuring
from sd35.bench import timing
from sd35.bench.kernels import by_kind, kind_of, profile_step
from sd35.bench.measure import measure
from sd35.bench.timing import spread
from sd35.bench.workload import Workload
from sd35.errors import RequestError
from sd35.request import Picture
from sd35.runtime.sampling import OnStep


@dataclass
class ScriptedEngine:
    """Takes as long as it is told: seconds of each step, by drawing; the clock is its own."""

    drawings: list[list[float]]
    now: float = 0.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    caps: dict[torch.device, int | None] = field(default_factory=lambda: {torch.device("cpu"): None})
    precision: str = "float8_e4m3fn"
    attention: str = "sdpa"
    plan: str = "staged"
    cap_bytes: int | None = 7
    load_seconds: float | None = 3.0
    prompts: list[str] = field(default_factory=list)

    def draw(self, pictures: Sequence[Picture], on_step: OnStep) -> dict[str, float]:
        """Let the clock run."""
        steps = self.drawings.pop(0)
        self.prompts.append(pictures[0].prompt.t5)
        for done, seconds in enumerate(steps, start=1):
            self.now += seconds
            on_step(done, len(steps))
        return {"encode": 1.0, "denoise": sum(steps)}


def scripted(monkeypatch: pytest.MonkeyPatch, drawings: list[list[float]]) -> ScriptedEngine:
    """An engine, and the clock of the stop watches set to its own."""
    engine = ScriptedEngine(drawings)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: engine.now)
    return engine


def test_medians_without_what_comes_first(monkeypatch: pytest.MonkeyPatch, tiny: Workload) -> None:
    """The warm-up's 100 s are the first call's, each drawing's first step of 10 s is nobody's."""
    engine = scripted(monkeypatch, [[100, 9, 9], [10, 1, 2], [10, 3, 4], [10, 5, 6], [8, 8, 8]])
    row = measure(engine, "sd35", replace(tiny, rounds=3))
    assert row.ms_per_step == pytest.approx(3500)
    assert row.spread == pytest.approx(4000)  # from 1.5 to 5.5
    assert row.first_call_seconds == pytest.approx(100)
    assert row.seconds == pytest.approx(18)
    assert row.kept_seconds == pytest.approx(25)
    assert row.stage_seconds == pytest.approx({"encode": 1, "denoise": 17})
    assert (row.engine, row.width, row.steps, row.guidance, row.reason) == ("sd35", 64, 3, True, None)


def test_the_first_picture_counts_from_the_start_of_the_process(
    monkeypatch: pytest.MonkeyPatch, tiny: Workload
) -> None:
    """Of a whole drawing from a checkpoint; with random weights there is no such figure."""
    monkeypatch.setattr(timing.time, "time", lambda: psutil.Process().create_time() + 12.5)
    engine = scripted(monkeypatch, [[1, 1]] * 12)
    assert measure(engine, "sd35", tiny).first_picture_seconds is None
    assert (
        measure(engine, "sd35", replace(tiny, stage="denoise", checkpoint="demo")).first_picture_seconds
        is None
    )
    assert measure(engine, "sd35", replace(tiny, checkpoint="demo")).first_picture_seconds == pytest.approx(
        12.5
    )


def test_each_card_has_its_peak_and_its_cap(monkeypatch: pytest.MonkeyPatch, tiny: Workload) -> None:
    """With several, the row's peak is that of the fullest; with one there is nothing more to say."""
    engine = scripted(monkeypatch, [[1, 1]] * 8)
    assert measure(engine, "sd35", tiny).devices == {}
    first, second = torch.device("cpu"), torch.device("cpu:0")
    engine.caps = {first: 7, second: 9}
    monkeypatch.setattr(measuring, "peak_memory_bytes", lambda device: 5 if device == first else 8)
    row = measure(engine, "sd35", tiny)
    assert row.peak_bytes == 8
    assert row.devices == {
        "cpu": {"peak_bytes": 5, "cap_bytes": 7},
        "cpu:0": {"peak_bytes": 8, "cap_bytes": 9},
    }


def test_a_single_step_is_its_stage(monkeypatch: pytest.MonkeyPatch, tiny: Workload) -> None:
    """With one step there is nothing between marks, and the stage's seconds are the step's."""
    engine = scripted(monkeypatch, [[100], [2], [4], [9]])
    assert measure(engine, "sd35", replace(tiny, steps=1)).ms_per_step == pytest.approx(3000)


def test_each_round_has_its_own_words(monkeypatch: pytest.MonkeyPatch, tiny: Workload) -> None:
    """No round draws the prompt of another: embeds that were kept can't be passed off as encoded.

    Ours, which keeps them, draws the last prompt once more.
    """
    engine = scripted(monkeypatch, [[1, 1]] * 4)
    measure(engine, "sd35", tiny)
    assert len(set(engine.prompts)) == 3
    assert engine.prompts[-1] == engine.prompts[-2]
    engine = scripted(monkeypatch, [[1, 1]] * 3)
    assert measure(engine, "diffusers-eager", tiny).kept_seconds is None


def test_spread_is_between_the_tenths() -> None:
    """Of 0 to 100 it is 80; one value has none."""
    assert spread(range(101)) == pytest.approx(80)
    assert spread([5.0]) == 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopB_TNT", "gemm"),
        ("void cutlass::device_kernel<flash::FlashAttnFwdSm90<...>>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7", "attention"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "gemm"),
        ("Memcpy DtoD (Device -> Device)", "copy"),
        ("triton_red_fused__to_copy_abs_amax_0", "copy"),
        ("triton_poi_fused_gelu_1", "torch.compile"),
        ("_adaln_modulate_quantize_kernel", "sd35"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>", "other"),
    ],
)
def test_kinds_of_kernels(name: str, kind: str) -> None:
    """Names that profilers show are told apart."""
    assert kind_of(name) == kind


def test_the_profile_is_of_one_step(tiny: Workload) -> None:
    """What runs in the second step alone is recorded, longest first, with the calls of that step."""

    class Multiplier(ScriptedEngine):
        def draw(self, pictures: Sequence[Picture], on_step: OnStep) -> dict[str, float]:
            x = torch.ones(64, 64)
            for done in (1, 2, 3):
                for _ in range(done):
                    x = (x @ x).tanh()
                on_step(done, 3)
            return {}

    rows = profile_step(Multiplier([]), tiny)
    assert {row["name"]: row["calls"] for row in rows}["aten::mm"] == 2
    assert [row["ms"] for row in rows] == sorted((row["ms"] for row in rows), reverse=True)
    assert by_kind(rows)["gemm"] == pytest.approx(sum(row["ms"] for row in rows if row["kind"] == "gemm"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rounds": 0}, "rounds"),
        ({"stage": "dream"}, "stage"),
        ({"variant": "huge"}, "variant"),
        ({"width": 63}, "16"),
    ],
)
def test_workloads_are_checked(tiny: Workload, change: dict[str, object], words: str) -> None:
    """What can't be drawn is refused before any engine starts."""
    with pytest.raises(RequestError, match=words):
        replace(tiny, **change)  # type: ignore[arg-type]
