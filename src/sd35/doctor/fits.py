"""What fits: for a checkpoint and a size, the plan that drawing takes, by the arithmetic that chooses it.

A 16-bit checkpoint is drawn in FP8, and a variant that is not on this machine has no files at all. Both are
seen as they would be after `sd35 quantize` with the default recipe: names and shapes are enough.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from sd35.checkpoints.formats import Checkpoint
from sd35.checkpoints.full_size import PARTS, config_of
from sd35.checkpoints.reader import TensorSpec
from sd35.checkpoints.sizes import REAL, config_size, layout_of
from sd35.checkpoints.source import TensorSource
from sd35.doctor.finding import Finding, well, wrong
from sd35.errors import CheckpointError
from sd35.quantization.planned import planned
from sd35.quantization.recipe import Recipe
from sd35.request import GenerationRequest
from sd35.runtime import budget as budgets
from sd35.runtime import division
from sd35.runtime.configs import read_mmdit_config, read_vae_config
from sd35.runtime.memory import Work, described, largest_square, peak
from sd35.runtime.sizes import Sizes, sizes_of
from sd35.variants import VARIANTS, Variant, variant_of

SIDES = (512, 1024, 1536)


@dataclass(frozen=True)
class Fit:
    """A square of `side` pixels: the plan, None where none fits, and the bytes of it, or of the smallest."""

    side: int
    plan: str | None
    bytes: int


@dataclass(frozen=True)
class Fits:
    """A checkpoint's table; `largest` is the side of the largest square within the budget, None for none.

    `asked` is the size in question, by default the one that the model was trained for. `weights` are the
    bytes of all parts once they are loaded. `is_here` is false for a variant known by arithmetic alone.
    """

    name: str
    variant: str
    is_here: bool
    weights: int
    asked: Fit
    rows: list[Fit]
    largest: int | None


class Blueprint:
    """A `Checkpoint` as it would be in FP8: names and shapes without values."""

    def __init__(self, path: Path, parts: tuple[str, ...], configs: dict[str, dict[str, Any]]) -> None:
        self.path, self.parts, self._configs = path, parts, configs

    def config(self, part: str) -> dict[str, Any]:
        """The part's own."""
        return self._configs[part]

    def tensors(self, part: str) -> TensorSource:
        """Its tensors by the default recipe."""
        return planned(part, layout_of(config_size(part, self.config(part))), _draw_nothing, Recipe())

    def files(self, part: str) -> list[Path]:
        """None."""
        return []

    def folder(self, part: str) -> Path:
        """Where it would be."""
        return self.path / part


def variants_by_arithmetic(dtype: torch.dtype, budget: int | None) -> list[Fits]:
    """Every published variant at FP8, whether it is here or not."""
    return [variant_by_arithmetic(name, dtype, budget) for name in REAL]


def variant_by_arithmetic(name: str, dtype: torch.dtype, budget: int | None, side: int | None = None) -> Fits:
    """A published variant at FP8; RequestError for a size that it does not draw."""
    return _fits(name, VARIANTS[name], blueprint_of(name), dtype, budget, side, is_here=False)


def blueprint_of(variant: str) -> Blueprint:
    """A published variant in FP8."""
    return Blueprint(Path(variant), PARTS, {part: config_of(variant, part) for part in PARTS})


def fits_of(
    name: str, opened: Checkpoint, dtype: torch.dtype, budget: int | None, side: int | None = None
) -> Fits:
    """A checkpoint that is here, as it would be drawn; CheckpointError if it is no SD3.5.

    RequestError for a size that it does not draw.
    """
    config = read_mmdit_config(opened)
    variant = variant_of(config.num_layers, config.dual_attention_layers)
    if variant is None:
        raise CheckpointError(f"{opened.path} is no SD3.5 variant.")
    with opened.tensors("transformer") as source:
        is_fp8 = bool(source.schemes)
    drawn = opened if is_fp8 else _in_fp8(opened)
    return _fits(name, variant, drawn, dtype, budget, side, is_here=True)


def check_fit(fits: Fits, budget: int | None) -> Finding:
    """Whether the size in question can be drawn here."""
    name, asked = f"memory for {fits.name}", fits.asked
    size = f"{asked.side}x{asked.side}"
    if asked.plan is not None:
        within = "with no bound" if budget is None else f"within {budgets.in_words(budget)}"
        return well(name, f"{size} takes {budgets.gibibytes(asked.bytes)} {within}: {asked.plan}")
    assert budget is not None, "without a bound everything fits"
    what = f"{size} needs {budgets.too_little(asked.bytes, budget)}"
    if fits.largest is None:
        return wrong(name, f"{what}; no size fits", "sd35 generate --device cpu ...", "out of memory")
    side = fits.largest
    fix = f"sd35 generate --checkpoint {fits.name} --width {side} --height {side} ..."
    return wrong(name, f"{what}; the largest square that fits is {side}x{side}", fix, "out of memory")


def _in_fp8(opened: Checkpoint) -> Blueprint:
    weighty = [part for part in opened.parts if not part.startswith("tokenizer")]
    return Blueprint(opened.path, opened.parts, {part: opened.config(part) for part in weighty})


def _fits(
    name: str,
    variant: Variant,
    drawn: Checkpoint,
    dtype: torch.dtype,
    budget: int | None,
    side: int | None,
    *,
    is_here: bool,
) -> Fits:
    sizes = sizes_of(drawn, read_mmdit_config(drawn), read_vae_config(drawn), dtype)
    work = _work(variant, side or variant.native_size)
    bound = budget if budget is not None else 1 << 62
    return Fits(
        name=name,
        variant=variant.name,
        is_here=is_here,
        weights=sizes.total,
        asked=_fit(sizes, work, budget),
        rows=list(_rows(variant, sizes, budget)),
        largest=largest_square(sizes, work, bound),
    )


def _rows(variant: Variant, sizes: Sizes, budget: int | None) -> Iterator[Fit]:
    for side in SIDES:
        if side <= variant.max_size:
            yield _fit(sizes, _work(variant, side), budget)


def _fit(sizes: Sizes, work: Work, budget: int | None) -> Fit:
    plan = division.choose_or_smallest(sizes, work, [budget])
    is_enough = division.fits(plan, sizes, work, [budget])
    return Fit(work.width, described(plan) if is_enough else None, peak(plan, sizes, work))


def _work(variant: Variant, side: int) -> Work:
    request = GenerationRequest("", width=side, height=side)
    return Work.of(request.pictures(variant)[0].settings, images=1)


def _draw_nothing(name: str, spec: TensorSpec) -> NoReturn:
    raise AssertionError(f"{name} is asked for its values, and a blueprint has none")
