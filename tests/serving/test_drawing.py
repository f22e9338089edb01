"""The engine with a real pipeline."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from budgets import budget_for

from sd35.config import ComputeDtype, RuntimeConfig
from sd35.errors import MissingError
from sd35.pictures_in.source_picture import SourcePicture
from sd35.request import GenerationRequest
from sd35.runtime.memory import Work, peak
from sd35.runtime.pipeline import Pipeline
from sd35.serving.drawing import PipelineEngine
from sd35.serving.messages import RawImage, Task
from sd35.serving.settings import Model
from sd35.serving.uploads import png_of
from sd35.serving.worker import Cancelled, OutOfMemoryError

DEMO = Model.parse("demo")
REQUEST = GenerationRequest("a red apple", width=64, height=64, num_inference_steps=3, seed=1)


class Watcher:
    """A listener that cancels after so many steps."""

    def __init__(self, patience: int) -> None:
        self.steps, self._patience = 0, patience
        self.previews: list[tuple[int, int, int, RawImage]] = []

    def step(self, done: int, of: int) -> None:
        """Count, and lose patience."""
        self.steps = done
        if done == self._patience:
            raise Cancelled

    def preview(self, task: int, index: int, picture: int, image: RawImage) -> None:
        """Keep it."""
        self.previews.append((task, index, picture, image))


@pytest.fixture(scope="module")
def engine(demo_fp8: Path, pipeline_fp8: Pipeline) -> PipelineEngine:
    """Holding the demo."""
    engine = holding(demo_fp8, "bf16")
    assert engine.facts(DEMO)[0] == pipeline_fp8.identity
    return engine


def holding(folder: Path, dtype: ComputeDtype) -> PipelineEngine:
    """An engine with one model."""
    engine = PipelineEngine(
        lambda _: folder, RuntimeConfig(device="cpu", compute_dtype=dtype, activations="fp8")
    )
    engine.load(DEMO, lambda _: None)
    return engine


def task() -> Task:
    """Three steps of the demo."""
    return Task("job", 1, DEMO, tuple(REQUEST.pictures(DEMO.variant)))


def test_pixels_are_the_pipelines(engine: PipelineEngine, pipeline_fp8: Pipeline) -> None:
    """What the engine hands over is what the pipeline draws."""
    drawn = engine.draw([task()], Watcher(99))[0].images[0]
    expected = pipeline_fp8.generate(REQUEST).images[0].image
    assert (drawn.width, drawn.height, drawn.rgb) == (64, 64, expected.tobytes())


def test_cancel_ends_the_drawing_at_a_step(engine: PipelineEngine) -> None:
    """The listener's exception comes through, and no step follows."""
    watcher = Watcher(1)
    with pytest.raises(Cancelled):
        engine.draw([task()], watcher)
    assert watcher.steps == 1


def test_previews_become_the_pictures(engine: PipelineEngine) -> None:
    """Each picture of each task is shown as often as asked, the later the more like the finished one."""
    request = replace(REQUEST, width=256, height=256, num_inference_steps=12, num_images=2)
    watcher = Watcher(99)
    silent = Task("silent", 1, DEMO, tuple(replace(request, num_images=1, seed=9).pictures(DEMO.variant)))
    asked = Task("job", 1, DEMO, tuple(request.pictures(DEMO.variant)), previews=3)
    drawn = engine.draw([silent, asked], watcher)[1].images
    assert [which for *which, _ in watcher.previews] == [
        [1, index, picture] for index in range(3) for picture in range(2)
    ]
    for number in range(2):
        finished = _small(drawn[number])
        shown = [_array(image) for *_, picture, image in watcher.previews if picture == number]
        likeness = [float(np.corrcoef(one.ravel(), finished.ravel())[0, 1]) for one in shown]
        assert likeness == sorted(likeness)
        assert likeness[-1] > 0.95
        stranger = _small(drawn[1 - number])
        assert likeness[-1] > np.corrcoef(shown[-1].ravel(), stranger.ravel())[0, 1]


