"""The demo model all the way: diffusers is the oracle, FP8 is faithful, the picture is the prompt's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from sd35.compare.compare import draw_all, measure, requests_for
from sd35.compare.judges import SubjectJudge
from sd35.config import RuntimeConfig
from sd35.demo.prompts import held_out_prompts, trained_prompts
from sd35.request import GenerationRequest
from sd35.runtime.pipeline import Pipeline

BASE = GenerationRequest("a penguin, glossy style, on a yellow background", seed=5, num_inference_steps=6)
CASES = {
    "guided": {},
    "unguided": {"guidance_scale": 1.0},
    "negative prompt": {"negative_prompt": "blue, flat style", "guidance_scale": 6.0},
    "odd sizes": {"width": 304, "height": 176},
    "a prompt for each encoder": {"prompt_2": "a cat", "prompt_3": "a dog", "negative_prompt_3": "red"},
    "long text": {"max_sequence_length": 256},
    "skip-layer guidance": {"skip_layer_guidance_scale": 2.8, "skip_layer_guidance_stop": 0.7},
}


@pytest.fixture(scope="module")
def oracle(demo: Path) -> StableDiffusion3Pipeline:
    """Unmodified diffusers on the bundled folder, in float32."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(demo, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn_by_diffusers(
    oracle: StableDiffusion3Pipeline, request: GenerationRequest, pipeline: Pipeline
) -> np.ndarray:
    """The same request through diffusers' own pipeline."""
    (picture,) = request.pictures(pipeline.variant)
    settings, skip = picture.settings, {}
    if settings.skip_layer_guidance_scale:
        skip = {
            "skip_guidance_layers": list(settings.skip_layers),
            "skip_layer_guidance_scale": settings.skip_layer_guidance_scale,
            "skip_layer_guidance_start": settings.skip_layer_guidance_start,
            "skip_layer_guidance_stop": settings.skip_layer_guidance_stop,
        }
    image = oracle(
        prompt=picture.prompt.clip_l,
        prompt_2=picture.prompt.clip_g,
        prompt_3=picture.prompt.t5,
        negative_prompt=picture.negative_prompt.clip_l,
        negative_prompt_2=picture.negative_prompt.clip_g,
        negative_prompt_3=picture.negative_prompt.t5,
        width=settings.width,
        height=settings.height,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        max_sequence_length=settings.max_sequence_length,
        generator=[torch.Generator("cpu").manual_seed(picture.seed)],
        **skip,
    ).images[0]
    return np.asarray(image, dtype=np.float64)


@pytest.mark.parametrize("case", CASES)
def test_equals_diffusers(pipeline_fp32: Pipeline, oracle: StableDiffusion3Pipeline, case: str) -> None:
    """Same folder, seed and settings in float32: PSNR of at least 50 dB, whatever the settings."""
    request = replace(BASE, **CASES[case])
    ours = np.asarray(pipeline_fp32.generate(request).images[0].image, dtype=np.float64)
    theirs = drawn_by_diffusers(oracle, request, pipeline_fp32)
    assert theirs.std() > 10
    error = ((ours - theirs) ** 2).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-9)) >= 50


def test_fp8_is_faithful(demo: Path, demo_fp8: Path) -> None:
    """Four prompts at eight steps, two of them of pairs never trained: FP8 shows what 16-bit shows."""
    prompts = [prompt.text for prompt in [*trained_prompts(2), *held_out_prompts(2)]]
    requests = requests_for(prompts, seed=0, num_inference_steps=8)
    config = RuntimeConfig(device="cpu")
    drawings = [draw_all(folder, requests, config, 4, lambda *_: None) for folder in (demo, demo_fp8)]
    comparison = measure(*drawings, judge=SubjectJudge(torch.device("cpu")), witness=None)
    figures = {figure.name: figure.mean for figure in comparison.figures}
    assert comparison.same_subject == 1.0
    assert figures["PSNR, dB"] > 24
    assert figures["SSIM"] > 0.85
    assert figures["evaluator feature cosine"] >= 0.97


def test_the_picture_shows_what_the_prompt_says(pipeline_fp8: Pipeline) -> None:
    """The evaluator sees the prompts' subjects and backgrounds in FP8 pictures of the default settings."""
    prompts = trained_prompts(8)
    pictures = [
        GenerationRequest(prompt.text, seed=i, num_inference_steps=16).pictures(pipeline_fp8.variant)[0]
        for i, prompt in enumerate(prompts)
    ]
    images = [np.asarray(one.image) for one in pipeline_fp8.draw(pictures).images]
    subjects, _ = SubjectJudge(torch.device("cpu"))(torch.from_numpy(np.stack(images)))
    right = sum(int(subject) == prompt.subject for subject, prompt in zip(subjects, prompts, strict=True))
    assert right >= 5
