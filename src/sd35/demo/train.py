"""Train the demo checkpoint, stage by stage, in legs that end on time.

    python -m sd35.demo.train WORK --renderings renderings.zip captions vae=130 latents=45 mmdit=250 export

Every stage reads what earlier ones left in WORK and leaves its own files there, so a leg may end after
any stage and the next goes on. Stages and their seconds, in order:

    captions    recipes of all pictures, tokenizers learnt from their captions, tokens   (CPU alone)
    vae         the VAE, then scale and shift of its latents
    decoder     the VAE's decoder alone, sharpened; may come last, the MMDiT does not notice
    evaluator   the judge
    latents     pictures composed and encoded once
    mmdit       MMDiT and text encoders; "mmdit=rest" takes what --deadline leaves; may be repeated
    export      the averaged weights as a diffusers folder, WORK/checkpoint
"""

from __future__ import annotations

import argparse
import string
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import architecture
from .architecture import Tokenizers
from .budget import Budget, TrainingLog
from .conditioning import Tokens, tokenize
from .dataset import CAPTIONS_PER_PICTURE, Recipe, compose, draw_captions, draw_recipes
from .evaluator import EvaluatorNet
from .renderings import load_renderings
from .scenes import Composer
from .train_evaluator import BATCH, train_evaluator
from .train_mmdit import SHORT, Corpus, Schedule, Trainer, train_mmdit
from .train_vae import CROP_BATCH, LEARNING_RATE, encode_recipes, measure_latents, train_decoder, train_vae
from .vocabulary import load_vocabulary

TOKENIZER_CAPTIONS = 60_000
DECODER_BATCH = 8


@dataclass
class Session:
    """One run of this program: its folders, its options, and what several stages share."""

    work: Path
    renderings: Path
    device: torch.device
    schedule: Schedule
    pictures: int
    max_steps: int | None
    seed: int
    start: Path | None

    @cached_property
    def log(self) -> TrainingLog:
        """The rows of all legs."""
        return TrainingLog(self.work / "log.jsonl")

    @cached_property
    def composer(self) -> Composer:
        """The renderings on the device."""
        vocabulary = load_vocabulary()
        return Composer(load_renderings(self.renderings, vocabulary), vocabulary, self.device)

    @cached_property
    def recipes(self) -> list[Recipe]:
        """The same recipes in every process."""
        return draw_recipes(load_vocabulary(), self.pictures, self.seed)

    def budget(self, seconds: float) -> Budget:
        """A stage's time."""
        return Budget(seconds, self.max_steps)

    def tokenizers(self) -> Tokenizers:
        """The tokenizers that the stage "captions" has left."""
        return architecture.load_tokenizers(self.work)

    def vae(self) -> AutoencoderKL:
        """The VAE that this leg has trained, or the one of the start."""
        own = self.work / "vae"
        folder = own if own.exists() or self.start is None else self.start / "vae"
        vae: AutoencoderKL = AutoencoderKL.from_pretrained(folder, dtype=torch.float32)
        return vae

    def fresh_pictures(self) -> Tensor:
        """Pictures that no stage trains on, [512, 3, 256, 256]."""
        recipes = draw_recipes(load_vocabulary(), min(512, self.pictures), self.seed + 2)
        return compose(self.composer, recipes, torch.Generator(self.device).manual_seed(3))


def captions_stage(session: Session, seconds: float) -> None:
    """Learn the tokenizers, or take those of the start; tokenize every caption; `seconds` is not used."""
    captions = draw_captions(load_vocabulary(), session.recipes, session.seed + 1)
    if session.start is None:
        tokenizers = architecture.train_tokenizers(
            [*captions[:TOKENIZER_CAPTIONS], " ".join(string.printable)]
        )
    else:
        tokenizers = architecture.load_tokenizers(session.start)
    architecture.save_tokenizers(tokenizers, session.work)
    tokens, empty = tokenize(tokenizers, captions, SHORT), tokenize(tokenizers, [""], SHORT)
    tensors = {f"{n}.{k}": v for n, t in (("all", tokens), ("empty", empty)) for k, v in vars(t).items()}
    _save_whole(tensors, session.work / "tokens.safetensors")


