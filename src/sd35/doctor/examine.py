"""All checks in their order, and what they found."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sd35.checkpoints.formats import open_checkpoint
from sd35.checkpoints.sizes import REAL
from sd35.checkpoints.store import REPOSITORIES, locate
from sd35.config import RuntimeConfig
from sd35.doctor.checkpoints import (
    Place,
    Progress,
    check_integrity,
    check_structure,
    check_unfinished,
    missing,
    places_here,
    places_named,
    refused,
)
from sd35.doctor.choices import Operation, operations
from sd35.doctor.finding import Finding, wrong
from sd35.doctor.fits import Fits, check_fit, fits_of, variant_by_arithmetic, variants_by_arithmetic
from sd35.doctor.libraries import check_attention, check_libraries
from sd35.doctor.mend import mend_all
from sd35.doctor.product import check_product
from sd35.doctor.stack import check_stack, stack_here
from sd35.doctor.surroundings import (
    check_disk,
    check_host_memory,
    check_licences,
    check_token,
    disk_room,
    host_memory,
)
from sd35.errors import CheckpointError, MissingError, RequestError, Sd35Error
from sd35.runtime.devices import cards_of
from sd35.runtime.load import resolve
from sd35.runtime.machine import Machine, machine_of
from sd35.runtime.weights import Placement


@dataclass(frozen=True)
class Asked:
    """What is to be looked at: None for every checkpoint that is here, by its headers.

    `components` and `encoder_files` are what a named single file lacks; `size` is the side of the
    square that shall fit; `online` lets the hub be asked.
    """

    checkpoint: str | None = None
    components: str | None = None
    encoder_files: tuple[str, ...] = ()
    size: int | None = None
    online: bool = False

    def __post_init__(self) -> None:
        if self.checkpoint is None and (self.size or self.components or self.encoder_files):
            raise RequestError("A size, components and text encoders are about one checkpoint: name it.")


@dataclass(frozen=True)
class Diagnosis:
    """The machine, the device and dtype that `auto` comes to, each operation's choice, and all findings.

    `budget_bytes` is what may be allocated on the device; None on a CPU of which nothing is said.
    """

    machine: Machine
    device: str
    compute_dtype: str
    budget_bytes: int | None
    operations: list[Operation]
    fits: list[Fits]
    findings: list[Finding]

    @property
    def wrong(self) -> list[Finding]:
        """What needs mending."""
        return [finding for finding in self.findings if not finding.ok]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"ok": not self.wrong, **asdict(self)}


def examine(
    config: RuntimeConfig | None = None, asked: Asked | None = None, progress: Progress | None = None
) -> Diagnosis:
    """Look at everything as this config would use it; DeviceError where its device is not there."""
    config, asked = config or RuntimeConfig(), asked or Asked()
    placement = resolve(config)
    budget = cards_of(config)[0].budget
    chosen = operations(placement)
    stack = stack_here()
    findings = list(check_stack(stack))
    if not stack.triton_lacks:  # or the product's kernels can't start
        findings.append(check_product(placement))
    findings += [*check_attention(chosen[-1], config.attention), *check_libraries()]
    findings += _checkpoints(asked, progress)
    here, trouble = _fits_here(asked, placement.dtype, budget)
    meant = [*here, *_not_here(asked, placement.dtype, budget)]
    findings += [*trouble, *(check_fit(fits, budget) for fits in meant)]
    published = variants_by_arithmetic(placement.dtype, budget)
    findings += _surroundings(asked, placement, meant, published)
    return Diagnosis(
        machine=machine_of(placement.device),
        device=str(placement.device),
        compute_dtype=str(placement.dtype).removeprefix("torch."),
        budget_bytes=budget,
        operations=chosen,
        fits=[*meant, *(fits for fits in published if fits.name != asked.checkpoint or here)],
        findings=findings,
    )


def mend(diagnosis: Diagnosis, asked: Asked) -> list[str]:
    """Do the safe mends; what was done, a sentence each."""
    return list(mend_all(diagnosis.findings, _places(asked)))


def _places(asked: Asked) -> list[Place]:
    """The checkpoints that are looked at; none where the one that is named is not here."""
    try:
        return list(places_here()) if asked.checkpoint is None else places_named(asked.checkpoint)
    except MissingError:
        return []


def _checkpoints(asked: Asked, progress: Progress | None) -> Iterator[Finding]:
    if asked.checkpoint is None:
        yield from check_unfinished()
        for place in places_here():
            yield from check_structure(place)
        return
    try:
        places = places_named(asked.checkpoint)
    except MissingError as error:
        yield missing(asked.checkpoint, error)
        return
    for place in places:
        try:
            yield from check_integrity(place, progress)
        except CheckpointError as error:
            yield refused(place, error)


def _fits_here(asked: Asked, dtype: torch.dtype, budget: int | None) -> tuple[list[Fits], list[Finding]]:
    """The tables of checkpoints that are here; what can't be opened is wrong, or lacks companions."""
    found: list[Fits] = []
    troubles: list[Finding] = []
    is_named = asked.checkpoint is not None
    beside = locate(asked.components) if asked.components else None
    files = [Path(file) for file in asked.encoder_files]
    for place in _places(asked):
        if place.is_derived:
            continue
        try:
            opened = open_checkpoint(place.path, beside, files) if is_named else open_checkpoint(place.path)
            found.append(fits_of(place.name, opened, dtype, budget, asked.size))
        except (CheckpointError, MissingError) as error:
            if is_named:
                troubles.append(_unopened(place, error))
    return found, troubles


def _unopened(place: Place, error: Sd35Error) -> Finding:
    """A named checkpoint that drawing would refuse."""
    fix = f"sd35 doctor {place.name} --components FOLDER" if place.path.is_file() else "mend what is above"
    return wrong(place.name, f"can't be opened: {error}", fix, "checkpoint missing or refused", "checkpoint")


def _not_here(asked: Asked, dtype: torch.dtype, budget: int | None) -> list[Fits]:
    """A variant that is asked about before it is fetched."""
    if asked.checkpoint not in REAL or _places(asked):
        return []
    return [variant_by_arithmetic(asked.checkpoint, dtype, budget, asked.size)]


def _surroundings(
    asked: Asked, placement: Placement, checkpoints: list[Fits], published: list[Fits]
) -> Iterator[Finding]:
    yield from check_host_memory(host_memory(), checkpoints, on_card=placement.device.type == "cuda")
    yield check_disk(disk_room(), published)
    yield from check_token()
    if asked.online:
        named = [name for name in REPOSITORIES if asked.checkpoint in (None, name)]
        yield from check_licences(named)
