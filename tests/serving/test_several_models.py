"""The engine with several real models: what they share, where they rest; no picture changes for it."""

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sd35.config import RuntimeConfig
from sd35.request import GenerationRequest
from sd35.runtime.budget import usable
from sd35.runtime.encoders import TextEncoders
from sd35.runtime.memory import Work, peak
from sd35.serving.drawing import PipelineEngine
from sd35.serving.messages import RawImage, Task
from sd35.serving.settings import Model, Terms
from sd35.serving.shelf import Shelf

from .conftest import ServerFactory

A, B = Model.parse("a@demo=demo"), Model.parse("b@demo=demo")
REQUEST = GenerationRequest("a red apple", width=128, height=128, num_inference_steps=4, seed=1)


class Silence:
    """A listener that listens to nothing."""

    def step(self, done: int, of: int) -> None:
        """Not heard."""

    def preview(self, task: int, index: int, picture: int, image: RawImage) -> None:
        """Not looked at."""


@pytest.fixture
def sister(demo_copy: Path, edit_tensors: Callable[..., None]) -> Path:
    """The demo with another transformer; all else is the same, file by file."""
    file = demo_copy / "transformer" / "diffusion_pytorch_model.safetensors"
    edit_tensors(file, lambda tensors: tensors["proj_out.bias"].add_(0.3))
    return demo_copy


@pytest.fixture
def engine(demo: Path, sister: Path) -> PipelineEngine:
    """A is the demo, B its sister; nothing is loaded."""
    places = {A: demo, B: sister}
    return PipelineEngine(places.__getitem__, RuntimeConfig(device="cpu", compute_dtype="fp32"))


def draw(engine: PipelineEngine, model: Model) -> bytes:
    """A picture's pixels."""
    task = Task("job", 1, model, tuple(REQUEST.pictures(model.variant)))
    return engine.draw([task], Silence())[0].images[0].rgb


def load(engine: PipelineEngine, *models: Model) -> list[float]:
    """Load them, one after the other; the progress of the last."""
    for model in models:
        told: list[float] = []
        engine.load(model, told.append)
    return told


def test_equal_files_are_one_module(engine: PipelineEngine) -> None:
    """Encoders and VAE are there once, transformers are not, and the count of bytes knows it."""
    load(engine, A, B)
    one, two = (engine._pipelines[model] for model in (A, B))
    assert one.vae is two.vae
    assert one.text_encoders.t5 is two.text_encoders.t5
    assert one.mmdit is not two.mmdit
    parts = {id(part): part for pipeline in (one, two) for part in pipeline.residence.parts()}
    held = sum(tensor.nbytes for part in parts.values() for tensor in part.parameters())
    told = engine.need([A, B]) - engine._needs_of(A).activations
    assert told == pytest.approx(held, rel=0.02)
    assert engine.need([A]) + engine.need([B]) > 1.2 * engine.need([A, B])


def test_pictures_are_those_of_models_alone(engine: PipelineEngine, demo: Path, sister: Path) -> None:
    """Shared parts, resting and waking change no bit; the two models draw different pictures."""
    config = RuntimeConfig(device="cpu", compute_dtype="fp32")
    alone = {}
    for model, place in ((A, demo), (B, sister)):
        single = PipelineEngine(lambda _, place=place: place, config)
        load(single, model)
        alone[model] = draw(single, model)
    assert alone[A] != alone[B]
    load(engine, A, B)
    assert {model: draw(engine, model) for model in (A, B)} == alone
    engine.rest(A)
    assert draw(engine, B) == alone[B]
    engine.wake(A)
    engine.drop(B)
    assert draw(engine, A) == alone[A]


