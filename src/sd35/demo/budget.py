"""Training by the clock: stages get seconds, not steps, and write down what they did.

The learning rate follows the share of time used, so a stage that is told to take two minutes has fully
decayed after two minutes on any machine. A fast machine simply takes more steps.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path


class Budget:
    """Seconds granted to a stage, counted from its making; `max_steps` ends rehearsals early."""

    def __init__(self, seconds: float, max_steps: int | None = None) -> None:
        self.seconds = seconds
        self.max_steps = max_steps
        self.started = time.monotonic()

    def used(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def share(self) -> float:
        """The part of the time that is used, 0..1."""
        return min(1.0, self.used() / self.seconds)

    def over(self, step: int) -> bool:
        """Whether a stage that has taken `step` steps must stop."""
        return self.used() >= self.seconds or (self.max_steps is not None and step >= self.max_steps)


def cosine(share: float, warmup: float = 0.02) -> float:
    """A learning-rate factor: up within `warmup`, then down a half cosine to zero."""
    if share < warmup:
        return share / warmup
    return 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))


def hold_then_fall(share: float, hold: float) -> float:
    """A learning-rate factor: one for the share `hold` of the time, then straight down to zero."""
    return 1.0 if share <= hold else (1 - share) / (1 - hold)


class TrainingLog:
    """Rows of numbers, one JSON object a line, that outlive a leg of training."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **row: float | str) -> None:
        """Append a row and show it."""
        rounded = {key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()}
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(rounded) + "\n")
        print(*(f"{key} {value}" for key, value in rounded.items()), flush=True)
