"""Draw the same prompts with two checkpoints and say how far apart the pictures are.

Both draw the same seeds with the same settings, so every difference comes from the weights' precision.
The two are loaded one after the other: neither has to share the card. A figure's `worst` is its value at
the worst twentieth of the pictures, for an average can hide what a user would see.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from sd35.compare.drawing import Drawing
from sd35.compare.judges import Features, SubjectJudge, cosine
from sd35.compare.metrics import psnr, ssim
from sd35.config import RuntimeConfig
from sd35.request import GenerationRequest
from sd35.runtime.facts import machine, precision
from sd35.runtime.load import load_pipeline
from sd35.runtime.pipeline import Pipeline

CHUNK = 32  # pictures measured at once
WORST = 0.05

OnPicture = Callable[[int, int], None]  # (pictures drawn, pictures in all)


@dataclass(frozen=True)
class Figure:
    """One measure over all pictures: its mean and its value at the worst twentieth."""

    name: str
    mean: float
    worst: float


@dataclass(frozen=True)
class Comparison:
    """Both drawings and the figures between them; `same_subject` is None where no evaluator knows."""

    reference: Drawing
    candidate: Drawing
    figures: list[Figure]
    same_subject: float | None
    psnr: list[float]  # dB, one a picture


def requests_for(
    prompts: Sequence[str], seed: int, num_inference_steps: int | None
) -> list[GenerationRequest]:
    """One request a prompt, with seeds counting up from `seed`."""
    return [
        GenerationRequest(prompt, seed=seed + i, num_inference_steps=num_inference_steps)
        for i, prompt in enumerate(prompts)
    ]


def draw_all(
    folder: Path,
    requests: Sequence[GenerationRequest],
    config: RuntimeConfig,
    batch_size: int,
    on_picture: OnPicture,
) -> Drawing:
    """Load a checkpoint, draw one picture a request, and let the checkpoint go again."""
    drawing = draw_with(load_pipeline(folder, config), requests, batch_size, on_picture)
    gc.collect()
    return drawing


def draw_with(
    pipeline: Pipeline, requests: Sequence[GenerationRequest], batch_size: int, on_picture: OnPicture
) -> Drawing:
    """Draw one picture a request, `batch_size` at a time."""
    pictures = [request.pictures(pipeline.variant)[0] for request in requests]
    images = []
    for start in range(0, len(pictures), batch_size):
        images += [one.image for one in pipeline.draw(pictures[start : start + batch_size]).images]
        on_picture(len(images), len(pictures))
    return Drawing(
        images=images,
        prompts=[request.prompt for request in requests],
        precision=precision(pipeline)["transformer"],
        variant=pipeline.variant.name,
        settings={**asdict(pictures[0].settings), "skip_layers": list(pictures[0].settings.skip_layers)},
        machine=machine(pipeline.device),
    )


def measure(
    reference: Drawing, candidate: Drawing, judge: SubjectJudge | None, witness: Features | None
) -> Comparison:
    """All figures between two drawings of the same requests."""
    columns: dict[str, list[Tensor]] = {}
    agreed: list[Tensor] = []
    for start in range(0, len(reference.images), CHUNK):
        a, b = (drawing.tensor(slice(start, start + CHUNK)) for drawing in (reference, candidate))
        columns.setdefault("PSNR, dB", []).append(psnr(a, b))
        columns.setdefault("SSIM", []).append(ssim(a, b))
        if judge is not None:
            (subject_a, features_a), (subject_b, features_b) = judge(a), judge(b)
            agreed.append(subject_a == subject_b)
            columns.setdefault("evaluator feature cosine", []).append(cosine(features_a, features_b))
        if witness is not None:
            columns.setdefault("outside witness cosine", []).append(cosine(witness(a), witness(b)))
    figures = [_figure(name, torch.cat(values)) for name, values in columns.items()]
    same_subject = float(torch.cat(agreed).double().mean()) if agreed else None
    return Comparison(
        reference, candidate, figures, same_subject, psnr=torch.cat(columns["PSNR, dB"]).tolist()
    )


def _figure(name: str, values: Tensor) -> Figure:
    return Figure(name, float(values.mean()), float(values.double().quantile(WORST)))
