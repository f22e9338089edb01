"""Train the MMDiT and its three text encoders together, by flow matching.

The model sees latents on the straight line between picture and noise, x = (1 - sigma) x0 + sigma e, and
predicts the line's direction, e - x0. What a picture shows is decided at high noise, so sigmas are drawn
around 0.67 (logit-normal), with a small uniform part for the fine end.

A picture of 256 pixels has 256 tokens; the text has 77 + 32 at T5's short length and 77 + 256 at the
pipeline's default one, nearly twice the cost. Most steps are short, some are long, a few take a length in
between. The joint blocks are compiled for the short shape alone; other steps run as they are.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .budget import Budget, TrainingLog, hold_then_fall
from .conditioning import Tokens, draw_dropout, encode
from .dataset import CAPTIONS_PER_PICTURE
from .optimizer import Muon, split_parameters

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel

    from .architecture import TextEncoders

MUON_LEARNING_RATE = 0.012
ADAM_LEARNING_RATE = 1e-3
WARMUP_STEPS = 300
EMA_DECAY = 0.999
SHORT, LONG = 32, 256
BETWEEN = (48, 64, 96, 128, 160, 192)
LONG_CHANCE, BETWEEN_CHANCE = 0.10, 0.04
LENGTH_SEED = 4  # The first four steps are short, long, short, between: a rehearsal meets them all.
LOG_EVERY = 50


@dataclass(frozen=True)
class Schedule:
    """How a leg runs: share of time at full rate, batch size, compiled or not."""

    hold: float
    batch: int
    compiled: bool


@dataclass(frozen=True)
class Corpus:
    """Latents [N, 16, 32, 32] on the device, the captions' tokens, and those of the empty caption."""

    latents: Tensor
    tokens: Tokens
    empty: Tokens
    t5_pad: int


class Trainer:
    """Model, optimizers and averaged weights: everything that a leg hands to the next."""

    def __init__(self, mmdit: SD3Transformer2DModel, encoders: TextEncoders, device: torch.device) -> None:
        self.mmdit, self.encoders, self.device = mmdit, encoders, device
        self.trained = nn.ModuleList([mmdit, *encoders.modules()]).to(device).train()
        matrices, rest = split_parameters(mmdit, encoders.modules())
        self.muon = Muon(matrices, MUON_LEARNING_RATE)
        self.adam = torch.optim.AdamW(
            rest, ADAM_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=device.type == "cuda"
        )
        self.parameters: list[Tensor] = [*self.trained.parameters()]
        self.averages = [p.detach().clone() for p in self.parameters]
        self.step = 0

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "model": self.trained.state_dict(),
            "averages": self.averages,
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "step": self.step,
        }

    def load_state(self, path: Path) -> None:
        """Go on from a saved state."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.trained.load_state_dict(state["model"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.averages = state["averages"]
        self.step = state["step"]

    def update(self, loss: Tensor, rate: float) -> Tensor:
        """One step at `rate` times the full learning rates; returns the norm of the gradient."""
        rate *= min(1.0, (self.step + 1) / WARMUP_STEPS)
        self.muon.param_groups[0]["lr"] = MUON_LEARNING_RATE * rate
        self.adam.param_groups[0]["lr"] = ADAM_LEARNING_RATE * rate
        self.trained.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.muon.step()
        self.adam.step()
        self.step += 1
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1 - decay)
        return norm

    @torch.no_grad()
    def use_averages(self) -> None:
        """Put the averaged weights into the model; training ends here."""
        torch._foreach_copy_(self.parameters, self.averages)


def train_mmdit(
    trainer: Trainer, corpus: Corpus, schedule: Schedule, budget: Budget, log: TrainingLog
) -> None:
    """One leg of training, in place."""
    if schedule.compiled:
        torch._dynamo.config.recompile_limit = 16
        for block in trainer.mmdit.transformer_blocks:
            block.compile(fullgraph=True, dynamic=False)
    lengths = Random(LENGTH_SEED + trainer.step)
    generator = torch.Generator(trainer.device).manual_seed(1000 + trainer.step)
    total, first, norm = torch.zeros((), device=trainer.device), trainer.step, torch.zeros(())
    while not budget.over(trainer.step - first):
        length = draw_length(lengths)
        stance = nullcontext() if length == SHORT else torch.compiler.set_stance("force_eager")
        with stance:
            loss = flow_loss(trainer, corpus, length, _batch_size(schedule.batch, length), generator)
            norm = trainer.update(loss, hold_then_fall(budget.share(), schedule.hold))
        total += loss.detach()
        if trainer.step % LOG_EVERY == 0:
            log.write(
                stage="mmdit",
                step=trainer.step,
                seconds=budget.used(),
                loss=total.item() / LOG_EVERY,
                norm=norm.item(),
            )
            total.zero_()
    log.write(stage="mmdit", step=trainer.step, seconds=budget.used(), steps_this_leg=trainer.step - first)


def draw_length(rng: Random) -> int:
    """T5's length for a step."""
    draw = rng.random()
    if draw < LONG_CHANCE:
        return LONG
    return rng.choice(BETWEEN) if draw < LONG_CHANCE + BETWEEN_CHANCE else SHORT


def _batch_size(batch: int, length: int) -> int:
    """Steps that run uncompiled take a third of a batch, so that all cost about the same."""
    return batch if length == SHORT else max(1, batch // 3)


def flow_loss(
    trainer: Trainer, corpus: Corpus, length: int, batch: int, generator: torch.Generator
) -> Tensor:
    """The mean squared error of the predicted direction on a random batch."""
    device = trainer.device
    picture = torch.randint(len(corpus.latents), (batch,), generator=generator, device=device)
    said = torch.randint(CAPTIONS_PER_PICTURE, (batch,), generator=generator, device=device)
    tokens = corpus.tokens.select(picture * CAPTIONS_PER_PICTURE + said, device)
    empty, keep = draw_dropout(batch, generator)
    tokens = tokens.replace(empty, corpus.empty).pad_t5(length, corpus.t5_pad)
    x0 = corpus.latents[picture].float()
    noise = torch.randn(x0.shape, generator=generator, device=device)
    sigma = draw_sigmas(batch, generator)
    level = sigma[:, None, None, None]
    with torch.autocast(device.type, torch.bfloat16):
        embeds, pooled = encode(trainer.encoders, tokens, keep)
        direction = trainer.mmdit(
            hidden_states=((1 - level) * x0 + level * noise).bfloat16(),
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            timestep=sigma * 1000,
            return_dict=False,
        )[0]
    return (direction.float() - (noise - x0)).square().mean()


def draw_sigmas(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels in 0..1: sigmoid of a normal around 0.7, and one in eight uniform."""
    draws = torch.rand(count, 2, generator=generator, device=generator.device)
    normal = torch.randn(count, generator=generator, device=generator.device)
    return torch.where(draws[:, 0] < 0.125, draws[:, 1], torch.sigmoid(0.7 + 1.1 * normal))
