"""The denoising loop: Euler steps along the straight lines of rectified flow.

The model was trained on x_sigma = (1 - sigma) * picture + sigma * noise and predicts the velocity
noise - picture. From sigma 1 to 0, each step moves x by (next sigma - sigma) * velocity. Large pictures
need more of their steps at high noise, hence the shift: sigma' = s * sigma / (1 + (s - 1) * sigma), s = 3.

Guidance runs the model on the negative prompt too and goes `guidance_scale` times the way from there to
the prompt's own prediction. Skip-layer guidance adds, in early steps, the difference to what the model
says without some of its middle blocks.

Source: arXiv 2403.03206; `FlowMatchEulerDiscreteScheduler` of diffusers, which the tests hold this to.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sd35.request import Settings
from sd35.runtime.encoders import PromptEmbeds
from sd35.runtime.mmdit import Conditioning, MMDiT

TRAIN_TIMESTEPS = 1000

OnStep = Callable[[int, int], None]  # (steps done, steps in all); what it raises ends the loop


def flow_sigmas(num_inference_steps: int, shift: float) -> Tensor:
    """Noise levels [steps + 1] in float32, from 1 down to the closing 0.

    The lowest level before 0 is the training schedule's lowest, and it is shifted twice: once as the end
    of that schedule and once as a member of this one. That is what diffusers does, so the model's makers'
    recommended settings assume it.
    """
    lowest = _shifted(torch.tensor(1.0 / TRAIN_TIMESTEPS), shift).item()
    levels = torch.linspace(1.0, lowest, num_inference_steps, dtype=torch.float64)
    return torch.cat([_shifted(levels, shift), torch.zeros(1, dtype=torch.float64)]).float()


def denoise(
    mmdit: MMDiT, latents: Tensor, embeds: PromptEmbeds, settings: Settings, shift: float, on_step: OnStep
) -> Tensor:
    """Noise [B, 16, H, W] in float32 -> the picture's latents, same shape.

    `embeds` holds the negative rows first, then the prompts' rows, where guidance is on.
    """
    sigmas = flow_sigmas(settings.num_inference_steps, shift)
    timesteps = (sigmas[:-1] * TRAIN_TIMESTEPS).to(latents.device)
    conditioning = mmdit.condition(embeds.sequence, embeds.pooled, timesteps)
    dtype = embeds.sequence.dtype
    strides = sigmas.diff().tolist()
    for step, stride in enumerate(strides):
        velocity = guided_velocity(mmdit, latents.to(dtype), conditioning, settings, step)
        latents = latents + stride * velocity.float()
        on_step(step + 1, len(strides))
    return latents


def guided_velocity(
    mmdit: MMDiT, latents: Tensor, conditioning: Conditioning, settings: Settings, step: int
) -> Tensor:
    """The velocity at `latents` [B, 16, H, W], with as much guidance as the settings ask for in this step."""
    if not settings.guided:
        return mmdit(latents, conditioning, step)
    negative, positive = mmdit(torch.cat([latents, latents]), conditioning, step).chunk(2)
    velocity: Tensor = negative + settings.guidance_scale * (positive - negative)
    if settings.skips_layers_at(step):
        prompts_only = conditioning.rows(slice(len(latents), None))
        without_layers = mmdit(latents, prompts_only, step, settings.skip_layers)
        velocity = velocity + settings.skip_layer_guidance_scale * (positive - without_layers)
    return velocity


def _shifted(sigma: Tensor, shift: float) -> Tensor:
    return shift * sigma / (1 + (shift - 1) * sigma)
