"""Measure a trained checkpoint: draw the prompt lists, let the evaluator judge, write figures and a sheet.

Every figure comes from the exported folder, loaded by diffusers as any user would load it, so an error
in the export shows here and not later. A picture counts as right when the evaluator's first answer is
what the prompt asked for.

    python -m sd35.demo.report CHECKPOINT EVALUATOR REPORT_FOLDER --renderings renderings.zip
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from random import Random
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from .captions import with_article
from .evaluator import Evaluator, load_evaluator
from .prompts import LabelledPrompt, colour_word_prompts, held_out_prompts, trained_prompts
from .renderings import load_renderings
from .scenes import CANVAS, LEFT, RIGHT, Composer, Placement
from .sheet import SHEET_PROMPTS, contact_sheet, loss_curve
from .train_evaluator import draw_labels
from .vocabulary import Vocabulary, load_vocabulary

STEPS = 28
GUIDANCE = 4.0
T5_LENGTH = 256
SCENE_CROP = 128


def generate(
    pipeline: StableDiffusion3Pipeline,
    texts: list[str],
    guidance: float = GUIDANCE,
    length: int = T5_LENGTH,
    batch: int = 125,
    steps: int = STEPS,
) -> Tensor:
    """Pictures of `texts` as bytes [N, 256, 256, 3]; picture i is drawn from seed i."""
    pictures = []
    for start in range(0, len(texts), batch):
        part = texts[start : start + batch]
        seeds = [torch.Generator().manual_seed(start + i) for i in range(len(part))]
        output = pipeline(
            prompt=part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            max_sequence_length=length,
            generator=seeds,
            output_type="pt",
        )
        pictures.append((output.images * 255).round().byte().permute(0, 2, 3, 1).cpu())
    return torch.cat(pictures)


def accuracy(evaluator: Evaluator, pictures: Tensor, prompts: list[LabelledPrompt]) -> dict[str, float]:
    """Shares of pictures whose subject, style and background are as asked."""
    judged = _judge(evaluator, pictures)
    asked = {
        "subject": [prompt.subject for prompt in prompts],
        "style": [prompt.style for prompt in prompts],
        "background": [prompt.background for prompt in prompts],
    }
    shares = {key: _share(judged[key], torch.tensor(value)) for key, value in asked.items()}
    return {"pictures": float(len(prompts)), **shares}


def _judge(evaluator: Evaluator, pictures: Tensor) -> dict[str, Tensor]:
    parts = [evaluator(part) for part in pictures.split(100)]
    return {
        key: torch.cat([getattr(p, key).cpu() for p in parts]) for key in ("subject", "style", "background")
    }


def _share(found: Tensor, asked: Tensor) -> float:
    return round((found == asked).float().mean().item(), 4)


def bare_prompts(vocabulary: Vocabulary) -> list[str]:
    """The plainest prompt of every subject: "a fox"."""
    return [with_article(subject.article, subject.name) for subject in vocabulary.subjects]


def scene_prompts(vocabulary: Vocabulary, count: int = 200) -> list[tuple[str, int, int]]:
    """Prompts with two subjects, and the left and right one."""
    rng = Random(14)
    rows = []
    for _ in range(count):
        left, right = rng.sample(range(len(vocabulary.subjects)), 2)
        a, b = (
            with_article(vocabulary.subjects[i].article, vocabulary.subjects[i].name) for i in (left, right)
        )
        style, colour = rng.choice(vocabulary.styles).name, rng.choice(vocabulary.colours).name
        rows.append(
            (f"{a} on the left and {b} on the right, {style} style, {colour} background", left, right)
        )
    return rows


def measure_scenes(
    pipeline: StableDiffusion3Pipeline, evaluator: Evaluator, vocabulary: Vocabulary, length: int
) -> dict[str, float]:
    """Shares of left and right subjects that are as asked, each judged on a crop of its own."""
    rows = scene_prompts(vocabulary)
    pictures = generate(pipeline, [text for text, _, _ in rows], length=length)
    left = _judge(evaluator, _crop(pictures, LEFT))["subject"] == torch.tensor([row[1] for row in rows])
    right = _judge(evaluator, _crop(pictures, RIGHT))["subject"] == torch.tensor([row[2] for row in rows])
    shares = {"left": left, "right": right, "both": left & right}
    return {"pictures": float(len(rows)), **{k: round(v.float().mean().item(), 4) for k, v in shares.items()}}


def _crop(pictures: Tensor, place: Placement) -> Tensor:
    """The square around a subject of a scene."""
    top = (CANVAS - SCENE_CROP) // 2
    edge = min(max(int(place.across) - SCENE_CROP // 2, 0), CANVAS - SCENE_CROP)
    return pictures[:, top : top + SCENE_CROP, edge : edge + SCENE_CROP]


def measure_evaluator(
    evaluator: Evaluator,
    pipeline: StableDiffusion3Pipeline,
    renderings: Path,
    rounds: int = 20,
    batch: int = 100,
) -> dict[str, dict[str, float]]:
    """The evaluator's own accuracy on renderings it has not seen so placed, clean and through the VAE."""
    vocabulary = load_vocabulary()
    composer = Composer(load_renderings(renderings, vocabulary), vocabulary, evaluator.device)
    generator = torch.Generator(evaluator.device).manual_seed(99)
    shares: dict[str, list[dict[str, float]]] = {"clean": [], "through_vae": []}
    for _ in range(rounds):
        labels = draw_labels(vocabulary, batch, generator)
        pictures = composer.alone(composer.pair(labels[0], labels[1]), labels[2], generator)
        prompts = [LabelledPrompt("", *row) for row in torch.stack(labels, dim=1).tolist()]
        shares["clean"].append(accuracy(evaluator, _bytes(pictures), prompts))
        shares["through_vae"].append(accuracy(evaluator, _bytes(_round_trip(pipeline, pictures)), prompts))
    return {name: {k: sum(r[k] for r in rows) / len(rows) for k in rows[0]} for name, rows in shares.items()}


