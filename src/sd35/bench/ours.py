"""Our own engine, through its public doors alone: `Pipeline.draw`, or one of the calls that it makes.

With a single stage the parts of the model that it does not use leave the device, so that its peak of memory
is its own.
"""

import time
from collections.abc import Sequence

import torch

from sd35.bench.random_weights import RandomCheckpoint, random_embeds
from sd35.bench.timing import drain
from sd35.bench.work import shapes_of
from sd35.bench.workload import Workload
from sd35.checkpoints.formats import open_checkpoint
from sd35.checkpoints.full_size import config_of
from sd35.checkpoints.sizes import config_size
from sd35.checkpoints.store import locate
from sd35.config import RuntimeConfig
from sd35.errors import RequestError
from sd35.quantization.recipe import Recipe
from sd35.request import Picture
from sd35.runtime.devices import devices_of
from sd35.runtime.encoders import encode
from sd35.runtime.facts import components, precision
from sd35.runtime.latents import decode, initial_latents
from sd35.runtime.load import assemble, load_pipeline, resolve
from sd35.runtime.pipeline import Pipeline, StageClock
from sd35.runtime.sampling import OnStep, denoise

_USED = {"encode": "text_encoder", "denoise": "transformer", "decode": "vae"}  # parts' names begin so


class Sd35Engine:
    """Our pipeline: a checkpoint's, or of random weights, quantized as `sd35 quantize` does."""

    def __init__(self, workload: Workload) -> None:
        placement = resolve(workload.config())
        self.device = placement.device
        self.load_seconds: float | None = None
        self._pipeline = self._read(workload) if workload.checkpoint else _made(workload, self.device)
        self._stage = workload.stage
        self._embeds = random_embeds(shapes_of(workload), placement.device, placement.dtype)
        self.precision = precision(self._pipeline)["transformer"]
        self.attention = str(self._pipeline.mmdit.engine.attention)
        self.caps = _cap_all(workload.config())
        self.cap_bytes = max(filter(None, self.caps.values()), default=None)
        if self._stage is not None:
            self._let_go_of_all_but(_USED[self._stage])

    def _read(self, workload: Workload) -> Pipeline:
        """The named checkpoint's pipeline, under the cap from the start; the clock waits for all."""
        assert workload.checkpoint is not None
        _demand_size(workload)
        _cap_all(workload.config())
        drain(self.device)  # a card's first call is not loading
        begin = time.perf_counter()
        pipeline = load_pipeline(workload.checkpoint, workload.config(), workload.model)
        drain(self.device)
        self.load_seconds = time.perf_counter() - begin
        return pipeline

    @property
    def plan(self) -> str:
        """The memory plan: after a drawing, the one that it was drawn by."""
        return self._pipeline.residence.plan.name

    def draw(self, pictures: Sequence[Picture], on_step: OnStep) -> dict[str, float]:
        """The whole drawing, or the one stage."""
        if self._stage is None:
            return self._pipeline.draw(pictures, on_step).seconds
        clock = StageClock(self.device)
        alone = {"encode": self._encode, "denoise": self._denoise, "decode": self._decode}[self._stage]
        with torch.inference_mode(), clock(self._stage), self._pipeline.residence.stage():
            alone(pictures, on_step)
        return clock.seconds

    def _encode(self, pictures: Sequence[Picture], on_step: OnStep) -> None:
        encode(self._pipeline.text_encoders, pictures, self._pipeline.prompts)

    def _denoise(self, pictures: Sequence[Picture], on_step: OnStep) -> None:
        pipeline, settings = self._pipeline, pictures[0].settings
        latents = initial_latents(pictures, self.device)
        plan = pipeline.residence.plan
        with pipeline.recording() as recorder:
            denoise(
                pipeline.mmdit, latents, self._embeds, settings, pipeline.shift, on_step, recorder,
                one_pass=plan.one_pass,
            )  # fmt: skip

    def _decode(self, pictures: Sequence[Picture], on_step: OnStep) -> None:
        decode(self._pipeline.vae, initial_latents(pictures, self.device))

    def _let_go_of_all_but(self, used: str) -> None:
        for name, part in components(self._pipeline).items():
            if not name.startswith(used):
                part.to("meta")


def _made(workload: Workload, device: torch.device) -> Pipeline:
    """A pipeline of random weights, FP8 where `sd35 quantize` makes FP8 if the work is in FP8."""
    checkpoint = RandomCheckpoint(workload.variant, device, Recipe() if workload.precision == "fp8" else None)
    pipeline = assemble(checkpoint, workload.config(), workload.model, identity="random")
    if pipeline.residence.plan.division is not None:
        # Drawing and quantizing leave holes between the weights, which a checkpoint's bytes do not.
        pipeline.rest()
        pipeline.wake()
    return pipeline


def _demand_size(workload: Workload) -> None:
    """RequestError where the checkpoint is not of the size that the work is counted for."""
    assert workload.checkpoint is not None
    found = open_checkpoint(locate(workload.checkpoint)).config("transformer")
    wanted = config_of(workload.variant, "transformer")
    if config_size("transformer", found) != config_size("transformer", wanted):
        raise RequestError(
            f"{workload.checkpoint} has not the size of {workload.variant}: say its own with --variant."
        )


def _cap_all(config: RuntimeConfig) -> dict[torch.device, int | None]:
    """Cap each card by what the config says of it."""
    bounds = zip(devices_of(config), config.vram_bytes_each, strict=True)
    return {device: _cap(bound, device) for device, bound in bounds}


def _cap(nbytes: int | None, device: torch.device) -> int | None:
    """Let PyTorch allocate no more than this on a card from now on; the cap, None where there is none.

    The weights, which were drawn and quantized on the card, are made before: a checkpoint needs no such room.
    """
    if nbytes is None or device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(nbytes / total, 1.0), device.index or 0)
    return nbytes
