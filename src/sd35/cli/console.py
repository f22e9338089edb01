"""What the terminal shows: a progress bar, sizes, JSON. Progress goes to stderr, results to stdout."""

import json
from typing import Any

from tqdm import tqdm


class CountBar:
    """A progress bar over a count, with the rate and the time left; it appears with the first count."""

    def __init__(self, name: str, unit: str, *, hidden: bool, is_scaled: bool = False) -> None:
        self._name, self._unit, self._hidden = name, unit, hidden
        self._is_scaled = is_scaled  # write 1.2M for 1_200_000
        self._bar: tqdm[Any] | None = None

    def show(self, done: int, of: int) -> None:
        """`done` of `of` are over."""
        if self._bar is None:
            self._bar = tqdm(
                desc=self._name,
                unit=self._unit,
                unit_scale=self._is_scaled,
                total=of,
                initial=done,
                disable=self._hidden,
                bar_format="{desc} {bar:30} {n_fmt}/{total_fmt} [{rate_fmt}, {remaining} left]",
            )
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> "CountBar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def megabytes(count: int) -> str:
    """1_234_567 -> '1.2 MB', from a billion on in GB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def print_json(report: dict[str, Any]) -> None:
    """One object on stdout."""
    print(json.dumps(report, ensure_ascii=False, indent=2))
