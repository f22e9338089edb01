"""The denoising loop: Euler steps along the straight lines of rectified flow.

The model was trained on x_sigma = (1 - sigma) * picture + sigma * noise and predicts the velocity
noise - picture. From sigma 1 to 0, each step moves x by (next sigma - sigma) * velocity. Large pictures
need more of their steps at high noise, hence the shift: sigma' = s * sigma / (1 + (s - 1) * sigma), s = 3.

Source: arXiv 2403.03206; `FlowMatchEulerDiscreteScheduler` of diffusers, which the tests hold this to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sd35.request import Settings
from sd35.runtime.embeds import PromptEmbeds
from sd35.runtime.graphs import Recorder
from sd35.runtime.mmdit import MMDiT
from sd35.runtime.step import Step, euler_step

TRAIN_TIMESTEPS = 1000

OnStep = Callable[[int, int], None]  # (steps done, steps in all); what it raises ends the loop


@dataclass(frozen=True)
class Glimpses:
    """Looks at the clean latents that a step points to: after which steps (counted from 1), and who looks.

    `develop` makes of them, on the device, what `show` gets on the host, once the step is over.
    """

    after_steps: frozenset[int]
    develop: Callable[[Tensor], Tensor]
    show: Callable[[int, Tensor], None]


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
    guidance_scales: Sequence[float] = (),
    glimpses: Glimpses | None = None,
) -> Tensor:
    """Latents [B, 16, H, W] in float32, at the first step's noise level -> the picture's, same shape.

    All steps are run from pure noise; from an image, those from the settings' `first_step` on. Where guidance
    is on, `embeds` holds the negative prompts' rows first, then the prompts', and `guidance_scales` has one
    scale for each picture; empty, the settings' is for all. With a recorder the steps are replayed from CUDA
    graphs; without `one_pass` guidance takes two smaller passes. Nothing is computed for glimpses after other
    steps than theirs, and the loop never waits for one.
    """
    first = settings.first_step
    sigmas = flow_sigmas(settings.num_inference_steps, shift)[first:].to(latents.device)
    conditioning = mmdit.condition(embeds.sequence, embeds.pooled, sigmas[:-1] * TRAIN_TIMESTEPS)
    strides = sigmas.diff()
    scales = [*(guidance_scales or [settings.guidance_scale] * len(latents))]
    guidance = latents.new_tensor(scales).view(-1, 1, 1, 1)
    skip_guidance = latents.new_tensor(settings.skip_layer_guidance_scale)
    progress = Progress(on_step, len(strides), latents.device, glimpses)
    for i, stride in enumerate(strides):
        step = Step(
            latents, conditioning.context, conditioning.table[i], stride, guidance, skip_guidance,
            guided=settings.guided,
            skip_layers=settings.skip_layers if settings.skips_layers_at(first + i) else (),
            one_pass=one_pass,
        )  # fmt: skip
        before, latents = latents, recorder.run(mmdit, step) if recorder else euler_step(mmdit, step)
        wanted = glimpses is not None and i + 1 in glimpses.after_steps
        clean = clean_latents(before, latents, sigmas[i], sigmas[i + 1]) if wanted else None
        progress.queued(clean)
    progress.finish()
    return latents


def clean_latents(before: Tensor, after: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
    """Where the line ends, at sigma 0, that a step from `before` to `after` follows."""
    return before + (after - before) * (sigma / (sigma - next_sigma))


@dataclass(frozen=True)
class _Queued:
    """A step in the device's queue: the event after it, and the glimpse that it brings to the host."""

    event: torch.cuda.Event | None
    glimpse: Tensor | None


class Progress:
    """Tells a listener of each step when it is done, with one more step queued so that no card waits."""

    def __init__(
        self, on_step: OnStep, steps: int, device: torch.device, glimpses: Glimpses | None = None
    ) -> None:
        self._on_step, self._steps, self._device, self._glimpses = on_step, steps, device, glimpses
        self._queued: list[_Queued] = []
        self._done = 0

    def queued(self, clean: Tensor | None = None) -> None:
        """One more step is in the device's queue, and behind it whatever becomes of a glimpse."""
        glimpse = None
        if clean is not None and self._glimpses is not None:
            # Into page-locked memory, which the host need not wait for: the step's own event covers it.
            glimpse = self._glimpses.develop(clean).to("cpu", non_blocking=True)
        event = None
        if self._device.type == "cuda":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._device))
        self._queued.append(_Queued(event, glimpse))
        if event is None or len(self._queued) > 1:
            self._await_one()

    def finish(self) -> None:
        """Wait for what is still queued."""
        while self._queued:
            self._await_one()

    def _await_one(self) -> None:
        queued = self._queued.pop(0)
        if queued.event is not None:
            queued.event.synchronize()
        self._done += 1
        self._on_step(self._done, self._steps)
        if queued.glimpse is not None and self._glimpses is not None:
            self._glimpses.show(self._done, queued.glimpse)


def _shifted(sigma: Tensor, shift: float) -> Tensor:
    return shift * sigma / (1 + (shift - 1) * sigma)
