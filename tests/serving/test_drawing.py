"""The engine with a real pipeline."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sd35.request import GenerationRequest
from sd35.runtime.pipeline import Pipeline
from sd35.serving.drawing import PipelineEngine
from sd35.serving.messages import RawImage, Task
from sd35.serving.settings import Model
from sd35.serving.worker import Cancelled, OutOfMemoryError

DEMO = Model.parse("demo")
REQUEST = GenerationRequest("a red apple", width=64, height=64, num_inference_steps=3, seed=1)


class Watcher:
    """A listener that cancels after so many steps."""

    def __init__(self, patience: int) -> None:
        self.steps, self._patience = 0, patience
        self.previews: list[tuple[int, int, RawImage]] = []

    def step(self, done: int, of: int) -> None:
        """Count, and lose patience."""
        self.steps = done
        if done == self._patience:
            raise Cancelled

    def preview(self, index: int, picture: int, image: RawImage) -> None:
        """Keep it."""
        self.previews.append((index, picture, image))


@pytest.fixture
def engine(pipeline_fp8: Pipeline) -> PipelineEngine:
    """Holding the demo."""
    engine = PipelineEngine(lambda _: pipeline_fp8)
    assert engine.load(DEMO)[0] == pipeline_fp8.identity
    return engine


def task() -> Task:
    """Three steps of the demo."""
    return Task("job", 1, DEMO, tuple(REQUEST.pictures(DEMO.variant)))


def test_pixels_are_the_pipelines(engine: PipelineEngine, pipeline_fp8: Pipeline) -> None:
    """What the engine hands over is what the pipeline draws."""
    drawn = engine.draw(task(), Watcher(99)).images[0]
    expected = pipeline_fp8.generate(REQUEST).images[0].image
    assert (drawn.width, drawn.height, drawn.rgb) == (64, 64, expected.tobytes())


def test_cancel_ends_the_drawing_at_a_step(engine: PipelineEngine) -> None:
    """The listener's exception comes through, and no step follows."""
    watcher = Watcher(1)
    with pytest.raises(Cancelled):
        engine.draw(task(), watcher)
    assert watcher.steps == 1


def test_previews_become_the_pictures(engine: PipelineEngine) -> None:
    """Each picture of a task is shown as often as asked, the later the more like the finished one."""
    request = replace(REQUEST, width=256, height=256, num_inference_steps=12, num_images=2)
    watcher = Watcher(99)
    asked = Task("job", 1, DEMO, tuple(request.pictures(DEMO.variant)), previews=3)
    drawn = engine.draw(asked, watcher).images
    assert [(index, picture) for index, picture, _ in watcher.previews] == [
        (index, picture) for index in range(3) for picture in range(2)
    ]
    for number in range(2):
        finished = _small(drawn[number])
        shown = [_array(image) for _, picture, image in watcher.previews if picture == number]
        likeness = [float(np.corrcoef(one.ravel(), finished.ravel())[0, 1]) for one in shown]
        assert likeness == sorted(likeness)
        assert likeness[-1] > 0.95
        stranger = _small(drawn[1 - number])
        assert likeness[-1] > np.corrcoef(shown[-1].ravel(), stranger.ravel())[0, 1]


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
            engine.draw(task(), Watcher(99))
    assert engine.draw(task(), Watcher(99)).images
