"""What the server and a worker say to each other, as frozen dataclasses that travel pickled through a pipe.

Both ends are ours and of one version, and the pipe has no name that a stranger could open; that is why pickle
is safe here.
"""

from dataclasses import dataclass, field

from sd35.request import Picture
from sd35.serving.settings import Model


@dataclass(frozen=True)
class Task:
    """Draw these pictures; `token` is the attempt's."""

    job_id: str
    token: int
    model: Model
    pictures: tuple[Picture, ...]
    previews: int = 0


@dataclass(frozen=True)
class Cancel:
    """Stop drawing at the next step."""

    job_id: str
    token: int


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
    """The model that the task needs is being loaded."""


@dataclass(frozen=True)
class Loaded:
    """The model is there."""

    seconds: float
    identity: str  # SHA-256 of the checkpoint
    precision: str  # of the transformer


@dataclass(frozen=True)
class Stepped:
    """`done` of `of` steps are over."""

    done: int
    of: int


@dataclass(frozen=True)
class Preview:
    """The `index`th unfinished state of the task's `picture`th picture, both counted from 0."""

    index: int
    picture: int
    image: RawImage


@dataclass(frozen=True)
class Drawing:
    """The task is done."""

    images: tuple[RawImage, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    peak_vram_bytes: int | None = None
    finite: tuple[bool, ...] = ()  # whether each picture's latents were; empty: all, or there are none
    free_vram_bytes: int | None = None  # of the card, when the task took most
    total_vram_bytes: int | None = None


@dataclass(frozen=True)
class Stopped:
    """The task was given up because of a Cancel."""


@dataclass(frozen=True)
class Refused:
    """The task can't be done, and another attempt would end the same: `code` is a Problem's."""

    code: str
    message: str


@dataclass(frozen=True)
class Died:
    """The worker is gone; `reason` in words, `kind` in one: crashed, killed, silent or stalled."""

    reason: str
    kind: str = "crashed"


FromWorker = Beat | Loading | Loaded | Stepped | Preview | Drawing | Stopped | Refused | Died
