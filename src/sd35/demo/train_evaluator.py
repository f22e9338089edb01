"""Train the evaluator on the renderings, apart from the model: own seed, own blur and noise.

It will judge pictures that a VAE decoded and a model drew, so its training pictures are softened and
dirtied at random. Otherwise it would judge sharpness instead of subjects.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .budget import Budget, TrainingLog, cosine
from .evaluator import INPUT_SIZE, EvaluatorNet
from .scenes import Composer
from .vocabulary import Vocabulary

LEARNING_RATE = 2e-3
BATCH = 256
SEED = 7001


def train_evaluator(
    net: EvaluatorNet,
    composer: Composer,
    vocabulary: Vocabulary,
    budget: Budget,
    log: TrainingLog,
    batch: int = BATCH,
) -> None:
    """Train in place on all pairs of subject and style, on all backgrounds."""
    device = composer.device
    generator = torch.Generator(device).manual_seed(SEED)
    net.train().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=0.05)
    step = 0
    while not budget.over(step):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * cosine(budget.share(), warmup=0.05)
        labels = draw_labels(vocabulary, batch, generator)
        pixels = _soil(_pictures(composer, labels, generator), generator)
        with torch.autocast(device.type, torch.bfloat16):
            logits = net(pixels.contiguous(memory_format=torch.channels_last))
        loss = torch.stack(
            [
                F.cross_entropy(logit.float(), label, label_smoothing=0.05)
                for logit, label in zip(logits, labels, strict=True)
            ]
        ).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        if step % 200 == 0:
            log.write(stage="evaluator", step=step, seconds=budget.used(), loss=loss.item())
    log.write(stage="evaluator", step=step, seconds=budget.used(), loss=loss.item())


def draw_labels(
    vocabulary: Vocabulary, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Random subjects, styles and backgrounds."""
    device = generator.device

    def draw(high: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator, device=device)

    return draw(len(vocabulary.subjects)), draw(len(vocabulary.styles)), draw(len(vocabulary.colours))


@torch.no_grad()
def _pictures(
    composer: Composer, labels: tuple[Tensor, Tensor, Tensor], generator: torch.Generator
) -> Tensor:
    subject, style, colour = labels
    return F.avg_pool2d(composer.alone(composer.pair(subject, style), colour, generator), 256 // INPUT_SIZE)


@torch.no_grad()
def _soil(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Soften the whole batch by a random amount, shift each picture's brightness, add noise to each."""
    device = pixels.device
    size = int(torch.randint(INPUT_SIZE // 2, INPUT_SIZE + 1, (1,), generator=generator, device=device))
    small = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)
    pixels = F.interpolate(small, (INPUT_SIZE, INPUT_SIZE), mode="bilinear", align_corners=False)
    draws = torch.rand(len(pixels), 2, 1, 1, 1, generator=generator, device=device)
    noise = torch.randn(pixels.shape, generator=generator, device=device)
    return pixels * (0.95 + 0.1 * draws[:, 0]) + 0.06 * draws[:, 1] * noise
