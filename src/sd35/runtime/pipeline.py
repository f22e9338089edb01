"""Prompt to picture in four calls: encode, initial latents, denoise, decode.

This is the file to start reading. Each call is one function in one file: `encoders.encode`,
`latents.initial_latents`, `sampling.denoise` (the loop over `mmdit.MMDiT`), `latents.decode`.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import RLock

import torch
from PIL import Image
from torch import Tensor, nn

from sd35.request import GenerationRequest, Picture
from sd35.runtime.beginning import SourceEncoder, noised
from sd35.runtime.embeds import PromptCache
from sd35.runtime.encoders import TextEncoders, encode
from sd35.runtime.graphs import Recorder
from sd35.runtime.latents import decode, initial_latents
from sd35.runtime.memory import Work
from sd35.runtime.mmdit import MMDiT
from sd35.runtime.previews import LatentColours, Previews
from sd35.runtime.residence import Residence
from sd35.runtime.sampling import Glimpses, OnStep, denoise, flow_sigmas
from sd35.runtime.stretches import current
from sd35.runtime.vae import VaeDecoder
from sd35.variants import Variant

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GeneratedImage:
    """A drawn picture and what it was drawn from."""

    image: Image.Image
    picture: Picture


@dataclass(frozen=True)
class Generation:
    """The images of one call and the seconds that its stages took (encode, denoise, decode).

    `finite`: whether each image's latents were; where they were not, its pixels mean nothing.
    """

    images: list[GeneratedImage]
    seconds: dict[str, float]
    finite: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Pipeline:
    """A loaded model, ready to draw; `sd35.load` makes one. Threads that share it draw in turns."""

    variant: Variant
    text_encoders: TextEncoders
    mmdit: MMDiT
    vae: VaeDecoder
    shift: float
    device: torch.device
    identity: str  # of the checkpoint: SHA-256 over its files
    residence: Residence  # where the three parts' weights are, and when
    source_encoder: SourceEncoder  # for pictures that begin with an image
    recorder: Recorder | None = None  # of steps, where they are replayed from CUDA graphs
    prompts: PromptCache = field(default_factory=PromptCache)
    colours: LatentColours = field(default_factory=LatentColours)  # of unfinished pictures
    turn: RLock = field(default_factory=RLock, repr=False)  # weights that travel serve one drawing

    def generate(self, request: GenerationRequest, on_step: OnStep | None = None) -> Generation:
        """Draw what is asked; `on_step(done, of)` is called after each step, and what it raises ends it."""
        return self.draw(request.pictures(self.variant), on_step)

    @torch.inference_mode()
    def draw(
        self, pictures: Sequence[Picture], on_step: OnStep | None = None, previews: Previews | None = None
    ) -> Generation:
        """Draw pictures as one batch, and show them unfinished where that is wanted.

        Their settings are equal but for the strength of guidance, of which each has its own.
        """
        settings = pictures[0].settings
        alike = all(picture.settings.shares_steps_with(settings) for picture in pictures)
        assert alike, "a batch has one size and schedule"
        with self.turn:
            return self._with_room(
                Work.of(settings, len(pictures)), partial(self._draw, pictures, on_step or _ignore, previews)
            )

    def rest(self, shared: Collection[nn.Module] = ()) -> None:
        """Give the device back, but for parts `shared` with a model that stays; `wake` before drawing."""
        with self.turn:
            self._forget_recordings()
            self.residence.rest(shared)

    def wake(self) -> None:
        """Be on the device again."""
        with self.turn:
            self.residence.wake()

    def _with_room(self, work: Work, draw: Callable[[], Generation]) -> Generation:
        """Draw by a plan that has room for this work.

        Where the device turns out to have less room than was promised, once more with the next smaller plan;
        DeviceError with the largest size that would fit if that is not small enough either.
        """
        if self.residence.fit(work):
            self._forget_recordings()
        try:
            return draw()
        except torch.cuda.OutOfMemoryError as error:
            log.debug("out of memory: %s", error)
        # Here, where the error and the tensors of its frames are gone, memory can be given back.
        self._forget_recordings()
        self.residence.shrink(work)
        try:
            return draw()
        except torch.cuda.OutOfMemoryError as error:
            raise self.residence.no_room(work) from error

    def _draw(self, pictures: Sequence[Picture], on_step: OnStep, previews: Previews | None) -> Generation:
        """The four calls, each a stage: what it needs is on the device in it, and gone at its end."""
        settings, residence = pictures[0].settings, self.residence
        clock = StageClock(self.device)
        with current(self.device):
            glimpses = self._glimpses(previews)
            with clock("encode"):
                with residence.stage(), current(residence.encoders_on):
                    embeds = encode(self.text_encoders, pictures, self.prompts).to(self.device)
                with residence.stage(), current(residence.vae_on):
                    latents = self._first_latents(pictures)
            with clock("denoise"), residence.stage(), self.recording() as recorder:
                latents = denoise(
                    self.mmdit, latents, embeds, settings, self.shift, on_step, recorder,
                    one_pass=residence.plan.one_pass, glimpses=glimpses,
                    guidance_scales=[picture.settings.guidance_scale for picture in pictures],
                )  # fmt: skip
                finite = tuple(torch.isfinite(latents).flatten(1).all(dim=1).tolist())
            with clock("decode"), residence.stage(), current(residence.vae_on):
                images = decode(self.vae, latents.to(residence.vae_on))
        drawn = [GeneratedImage(image, picture) for image, picture in zip(images, pictures, strict=True)]
        return Generation(drawn, clock.seconds, finite)

    def _first_latents(self, pictures: Sequence[Picture]) -> Tensor:
        """Noise; where the pictures begin with images, these and as much noise as the first step expects."""
        noise, settings = initial_latents(pictures, self.device), pictures[0].settings
        if settings.strength == 1:
            return noise
        clean = self.source_encoder.encode(pictures, self.residence)
        sigma = flow_sigmas(settings.num_inference_steps, self.shift)[settings.first_step]
        return noised(clean.to(self.device), noise, sigma.to(self.device))

    def _glimpses(self, previews: Previews | None) -> Glimpses | None:
        """Previews as the loop knows them; the colours of this VAE are found with the first."""
        if previews is None or not previews.after_steps:
            return None
        vae_on = self.residence.vae_on
        with self.residence.stage(), current(vae_on):
            self.colours.fit(self.vae, vae_on, self.device)
        return Glimpses(previews.after_steps, self.colours.paint, previews.show)

    @contextmanager
    def recording(self) -> Iterator[Recorder | None]:
        """The recorder of a loop: None where weights pass during it, as a recording knows addresses.

        None too where blocks are on several cards, as a recording is of one. Where weights move between
        stages, its recordings end with the loop, and so does their memory.
        """
        plan = self.residence.plan
        try:
            yield None if plan.passing or plan.name == "split" else self.recorder
        finally:
            if plan.moves:
                self._forget_recordings()

    def _forget_recordings(self) -> None:
        if self.recorder is not None:
            self.recorder.forget()


@dataclass
class StageClock:
    """Seconds of named stages; a device's queue is drained before the clock is read."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = self._now()
        yield
        self.seconds[stage] = self._now() - begin

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _ignore(done: int, of: int) -> None:
    """The listener that does not listen."""
