"""Our FP8 attention in the model: its definition draws the demo's pictures, and unfit norms are refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sd35.compare.metrics import psnr
from sd35.config import RuntimeConfig
from sd35.errors import DeviceError
from sd35.kernels import attention, reference
from sd35.request import GenerationRequest
from sd35.runtime.load import load_pipeline
from sd35.runtime.pipeline import Pipeline

REQUEST = GenerationRequest("a fox", seed=3, num_inference_steps=8)


@pytest.fixture
def any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's definition in its place, and no card asked for."""
    monkeypatch.setattr(attention, "attention_refuses", lambda *_: None)
    monkeypatch.setattr(attention, "_own", reference.attend_tiles)


@pytest.mark.usefixtures("any_device")
def test_the_demo_draws_the_same_picture(demo_fp8: Path) -> None:
    """Joint and dual attention, both streams, guidance: as near to plain attention as FP8 products are."""
    plain = RuntimeConfig(device="cpu", compute_dtype="fp32", attention="sdpa")
    ours = replace(plain, attention="sd35-fp8")
    images = [load_pipeline(demo_fp8, config).generate(REQUEST).images[0].image for config in (ours, plain)]
    a, b = (torch.from_numpy(np.array(image))[None] for image in images)
    assert 30 < float(psnr(a, b)) < 60  # 60: it is another attention that has drawn


@pytest.mark.usefixtures("any_device")
def test_norms_that_are_too_large_are_refused(monkeypatch: pytest.MonkeyPatch, demo_fp8: Path) -> None:
    """Loading ends with one sentence; another attention takes them."""
    monkeypatch.setattr(attention, "LARGEST_SCORE", 10)
    with pytest.raises(DeviceError, match="'sd35-fp8' can't run this checkpoint: its scores can reach"):
        load_pipeline(demo_fp8, RuntimeConfig(device="cpu", attention="sd35-fp8"))
    load_pipeline(demo_fp8, RuntimeConfig(device="cpu"))


def test_every_attention_of_a_model_is_asked(pipeline_fp32: Pipeline) -> None:
    """Joint attention by both streams' norms together, dual attention by its own."""
    asked = list(pipeline_fp32.mmdit.norms_attending_together())
    streams = [len(norms) for pair in asked for norms in pair]
    config = pipeline_fp32.mmdit.config
    assert streams.count(2) == 2 * config.num_layers
    assert streams.count(1) == 2 * len(config.dual_attention_layers)
    assert all(attention.norms_refuse(*pair) is None for pair in asked)