@torch.inference_mode()
def _round_trip(pipeline: StableDiffusion3Pipeline, pictures: Tensor) -> Tensor:
    latents = pipeline.vae.encode((pictures * 2 - 1).to(pipeline.vae.dtype)).latent_dist.mode()
    return pipeline.vae.decode(latents).sample.float().clamp(-1, 1) / 2 + 0.5


def _bytes(pictures: Tensor) -> Tensor:
    return (pictures * 255).round().byte().permute(0, 2, 3, 1)


def measure(pipeline: StableDiffusion3Pipeline, evaluator: Evaluator, *, brief: bool) -> dict[str, Any]:
    """All figures of the card; `brief` stops after the three prompt lists."""
    vocabulary = load_vocabulary()
    trained, held = trained_prompts(), held_out_prompts()

    def draw(prompts: list[LabelledPrompt], **options: Any) -> dict[str, float]:
        pictures = generate(pipeline, [prompt.text for prompt in prompts], **options)
        return accuracy(evaluator, pictures, prompts)

    figures: dict[str, Any] = {"trained": draw(trained), "held_out": draw(held)}
    figures["colour_words"] = draw(colour_word_prompts())
    if brief:
        return figures
    figures["trained_t5_32"] = draw(trained, length=32)
    figures["trained_t5_77"] = draw(trained[:250], length=77)
    for guidance in (1.0, 2.0, 3.0, 6.0):
        figures[f"trained_guidance_{guidance:g}"] = draw(trained[:250], guidance=guidance)
    figures["scenes"] = measure_scenes(pipeline, evaluator, vocabulary, T5_LENGTH)
    found = _judge(evaluator, generate(pipeline, bare_prompts(vocabulary)))["subject"]
    figures["bare_subject"] = {"subject": _share(found, torch.arange(len(found)))}
    wrong = (found != torch.arange(len(found))).nonzero().flatten().tolist()
    names = [subject.name for subject in vocabulary.subjects]
    figures["bare_confusions"] = [[names[i], names[found[i]]] for i in wrong]
    figures["empty"] = measure_empty(generate(pipeline, [""] * 64))
    encoder, pipeline.text_encoder_3 = pipeline.text_encoder_3, None
    figures["trained_without_t5"] = draw(trained)
    pipeline.text_encoder_3 = encoder
    return figures


def measure_empty(pictures: Tensor) -> dict[str, float]:
    """How many pictures of the empty prompt look like ours: an even border, something in the middle."""
    values = pictures.float()
    border = torch.cat([values[:, :8].flatten(1, 2), values[:, -8:].flatten(1, 2)], dim=1)
    even = border.std(dim=1).amax(dim=1) < 8
    filled = (values[:, 64:192, 64:192].flatten(1, 2).std(dim=1).amax(dim=1)) > 15
    return {"pictures": float(len(pictures)), "sane": round((even & filled).float().mean().item(), 4)}


def join_logs(logs: list[Path]) -> list[dict[str, Any]]:
    """The rows of all legs in order, each with the number of its leg."""
    return [
        {"leg": leg, **json.loads(line)}
        for leg, log in enumerate(logs, start=1)
        for line in log.read_text(encoding="utf-8").splitlines()
    ]


def loss_points(rows: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """The MMDiT's steps, counted through all legs, and its losses."""
    taken: dict[int, int] = {0: 0}
    points: list[tuple[float, float]] = []
    for row in rows:
        if row["stage"] == "mmdit" and "step" in row:
            taken[row["leg"]] = row["step"]
            if "loss" in row:
                points.append((taken[row["leg"] - 1] + row["step"], row["loss"]))
    steps, losses = zip(*points, strict=True)
    return list(steps), list(losses)


def write_logs(logs: list[Path], report: Path) -> None:
    """training_log.json and loss_curve.png, from the logs of all legs."""
    rows = join_logs(logs)
    lines = ",\n".join(json.dumps(row) for row in rows)
    (report / "training_log.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8", newline="\n")
    loss_curve(*loss_points(rows), title="MMDiT training loss").save(report / "loss_curve.png")


def main() -> None:
    """Measure the checkpoint named on the command line."""
    parser = argparse.ArgumentParser(description="Measure a trained demo checkpoint.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("evaluator", type=Path)
    parser.add_argument("report", type=Path, help="folder to write")
    parser.add_argument("--renderings", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--logs", type=Path, nargs="*", default=[], help="log.jsonl of every leg, in order")
    parser.add_argument("--brief", action="store_true", help="the three prompt lists only")
    options = parser.parse_args()
    options.report.mkdir(parents=True, exist_ok=True)
    if options.logs:
        write_logs(options.logs, options.report)
    began = time.time()
    pipeline = StableDiffusion3Pipeline.from_pretrained(options.checkpoint, dtype=torch.bfloat16)
    pipeline.to(options.device).set_progress_bar_config(disable=True)
    evaluator = load_evaluator(options.device, options.evaluator)
    contact_sheet(generate(pipeline, SHEET_PROMPTS), SHEET_PROMPTS).save(options.report / "contact_sheet.png")
    figures = measure(pipeline, evaluator, brief=options.brief)
    figures["evaluator"] = measure_evaluator(evaluator, pipeline, options.renderings)
    figures["seconds"] = round(time.time() - began, 1)
    (options.report / "figures.json").write_text(
        json.dumps(figures, indent=1) + "\n", encoding="utf-8", newline="\n"
    )
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
