"""The denoising loop: Euler steps along the straight lines of rectified flow.

The model was trained on x_sigma = (1 - sigma) * picture + sigma * noise and predicts the velocity
noise - picture. From sigma 1 to 0, each step moves x by (next sigma - sigma) * velocity. Large pictures
need more of their steps at high noise, hence the shift: sigma' = s * sigma / (1 + (s - 1) * sigma), s = 3.

Source: arXiv 2403.03206; `FlowMatchEulerDiscreteScheduler` of diffusers, which the tests hold this to.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sd35.request import Settings
from sd35.runtime.embeds import PromptEmbeds
from sd35.runtime.graphs import Recorder
from sd35.runtime.mmdit import MMDiT
from sd35.runtime.step import Step, euler_step

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
    mmdit: MMDiT,
    latents: Tensor,
    embeds: PromptEmbeds,
    settings: Settings,
    shift: float,
    on_step: OnStep,
    recorder: Recorder | None = None,
    *,
    one_pass: bool = True,
) -> Tensor:
    """Noise [B, 16, H, W] in float32 -> the picture's latents, same shape.

    `embeds` holds the negative rows first, then the prompts' rows, where guidance is on. With a recorder
    the steps are replayed from CUDA graphs; without `one_pass` guidance takes two smaller ones.
    """
    sigmas = flow_sigmas(settings.num_inference_steps, shift).to(latents.device)
    conditioning = mmdit.condition(embeds.sequence, embeds.pooled, sigmas[:-1] * TRAIN_TIMESTEPS)
    strides = sigmas.diff()
    guidance, skip_guidance = latents.new_tensor(
        [settings.guidance_scale, settings.skip_layer_guidance_scale]
    )
    progress = Progress(on_step, len(strides), latents.device)
    for i, stride in enumerate(strides):
        step = Step(
            latents, conditioning.context, conditioning.table[i], stride, guidance, skip_guidance,
            guided=settings.guided,
            skip_layers=settings.skip_layers if settings.skips_layers_at(i) else (),
            one_pass=one_pass,
        )  # fmt: skip
        latents = recorder.run(mmdit, step) if recorder else euler_step(mmdit, step)
        progress.queued()
    progress.finish()
    return latents


class Progress:
    """Tells a listener of each step when it is done, with one more step queued so that no card waits."""

    def __init__(self, on_step: OnStep, steps: int, device: torch.device) -> None:
        self._on_step, self._steps, self._device = on_step, steps, device
        self._queued: list[torch.cuda.Event | None] = []
        self._done = 0

    def queued(self) -> None:
        """One more step is in the device's queue."""
        event = None
        if self._device.type == "cuda":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._device))
        self._queued.append(event)
        if event is None or len(self._queued) > 1:
            self._await_one()

    def finish(self) -> None:
        """Wait for what is still queued."""
        while self._queued:
            self._await_one()

    def _await_one(self) -> None:
        event = self._queued.pop(0)
        if event is not None:
            event.synchronize()
        self._done += 1
        self._on_step(self._done, self._steps)


def _shifted(sigma: Tensor, shift: float) -> Tensor:
    return shift * sigma / (1 + (shift - 1) * sigma)
