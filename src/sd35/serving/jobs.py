"""What a job is: one request on its way to its pictures, with everything that has happened to it.

    queued -> loading -> running -> saving -> succeeded
       |         |          |         |
       +---------+----------+---------+--> failed | cancelled | expired

A job that has been acknowledged is in the database and comes to exactly one of the four ends. Whatever breaks
on the way sends it back to `queued`. The seed is chosen when the job is accepted, so a second attempt draws
the same pictures as the first would have.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from sd35.request import GenerationRequest, Picture, first_step_of
from sd35.serving.settings import Model

PIXELS_PER_MEGAPIXEL = 1_000_000


class State(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    LOADING = "loading"
    RUNNING = "running"
    SAVING = "saving"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """Whether nothing comes after."""
        return self in FINAL


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED})


class Priority(StrEnum):
    """Who goes first; within one priority, keys share by weight."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What to draw, complete: no gap is left to fill after the job has been accepted.

    `image` is the name of an upload (`uploads.py`), and `strength` how much of it may go; both or neither,
    until the job's pictures are erased, and the image with them.
    """

    prompt: str
    negative_prompt: str
    model: str
    width: int  # pixels
    height: int
    num_inference_steps: int
    guidance_scale: float
    seed: int  # of the first picture; the others count up
    n: int
    output_format: str = "png"
    output_compression: int | None = None  # 0 to 100, as OpenAI means it: quality of JPEG and WebP
    previews: int = 0  # unfinished pictures to show on the way
    image: str | None = None
    strength: float | None = None

    @property
    def cost(self) -> float:
        """Megapixel-steps: what a card's time is proportional to."""
        return self.width * self.height / PIXELS_PER_MEGAPIXEL * self.steps_run * self.n

    @property
    def steps_run(self) -> int:
        """The steps that are run: of an image, as many as its strength says."""
        steps = self.num_inference_steps
        return steps if self.strength is None else steps - first_step_of(steps, self.strength)

    def pictures(self, model: Model) -> list[Picture]:
        """The pictures to draw; RequestError where they don't fit the model.

        An image that they begin with stays on the disk until a worker reads it there (`Task.upload`).
        """
        pictures = GenerationRequest(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            width=self.width,
            height=self.height,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            seed=self.seed,
            num_images=self.n,
        ).pictures(model.variant)
        if self.strength is None:
            return pictures
        settings = replace(pictures[0].settings, strength=self.strength)
        return [replace(picture, settings=settings) for picture in pictures]


@dataclass(frozen=True)
class JobImage:
    """A stored picture."""

    name: str  # in the storage
    seed: int
    width: int
    height: int
    sha256: str
    size: int  # bytes


@dataclass(frozen=True)
class JobError:
    """Why a job failed: the code of a `Problem` and a sentence for people."""

    code: str
    message: str


@dataclass(kw_only=True)
class Job:
    """A job as the database has it. `token` fences: what an attempt with a lower one brings is discarded."""

    spec: Spec
    id: str = field(default_factory=lambda: "job_" + secrets.token_hex(12))
    client_id: str | None = None  # the name that a PUT gave it
    key_id: str | None = None
    priority: Priority = Priority.NORMAL
    body_hash: str = ""
    state: State = State.QUEUED
    created_at: float = field(default_factory=time.time)  # seconds since 1970, like all times here
    deadline_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    token: int = 0  # attempts so far
    deaths: int = 0  # workers that died of it
    images: list[JobImage] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_vram_bytes: int | None = None
    error: JobError | None = None
    face: str = "native"  # by which it came
    webhook_url: str | None = None  # to be told of its end
    worker: str | None = None  # that drew last
    checkpoint_sha256: str | None = None  # what it was drawn with
    precision: str | None = None
    abnormal: str | None = None  # what is wrong with its pictures: words of abnormal.py, comma between them
    diagnosis: str | None = None  # a sentence: what drawing it again in 16 bits has shown


@dataclass(frozen=True)
class Event:
    """Something that happened to a job; ids rise for ever, so that a client can name the last one it saw."""

    id: int
    name: str  # state, progress, preview
    data: dict[str, Any]


def next_event_id(previous: int) -> int:
    """Microseconds since 1970, or one more than the last: rises across restarts without being stored."""
    return max(previous + 1, time.time_ns() // 1000)


def body_hash(spec: dict[str, Any]) -> str:
    """SHA-256 of what a client asked for: two requests are the same when it is."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True, default=str).encode()).hexdigest()


def spec_to_json(spec: Spec) -> dict[str, Any]:
    """As the database keeps it."""
    return asdict(spec)


def outcome(job: Job, address: Callable[[JobImage], str]) -> dict[str, Any]:
    """What has come of a job so far, as clients and webhooks are told it."""
    return {
        "images": [
            {
                "url": address(image),
                "seed": image.seed,
                "width": image.width,
                "height": image.height,
                "sha256": image.sha256,
            }
            for image in job.images
        ],
        "seconds": job.seconds,
        "peak_vram_bytes": job.peak_vram_bytes,
        "attempts": job.token,
        "error": None if job.error is None else asdict(job.error),
    }