def vae_stage(session: Session, seconds: float) -> None:
    """Train the VAE, measure its latents, save both."""
    torch.manual_seed(session.seed)
    vae = architecture.build_vae()
    if session.start is not None:
        vae.load_state_dict(AutoencoderKL.from_pretrained(session.start / "vae").state_dict())
    batch = min(CROP_BATCH, session.schedule.batch)
    rate = LEARNING_RATE if session.start is None else LEARNING_RATE / 2
    train_vae(vae, session.composer, session.recipes, session.budget(seconds), session.log, batch, rate)
    mean, deviation, _ = _measure_vae(session, vae)
    vae.register_to_config(shift_factor=round(mean, 4), scaling_factor=round(1 / deviation, 4))
    vae.save_pretrained(session.work / "vae")


def decoder_stage(session: Session, seconds: float) -> None:
    """Sharpen the decoder; encoder, scale and shift stay."""
    vae = session.vae()
    batch = min(DECODER_BATCH, session.schedule.batch)
    _measure_vae(session, vae)
    train_decoder(vae, session.composer, session.recipes, session.budget(seconds), session.log, batch)
    _measure_vae(session, vae)
    vae.save_pretrained(session.work / "vae")


def _measure_vae(session: Session, vae: AutoencoderKL) -> tuple[float, float, float]:
    """Mean and deviation of the latents, and PSNR."""
    figures = [measure_latents(vae, part) for part in session.fresh_pictures().split(64)]
    mean, deviation, psnr = (sum(column) / len(figures) for column in zip(*figures, strict=True))
    session.log.write(stage="vae", mean=mean, deviation=deviation, psnr=psnr)
    return mean, deviation, psnr


def evaluator_stage(session: Session, seconds: float) -> None:
    """Train the evaluator and save it in half precision."""
    torch.manual_seed(session.seed + 3)
    net = EvaluatorNet(load_vocabulary())
    batch = min(BATCH, session.schedule.batch)
    train_evaluator(net, session.composer, load_vocabulary(), session.budget(seconds), session.log, batch)
    weights = {name: value.detach().half().contiguous().cpu() for name, value in net.state_dict().items()}
    save_file(weights, session.work / "evaluator.safetensors")


def latents_stage(session: Session, seconds: float) -> None:
    """Encode as many pictures as the time allows."""
    generator = torch.Generator(session.device).manual_seed(session.seed)
    budget = session.budget(seconds)
    latents = encode_recipes(session.vae(), session.composer, session.recipes, budget, generator)
    session.log.write(stage="latents", pictures=len(latents), deviation=latents[:4096].float().std().item())
    _save_whole({"latents": latents.cpu()}, session.work / "latents.safetensors")


def mmdit_stage(session: Session, seconds: float) -> None:
    """One leg of MMDiT training, from scratch or from the last leg's state."""
    budget = session.budget(seconds)
    torch.manual_seed(session.seed + 4)
    corpus = _corpus(session)
    mmdit, encoders = architecture.build_mmdit(), architecture.build_text_encoders(session.tokenizers())
    state = session.work / "state.pt"
    if session.start is not None and not state.exists():
        architecture.load_weights(session.start, mmdit, encoders)
    trainer = Trainer(mmdit, encoders, session.device)
    if state.exists():
        trainer.load_state(state)
    train_mmdit(trainer, corpus, session.schedule, budget, session.log)
    torch.save(trainer.state(), state)