def test_prompts_are_encoded_once_for_all(engine: PipelineEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What A's encoders made of a prompt, B needs not encode."""
    load(engine, A, B)
    draw(engine, A)
    monkeypatch.setattr(TextEncoders, "encode", lambda *_: pytest.fail("encoded again"))
    draw(engine, B)


def test_progress_tells_the_share_of_bytes(engine: PipelineEngine) -> None:
    """From near nothing to all of it in small steps; what is there already is not read again."""
    first = load(engine, A)
    assert first == sorted(first)
    assert len(first) > 10
    assert first[-1] >= 0.99
    assert load(engine, B)[-1] < 0.99


def test_resting_model_leaves_the_device(engine: PipelineEngine) -> None:
    """All its parts are asked to go but those that another awake model has too."""
    load(engine, A, B)
    moved: list[torch.nn.Module] = []
    one, two = (engine._pipelines[model] for model in (A, B))
    for part in one.residence.parts():
        part.to = lambda device, part=part: moved.append(part)  # type: ignore[assignment]
    engine.rest(A)
    assert moved == [one.mmdit]
    engine.rest(B)
    assert one.vae in moved
    assert two.vae in moved


def test_model_that_has_to_travel_shares_no_more(engine: PipelineEngine) -> None:
    """Work beyond the room makes A live by a plan that moves its parts: B, which had them too, is let go."""
    load(engine, A, B)
    before = draw(engine, A)
    residence = engine._pipelines[A].residence
    work = Work.of(REQUEST.pictures(A.variant)[0].settings, 1)
    engine._budget = engine.need([A]) - residence.sizes.encoders // 2
    shelf = Shelf(engine, engine.settle(Terms(vram_bytes=engine._budget)))
    for model in (A, B):
        shelf.touch(model)
    task = Task("job", 1, A, tuple(REQUEST.pictures(A.variant)))
    residence.budget = peak(residence.plan, residence.sizes, work) - 1
    assert engine.draw([task], Silence())[0].images[0].rgb == before
    assert residence.plan.moves
    assert engine.held() == [A]
    shelf.forget_strangers(engine.held())
    assert not shelf.is_held(B)
    load(engine, B)
    assert engine._pipelines[B].vae is not engine._pipelines[A].vae


def test_server_shows_previews_of_real_models(start_server: ServerFactory) -> None:
    """Over HTTP: each of two models is loaded for its job, and its last preview is like its picture."""
    served = start_server(engine="sd35", models="demo,twin@demo=demo", devices="cpu")
    body = {
        "prompt": "a red apple, flat style, on a blue background",
        "width": 256,
        "height": 256,
        "previews": 2,
    }
    for name in ("demo", "twin"):
        job_id = served.post(model=name, num_inference_steps=10, seed=1, **body)["id"]
        shown = [data for _, kind, data in served.events(job_id) if kind == "preview"]
        assert [one["index"] for one in shown] == [0, 1]
        job = served.job(job_id)
        assert job["seconds"]["load"] > 0
        picture = Image.open(io.BytesIO(served.client.get(job["images"][0]["url"]).content))
        small = np.asarray(picture.resize((32, 32), Image.Resampling.BOX), dtype=float)
        preview = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown[1]["b64_json"]))), dtype=float)
        assert np.corrcoef(preview.ravel(), small.ravel())[0, 1] > 0.9
    rows = served.client.get("/api/v1/models").json()["data"]
    assert [row["state"] for row in rows] == ["vram", "vram"]


def test_shelf_and_engine_keep_the_budget(engine: PipelineEngine) -> None:
    """With room for one and a half, A rests while B draws, and comes back the same."""
    budget = int(1.2 * engine.need([A]))
    assert engine.need([A, B]) > budget
    terms = engine.settle(Terms(vram_bytes=budget))
    assert terms.vram_bytes == usable(budget)
    shelf = Shelf(engine, terms)
    shelf.have(A, lambda _: None)
    first = draw(engine, A)
    shelf.have(B, lambda _: None)
    assert [(one.name, one.place) for one in shelf.holdings()] == [("b", "vram"), ("a", "ram")]
    shelf.have(A, lambda _: None)
    assert [(one.name, one.place) for one in shelf.holdings()] == [("a", "vram"), ("b", "ram")]
    assert draw(engine, A) == first
