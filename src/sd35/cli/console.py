"""What the terminal shows: a step bar, sizes, JSON. Progress goes to stderr, results to stdout."""

import json
from typing import Any

from tqdm import tqdm


class StepBar:
    """A progress bar over denoising steps, with the step, the rate and the time left."""

    def __init__(self, *, hidden: bool) -> None:
        self._bar: tqdm[Any] = tqdm(
            desc="denoise",
            unit="step",
            disable=hidden,
            bar_format="{desc} {bar:30} {n_fmt}/{total_fmt} [{rate_fmt}, {remaining} left]",
        )

    def show(self, done: int, of: int) -> None:
        """Step `done` of `of` is over."""
        self._bar.total = of
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> "StepBar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def megabytes(count: int) -> str:
    """1_234_567 -> '1.2 MB', from a billion on in GB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def print_json(report: dict[str, Any]) -> None:
    """One object on stdout."""
    print(json.dumps(report, ensure_ascii=False, indent=2))
