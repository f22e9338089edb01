"""The work that every engine of a run does: which model, which pictures, how often.

A run has one workload. Shapes decide the speed, and trained weights do not, so the weights are random at
the variant's full size (`random_weights.py`), unless a checkpoint on the disk is named. Each round draws
another prompt: an engine that keeps the embeds of texts it has seen gains by the negative prompt alone, as
it does for people.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sd35.config import Precision, RuntimeConfig
from sd35.errors import RequestError
from sd35.request import GenerationRequest, Picture
from sd35.variants import Variant, variant_named

OURS = "sd35"
PEERS = ("diffusers-eager", "diffusers-compile", "torchao-compile")
STAGES = ("encode", "denoise", "decode")
MAX_ROUNDS = 1_000


@dataclass(frozen=True, kw_only=True)
class Workload:
    """`images` pictures of one prompt as a batch, `rounds` times after a warm-up.

    None means what the variant recommends. `stage` is one of STAGES to run alone on random inputs, with the
    other parts of the model off the device; None is the whole way from prompt to pixels. `runtime` holds
    fields of `RuntimeConfig` for our own engine, which takes the weights of `checkpoint` where one is named;
    `precision` is of our transformer's random weights.
    """

    variant: str = "large"
    width: int | None = None
    height: int | None = None
    images: int = 1
    steps: int | None = None
    guidance_scale: float | None = None
    rounds: int = 3
    stage: str | None = None
    checkpoint: str | None = None
    precision: Precision = "fp8"
    runtime: dict[str, str | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= MAX_ROUNDS:
            raise RequestError(f"rounds is {self.rounds}, outside its range: give 1 to {MAX_ROUNDS}.")
        if self.stage is not None and self.stage not in STAGES:
            raise RequestError(f"stage can't be {self.stage!r}: choose one of {', '.join(STAGES)}.")
        if self.checkpoint is not None and self.precision != "fp8":
            raise RequestError("precision is of random weights, and a checkpoint has its own: leave it out.")
        devices = self.config().device_names
        if self.stage is not None and len(devices) > 1:
            raise RequestError(
                f"stage is measured on one device, not on {len(devices)}: leave one of the two out."
            )
        self.pictures(0)

    @property
    def model(self) -> Variant:
        """The variant itself; RequestError where there is none of that name."""
        return variant_named(self.variant)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that take part."""
        return STAGES if self.stage is None else (self.stage,)

    def config(self) -> RuntimeConfig:
        """How our own engine is to run, and on which device all of them do."""
        return RuntimeConfig(**self.runtime)  # type: ignore[arg-type]

    def pictures(self, round_number: int) -> list[Picture]:
        """What a round draws: as many tokens and steps as any other round, and other words."""
        request = GenerationRequest(
            f"a red fox on a blue background, picture {round_number}",
            width=self.width,
            height=self.height,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            num_images=self.images,
            seed=round_number,
        )
        return request.pictures(self.model)

    def with_attention(self, name: str) -> "Workload":
        """The same, our own engine attending by another implementation."""
        return replace(self, runtime={**self.runtime, "attention": name})

    def within(self, max_vram: str) -> "Workload":
        """The same, our own engine under a cap of memory."""
        return replace(self, runtime={**self.runtime, "max_vram": max_vram})

    def as_dict(self) -> dict[str, Any]:
        """For another process: `Workload(**workload.as_dict())` is the same."""
        return asdict(self)
