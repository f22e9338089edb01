"""Train the VAE: sharp pictures, and latents that a small MMDiT can learn.

A VAE that only reconstructs hides pixel detail in latents that look like noise, and then the MMDiT has
to predict noise. Three terms keep the latents smooth besides the usual reconstruction: a light KL term,
a little noise on the latents before decoding, and scale equivariance: latents shrunk to half must decode
to the picture shrunk to half. Random crops of 128 pixels teach most; the last part of the time goes to
whole pictures.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .budget import Budget, TrainingLog, cosine
from .dataset import Recipe, compose
from .scenes import CANVAS, Composer

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

LEARNING_RATE = 1e-3
DECODER_LEARNING_RATE = 3e-4
CROP = 128
CROP_BATCH = 64
WHOLE_SHARE = 0.4
EDGE_WEIGHT = 0.5
KL_WEIGHT = 5e-4
LATENT_NOISE = 0.05
EQUIVARIANCE_WEIGHT = 0.25


def train_vae(
    vae: AutoencoderKL,
    composer: Composer,
    recipes: list[Recipe],
    budget: Budget,
    log: TrainingLog,
    batch: int = CROP_BATCH,
    learning_rate: float = LEARNING_RATE,
) -> None:
    """Train in place on crops and then whole pictures of `recipes`."""
    device = composer.device
    generator = torch.Generator(device).manual_seed(1)
    vae.to(device, memory_format=torch.channels_last).train()
    keep_norms_in_bfloat16(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    step = 0
    while not budget.over(step):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * cosine(budget.share())
        pictures = _batch(composer, recipes, generator, step, batch, whole=budget.share() > 1 - WHOLE_SHARE)
        loss, parts = _loss(vae, pictures, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            log.write(
                stage="vae", step=step, seconds=budget.used(), **{k: v.item() for k, v in parts.items()}
            )
    log.write(stage="vae", step=step, seconds=budget.used(), loss=loss.item())


def train_decoder(
    vae: AutoencoderKL,
    composer: Composer,
    recipes: list[Recipe],
    budget: Budget,
    log: TrainingLog,
    batch: int,
) -> None:
    """Sharpen the decoder alone, in float32: latents stay as they are, so a trained MMDiT stays right."""
    device = composer.device
    generator = torch.Generator(device).manual_seed(4)
    vae.to(device, memory_format=torch.channels_last).requires_grad_(False)
    vae.decoder.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), DECODER_LEARNING_RATE, betas=(0.9, 0.99))
    step = 0
    while not budget.over(step):
        for group in optimizer.param_groups:
            group["lr"] = DECODER_LEARNING_RATE * cosine(budget.share())
        whole = step % 2 == 1
        pictures = _batch(composer, recipes, generator, step, batch, whole=whole)
        output = vae.decode(_noisy_latents(vae, pictures, generator)).sample
        l1, edges = (output - pictures).abs().mean(), _edge_difference(output, pictures)
        optimizer.zero_grad(set_to_none=True)
        (l1 + EDGE_WEIGHT * edges).backward()
        nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            log.write(stage="decoder", step=step, seconds=budget.used(), l1=l1.item(), edges=edges.item())
    log.write(stage="decoder", step=step, seconds=budget.used())


@torch.no_grad()
def _noisy_latents(vae: AutoencoderKL, pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Latents of pictures, a little off, as a model's are."""
    latents: Tensor = vae.encode(pictures).latent_dist.mode()
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    return latents + LATENT_NOISE * noise


@torch.no_grad()
def _batch(
    composer: Composer,
    recipes: list[Recipe],
    generator: torch.Generator,
    step: int,
    batch: int,
    *,
    whole: bool,
) -> Tensor:
    """Pictures in -1..1: `batch` crops, two of each picture, or a quarter as many whole pictures."""
    count = batch // 4 if whole else batch // 2
    start = step * count % (len(recipes) - count + 1)
    pictures = compose(composer, recipes[start : start + count], generator) * 2 - 1
    if not whole:
        pictures = torch.cat([_crop(pictures, generator), _crop(pictures, generator)])
    return pictures.contiguous(memory_format=torch.channels_last)