def test_batch_of_jobs_is_their_pictures(demo: Path, demo_fp8: Path) -> None:
    """Jobs drawn together come out as alone: to 60 dB in float32, to 30 dB where FP8 rounds in each layer."""
    changes = (
        {"guidance_scale": 2.0},
        {"prompt": "a fox", "seed": 5},
        {"negative_prompt": "a tree", "num_images": 2},
    )
    requests = [
        replace(REQUEST, width=128, height=128, num_inference_steps=8, **change) for change in changes
    ]
    tasks = [
        Task(f"job {place}", 1, DEMO, tuple(request.pictures(DEMO.variant)))
        for place, request in enumerate(requests)
    ]
    for folder, dtype, tolerance in ((demo, "fp32", 60), (demo_fp8, "bf16", 30)):
        engine = holding(folder, dtype)
        together = engine.draw(tasks, Watcher(99))
        assert [drawing.batch for drawing in together] == [4, 4, 4]
        for task, drawing in zip(tasks, together, strict=True):
            alone = engine.draw([task], Watcher(99))[0]
            for ours, own in zip(drawing.images, alone.images, strict=True):
                assert _psnr(_array(ours), _array(own)) > tolerance
        assert _psnr(_array(together[0].images[0]), _array(together[2].images[0])) < 25


def test_batch_is_no_larger_than_the_plan_allows(demo_fp8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks beyond what the model's memory plan has room for are left for the next batch."""
    engine = holding(demo_fp8, "bf16")
    residence = engine._pipelines[DEMO].residence
    ten = GenerationRequest("a fox", width=512, height=512, num_images=10)
    job = Task("job", 1, DEMO, tuple(ten.pictures(DEMO.variant)))
    two = Work.of(job.pictures[0].settings, 20)
    monkeypatch.setattr(residence, "budget", budget_for(peak(residence.plan, residence.sizes, two)))
    assert [engine.fitting([job] * count) for count in (1, 2, 3, 4)] == [1, 2, 2, 2]
    monkeypatch.setattr(residence, "budget", 1)
    assert engine.fitting([job] * 3) == 1


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    """In dB."""
    return float(10 * np.log10(255**2 / max(((a.astype(float) - b) ** 2).mean(), 1e-9)))


def _array(raw: RawImage) -> np.ndarray:
    return np.frombuffer(raw.rgb, dtype=np.uint8).reshape(raw.height, raw.width, 3)


def _small(raw: RawImage) -> np.ndarray:
    """As a preview is: one pixel for 8 x 8."""
    return _array(raw).reshape(raw.height // 8, 8, raw.width // 8, 8, 3).mean((1, 3))


def test_no_room_is_told_in_words(engine: PipelineEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's out-of-memory error becomes a refusal with a remedy, and the next task is drawn."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "draw", full)
        with pytest.raises(OutOfMemoryError, match="64 x 64: ask for fewer or smaller"):
            engine.draw([task()], Watcher(99))
    assert engine.draw([task()], Watcher(99))[0].images


def test_a_task_begins_with_its_upload(engine: PipelineEngine, tmp_path: Path) -> None:
    """The engine reads the upload where it lies: the picture is what the pipeline makes of these pixels."""
    pixels = bytes(range(192)) * 64
    image = SourcePicture(64, 64, pixels)
    path = tmp_path / "upload.png"
    path.write_bytes(png_of(image))
    request = replace(REQUEST, image=image, strength=0.5)
    pictures = tuple(replace(picture, image=None) for picture in request.pictures(DEMO.variant))
    watcher = Watcher(99)
    (drawing,) = engine.draw([replace(task(), pictures=pictures, upload=path)], watcher)
    (expected,) = engine._pipelines[DEMO].generate(request).images
    assert drawing.images[0].rgb == expected.image.tobytes()
    assert watcher.steps == 2
    with pytest.raises(MissingError, match="send the request again"):
        engine.draw([replace(task(), pictures=pictures, upload=tmp_path / "gone.png")], watcher)
