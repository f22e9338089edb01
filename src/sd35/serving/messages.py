"""What the server and a worker say to each other, as frozen dataclasses that travel pickled through a pipe.

A worker hears its `Terms` first, then one order after the other: Batch, Load, Unload; a Cancel at any time.

Both ends are ours and of one version, and the pipe has no name that a stranger could open; that is why pickle
is safe here.
"""

from dataclasses import dataclass, field
from pathlib import Path

from sd35.request import Picture
from sd35.serving.settings import Model


@dataclass(frozen=True)
class Task:
    """Draw these pictures; `token` is the attempt's. `upload` is the file of the picture they begin with."""

    job_id: str
    token: int
    model: Model
    pictures: tuple[Picture, ...]
    previews: int = 0
    upload: Path | None = None


@dataclass(frozen=True)
class Batch:
    """Tasks to draw together as far as the device has room: same model, same steps, `token`s of their own."""

    tasks: tuple[Task, ...]


@dataclass(frozen=True)
class Cancel:
    """This task is not wanted any more; the others of its batch are."""

    job_id: str
    token: int


@dataclass(frozen=True)
class Load:
    """Have this model ready."""

    model: Model


@dataclass(frozen=True)
class Unload:
    """Let go of this model."""

    model: Model


@dataclass(frozen=True)
class Holding:
    """A model that a worker holds: `place` is vram or ram; `used_at` in seconds since 1970."""

    name: str
    place: str
    bytes: int
    used_at: float


@dataclass(frozen=True)
class Holdings:
    """What a worker holds now."""

    models: tuple[Holding, ...]


@dataclass(frozen=True)
class Managed:
    """A Load or an Unload is over; `error` says in words why it failed."""

    error: str | None = None


@dataclass(frozen=True)
class RawImage:
    """Pixels [height, width, 3], 8 bits each."""

    width: int
    height: int
    rgb: bytes


@dataclass(frozen=True)
class Beat:
    """The worker's process can run Python."""


@dataclass(frozen=True)
class Loading:
    """A model is being loaded; this share of it is there, 0 to 1."""

    model: str
    share: float


@dataclass(frozen=True)
class Loaded:
    """The model is there."""

    seconds: float
    identity: str  # SHA-256 of the checkpoint
    precision: str  # of the transformer
    model: str = ""


@dataclass(frozen=True)
class Stepped:
    """`done` of `of` steps are over for these jobs."""

    jobs: tuple[str, ...]
    done: int
    of: int


@dataclass(frozen=True)
class Preview:
    """The `index`th unfinished state of a job's `picture`th picture, both counted from 0."""

    job_id: str
    index: int
    picture: int
    image: RawImage


@dataclass(frozen=True)
class Drawing:
    """A task's pictures; `batch` pictures in all were drawn together, in these seconds."""

    images: tuple[RawImage, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    peak_vram_bytes: int | None = None
    batch: int = 1
    finite: tuple[bool, ...] = ()  # whether each picture's latents were; empty: all, or there are none
    free_vram_bytes: int | None = None  # of the card, when the batch took most
    total_vram_bytes: int | None = None


@dataclass(frozen=True)
class Drawn:
    """The job's task is done."""

    job_id: str
    drawing: Drawing


@dataclass(frozen=True)
class Stopped:
    """The job's task was given up because of a Cancel."""

    job_id: str


@dataclass(frozen=True)
class Refused:
    """The job's task can't be done, and another attempt would end the same: `code` is a Problem's."""

    job_id: str
    code: str
    message: str


@dataclass(frozen=True)
class Died:
    """The worker is gone; `reason` in words, `kind` in one: crashed, killed, silent or stalled."""

    reason: str
    kind: str = "crashed"


FromWorker = (
    Beat | Holdings | Managed | Loading | Loaded | Stepped | Preview | Drawn | Stopped | Refused | Died
)