def _crop(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """A random window of each picture."""
    corner = torch.randint(
        0, CANVAS - CROP + 1, (len(pictures), 2, 1), generator=generator, device=pictures.device
    )
    index = corner + torch.arange(CROP, device=pictures.device)
    batch = torch.arange(len(pictures), device=pictures.device)[:, None, None]
    return pictures.permute(0, 2, 3, 1)[batch, index[:, 0, :, None], index[:, 1, None, :]].permute(0, 3, 1, 2)


def _loss(
    vae: AutoencoderKL, pictures: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.autocast(pictures.device.type, torch.bfloat16):
        posterior = vae.encode(pictures).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator, device=pictures.device)
        latents = posterior.mean + (posterior.std + LATENT_NOISE) * noise
        whole = vae.decode(latents).sample.float()
        half = vae.decode(F.avg_pool2d(latents, 2)).sample.float()
    l1, edges = (whole - pictures).abs().mean(), _edge_difference(whole, pictures)
    equivariance = (half - F.avg_pool2d(pictures, 2)).abs().mean()
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    loss = l1 + EDGE_WEIGHT * edges + KL_WEIGHT * kl + EQUIVARIANCE_WEIGHT * equivariance
    return loss, {"loss": loss.detach(), "l1": l1, "edges": edges, "half": equivariance, "kl": kl}


def _edge_difference(output: Tensor, target: Tensor) -> Tensor:
    """Mean difference of horizontal and vertical gradients: it punishes blur."""
    error = output - target
    return (error[..., 1:] - error[..., :-1]).abs().mean() + (
        error[..., 1:, :] - error[..., :-1, :]
    ).abs().mean()


def keep_norms_in_bfloat16(vae: nn.Module) -> None:
    """Autocast hands group norms float32 tensors, twice the traffic; their sums are float32 anyway."""
    for module in vae.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = partial(_group_norm, module)  # type: ignore[method-assign]


def _group_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """A GroupNorm in the type of its input."""
    with torch.autocast(x.device.type, enabled=False):
        return F.group_norm(x, norm.num_groups, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


@torch.inference_mode()
def measure_latents(vae: AutoencoderKL, pictures: Tensor) -> tuple[float, float, float]:
    """(mean of the latents, standard deviation, PSNR of the reconstruction in dB) on pictures in 0..1."""
    with torch.autocast(pictures.device.type, torch.bfloat16):
        latents = vae.encode(pictures * 2 - 1).latent_dist.mode()
        restored = vae.decode(latents).sample.float()
    error = (restored.clamp(-1, 1) / 2 + 0.5 - pictures).square().mean(dim=(1, 2, 3))
    psnr = (-10 * error.log10()).mean().item()
    return latents.float().mean().item(), latents.float().std().item(), psnr


@torch.inference_mode()
def encode_recipes(
    vae: AutoencoderKL,
    composer: Composer,
    recipes: list[Recipe],
    budget: Budget,
    generator: torch.Generator,
    batch: int = 128,
) -> Tensor:
    """Normalised latents of as many recipes as the time allows, [N, 16, 32, 32] bfloat16 on the device."""
    vae.to(composer.device, torch.bfloat16, memory_format=torch.channels_last).eval()
    shift, scale = vae.config["shift_factor"], vae.config["scaling_factor"]
    chunks: list[Tensor] = []
    for start in range(0, len(recipes), batch):
        pictures = compose(composer, recipes[start : start + batch], generator) * 2 - 1
        pictures = pictures.to(torch.bfloat16, memory_format=torch.channels_last)
        latents = vae.encode(pictures).latent_dist.mode().float()
        chunks.append(((latents - shift) * scale).bfloat16().contiguous())
        if budget.over(len(chunks)):
            break
    return torch.cat(chunks)
