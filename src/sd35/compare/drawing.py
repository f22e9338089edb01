"""A drawing: what one checkpoint made of a list of prompts, in memory or kept in a folder.

A kept drawing is a folder of numbered PNG files and `drawing.json`, which tells prompts, settings and the
machine. It can be compared later, elsewhere, or with a drawing that another program made.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sd35.errors import CheckpointError, OutputError

FACTS = "drawing.json"


@dataclass(frozen=True)
class Drawing:
    """Pictures in the order of their prompts, and the facts that a comparison needs to be honest."""

    images: list[Image.Image]
    prompts: list[str]
    precision: str
    variant: str
    settings: dict[str, Any]
    machine: str

    def tensor(self, rows: slice) -> Tensor:
        """Some of the pictures as uint8 [B, H, W, 3]."""
        return torch.stack([torch.from_numpy(np.array(image)) for image in self.images[rows]])

    def keep(self, folder: Path) -> None:
        """Write the drawing into a new folder."""
        facts = {name: value for name, value in asdict(self).items() if name != "images"}
        try:
            folder.mkdir(parents=True)
            for number, image in enumerate(self.images):
                image.save(folder / f"{number:05}.png")
            (folder / FACTS).write_text(
                json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8", newline="\n"
            )
        except OSError as error:
            raise OutputError(
                f"{folder} can't be written ({error.strerror}): name a folder that does not exist yet."
            ) from error


def is_drawing(folder: Path) -> bool:
    """Whether the folder holds a kept drawing rather than a checkpoint."""
    return (folder / FACTS).is_file()


def read_drawing(folder: Path) -> Drawing:
    """A kept drawing; CheckpointError where files are missing or damaged."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        size = (facts["settings"]["width"], facts["settings"]["height"])
        images = [_read(folder / f"{number:05}.png", size) for number in range(len(facts["prompts"]))]
        if not images:
            raise ValueError("it has no pictures")
        return Drawing(images=images, **facts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is not a whole drawing ({error}): draw it again.") from error


def _read(path: Path, size: tuple[int, int]) -> Image.Image:
    with Image.open(path) as image:
        if image.size != size:
            raise ValueError(f"{path.name} is not of the size that its settings say")
        return image.convert("RGB")
