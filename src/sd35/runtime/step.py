"""One denoising step: the velocity at the latents, with guidance, and an Euler step along it.

Guidance runs the model on the negative prompt too and goes `guidance` times the way from there to the
prompt's own prediction. Skip-layer guidance adds, in early steps, the difference to what the model says
without some of its middle blocks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sd35.runtime.mmdit import MMDiT


@dataclass(frozen=True)
class Step:
    """A step's inputs, all tensors on the device; `guided` and `skip_layers` say what is computed.

    `latents` [B, 16, H, W] in float32; `context` and `table` as the MMDiT wants them, negative rows first
    where guidance is on; `stride` [] is the next noise level less this one's; `guidance` and `skip_guidance`
    are the scales, [] or one a picture [B, 1, 1, 1]. Guidance's two halves are one batch, or without
    `one_pass` two, one after the other, which needs half of the activations.
    """

    latents: Tensor
    context: Tensor
    table: Tensor
    stride: Tensor
    guidance: Tensor
    skip_guidance: Tensor
    guided: bool
    skip_layers: tuple[int, ...]
    one_pass: bool = True


def euler_step(mmdit: MMDiT, step: Step) -> Tensor:
    """The latents after the step, in float32; nothing here waits for the device."""
    return step.latents + step.stride * velocity(mmdit, step)


def velocity(mmdit: MMDiT, step: Step) -> Tensor:
    """The velocity at the step's latents, [B, 16, H, W] in float32."""
    latents = step.latents.to(step.context.dtype)
    if not step.guided:
        return mmdit(latents, step.context, step.table).float()
    negative, positive = _both_halves(mmdit, latents, step)
    guided: Tensor = negative + step.guidance * (positive - negative)
    if step.skip_layers:
        prompts = slice(len(latents), None)
        without = mmdit(latents, step.context[prompts], step.table[prompts], step.skip_layers).float()
        guided = guided + step.skip_guidance * (positive - without)
    return guided


def _both_halves(mmdit: MMDiT, latents: Tensor, step: Step) -> tuple[Tensor, Tensor]:
    """The velocity by the negative prompts and by the prompts, in float32."""
    if step.one_pass:
        negative, positive = mmdit(torch.cat([latents, latents]), step.context, step.table).float().chunk(2)
        return negative, positive
    halves = zip(step.context.chunk(2), step.table.chunk(2), strict=True)
    negative, positive = (mmdit(latents, context, table).float() for context, table in halves)
    return negative, positive