def _save_whole(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a file that another process may be waiting for: it appears when it is complete."""
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.rename(path)


def _wait_and_load(path: Path, device: torch.device) -> dict[str, Tensor]:
    """Read a file that another process may still be making."""
    while not path.exists():
        time.sleep(0.5)
    return load_file(path, device=str(device))


def _corpus(session: Session) -> Corpus:
    """Latents and tokens, on the device."""
    tensors = _wait_and_load(session.work / "tokens.safetensors", session.device)
    latents = _wait_and_load(session.work / "latents.safetensors", session.device)["latents"]
    tokenizers = session.tokenizers()
    assert len(tensors["all.t5"]) >= len(latents) * CAPTIONS_PER_PICTURE, "fewer captions than pictures"
    all_tokens, empty = (
        Tokens(*(tensors[f"{name}.{field}"] for field in ("clip_l", "clip_g", "t5")))
        for name in ("all", "empty")
    )
    return Corpus(latents, all_tokens, empty, tokenizers.t5.pad_token_id)


def export_stage(session: Session, seconds: float) -> None:
    """Write the averaged weights as a diffusers folder; `seconds` is not used."""
    folder = session.work if (session.work / "tokenizer").exists() else session.start
    assert folder is not None, "no tokenizers: run the stage captions"
    tokenizers = architecture.load_tokenizers(folder)
    mmdit, encoders = architecture.build_mmdit(), architecture.build_text_encoders(tokenizers)
    state = session.work / "state.pt"
    if state.exists():
        trainer = Trainer(mmdit, encoders, torch.device("cpu"))
        trainer.load_state(state)
        trainer.use_averages()
    elif session.start is not None:
        architecture.load_weights(session.start, mmdit, encoders)
    for module in (mmdit, *encoders.modules()):
        module.eval()
    pipeline = architecture.build_pipeline(tokenizers, encoders, session.vae(), mmdit)
    size = architecture.save_pipeline(pipeline, session.work / "checkpoint")
    session.log.write(stage="export", bytes=float(size))


STAGES: dict[str, Callable[[Session, float], None]] = {
    "captions": captions_stage,
    "vae": vae_stage,
    "decoder": decoder_stage,
    "evaluator": evaluator_stage,
    "latents": latents_stage,
    "mmdit": mmdit_stage,
    "export": export_stage,
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the demo checkpoint.")
    parser.add_argument("work", type=Path, help="folder for everything that is made")
    parser.add_argument("stages", nargs="+", metavar="stage[=seconds]", help=" ".join(STAGES))
    parser.add_argument("--renderings", type=Path, required=True, help="zip file of sd35.demo.renderings")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--deadline", type=float, default=600.0, help='seconds in all, for "mmdit=rest"')
    parser.add_argument("--reserve", type=float, default=30.0, help='seconds that "mmdit=rest" leaves free')
    parser.add_argument(
        "--started", type=float, default=time.time(), help="when the leg began, in Unix seconds"
    )
    parser.add_argument(
        "--hold", type=float, default=1.0, help="share of mmdit's time at the full learning rate"
    )
    parser.add_argument("--batch", type=int, default=768)
    parser.add_argument("--pictures", type=int, default=140_000)
    parser.add_argument("--seed", type=int, default=20, help="of recipes, captions and first weights")
    parser.add_argument(
        "--start", type=Path, default=None, help="checkpoint folder to take weights and tokenizers from"
    )
    parser.add_argument("--max-steps", type=int, default=None, help="for rehearsals")
    parser.add_argument("--no-compile", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Run the stages named on the command line."""
    options = _arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    schedule = Schedule(options.hold, options.batch, compiled=not options.no_compile)
    device = torch.device(options.device)
    session = Session(
        options.work,
        options.renderings,
        device,
        schedule,
        options.pictures,
        options.max_steps,
        options.seed,
        options.start,
    )
    for word in options.stages:
        name, _, seconds = word.partition("=")
        left = options.deadline - options.reserve - (time.time() - options.started)
        began = time.time()
        STAGES[name](session, left if seconds == "rest" else float(seconds or 0))
        session.log.write(stage=name, took=time.time() - began, since_start=time.time() - options.started)


if __name__ == "__main__":
    main()
