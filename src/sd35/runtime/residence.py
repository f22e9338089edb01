"""Where the weights of a loaded model live: a memory plan carried out on its parts.

`memory.py` decides; here its plan becomes visits and parades (`moving.py`) of the parts that don't stay. They
arrive when they are called and are gone when their stage ends, however it ends. Another plan can follow
between drawings: all parts go home to host memory, and what stays by the new plan moves in again.

With several cards the plan may be divided over them (`division.py`); plans that move use the first alone.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from sd35.errors import DeviceError
from sd35.kernels.operands import Residual
from sd35.runtime import division, memory
from sd35.runtime.devices import Card
from sd35.runtime.encoders import TextEncoder, TextEncoders
from sd35.runtime.memory import MemoryPlan, Work
from sd35.runtime.mmdit import MMDiT
from sd35.runtime.moving import Cargo, Dock, Parade, Visit
from sd35.runtime.relay import Relay
from sd35.runtime.sizes import Sizes
from sd35.runtime.stretches import Stretch
from sd35.runtime.vae import VaeDecoder, whole
from sd35.runtime.vae_strips import in_strips

log = logging.getLogger(__name__)

_HOST = torch.device("cpu")


class Residence:
    """The parts of one model under one plan, and `dock`, which counts what visits the device."""

    def __init__(
        self,
        encoders: TextEncoders,
        mmdit: MMDiT,
        vae: VaeDecoder,
        sizes: Sizes,
        cards: Sequence[Card],
        plan: MemoryPlan,
    ) -> None:
        self._encoders, self._mmdit, self._vae = encoders, mmdit, vae
        self.sizes, self.cards, self.plan = sizes, tuple(cards), plan
        self.device = cards[0].device
        self.dock = Dock(self.device)
        self._guests: list[Visit | Parade] = []
        self._relay: Relay | None = None  # that the encoders' layers come through
        self.before_change: Callable[[], None] = lambda: None  # parts that others have too are about to move
        self._move_in()

    @property
    def budget(self) -> int | None:
        """The bytes that may be allocated on the first card."""
        return self.cards[0].budget

    @budget.setter
    def budget(self, nbytes: int | None) -> None:
        """From now on."""
        self.cards = (replace(self.cards[0], budget=nbytes), *self.cards[1:])

    @property
    def encoders_on(self) -> torch.device:
        """Where prompts are encoded."""
        divided = self.plan.division
        return self.cards[divided.encoders].device if divided else self.device

    @property
    def vae_on(self) -> torch.device:
        """Where latents are decoded."""
        divided = self.plan.division
        return self.cards[divided.vae].device if divided else self.device

    def needs_change(self, work: Work) -> bool:
        """Whether this work is too much for the plan."""
        return not division.fits(self.plan, self.sizes, work, self._budgets())

    def fit(self, work: Work) -> bool:
        """Change to a smaller plan if this work needs one; whether it did. DeviceError if none will do."""
        if not self.needs_change(work):
            return False
        self.change(division.choose(self.sizes, work, self._budgets()))
        return True

    def shrink(self, work: Work) -> None:
        """After the device had no room for this work: the next smaller plan; DeviceError below the last."""
        smaller = division.smaller_than(self.plan, self.sizes, work, self._budgets())
        if smaller is None:
            raise self.no_room(work)
        log.warning(
            "The device had no room for the plan '%s'; trying once more with '%s', which is slower.",
            memory.described(self.plan), memory.described(smaller),
        )  # fmt: skip
        self.change(smaller)

    def no_room(self, work: Work) -> DeviceError:
        """The error for work for which the device had no room, whatever it promised."""
        return division.no_room(self.plan, self.sizes, work)

    def table(self, work: Work) -> str:
        """The plan for this work, for people."""
        return division.table_text(self.plan, self.sizes, work, self.cards)

    def as_dict(self, work: Work) -> dict[str, Any]:
        """The plan for this work, for JSON."""
        return division.as_dict(self.plan, self.sizes, work, self.cards)

    @contextmanager
    def stage(self) -> Iterator[None]:
        """Whoever visits the device for this stage is gone at its end."""
        try:
            yield
        finally:
            self._send_home()
            if self._relay is not None:
                self._relay.rest()
            if self.plan.moves:
                self._empty_cache()  # what comes next would cut up their pieces: no recording could have them

    def bring(self, module: nn.Module) -> None:
        """What visits the device when this module is called comes now."""
        for guest in self._guests:
            if isinstance(guest, Visit) and guest.called is module:
                guest.arrive()

    def change(self, plan: MemoryPlan) -> None:
        """Live by another plan from now on."""
        self.before_change()
        with torch.inference_mode(False), torch.no_grad():
            self._empty(self.parts())
            self.plan = plan
            self._move_in()

    def rest(self, shared: Collection[nn.Module] = ()) -> None:
        """Give the device back: all parts go to host memory but those `shared` with a model that is awake."""
        staying = {id(part) for part in shared}
        with torch.inference_mode(False), torch.no_grad():
            self._empty([part for part in self.parts() if id(part) not in staying])

    def wake(self) -> None:
        """Move in again, by the plan of before."""
        with torch.inference_mode(False), torch.no_grad():
            self._move_in()

    def _empty(self, parts: list[nn.Module]) -> None:
        for guest in self._guests:
            guest.end()
        if self._relay is not None:
            self._relay.rest()
        self._guests, self._relay = [], None
        for part in parts:
            part.to(_HOST)
        self._empty_cache()

    def _empty_cache(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _move_in(self) -> None:
        """Put on the device what stays there, and arrange how the others come."""
        self._empty_cache()  # what stays would cut up the pieces that are cached, and pin them
        self._vae.walk = partial(in_strips, rows=self.plan.strips) if self.plan.strips else whole
        for encoder in self._text_encoders():
            encoder.device = self.encoders_on
        self._mmdit.stretches = self._stretches()
        if not self.plan.moves:
            self._settle_all()
            return
        self._place_encoders()
        self._place_mmdit()
        if self.plan.vae_stays:
            self._vae.to(self.device)
        else:
            self._guests.append(Visit(self._packed(Cargo(self._vae)), self._vae, self.dock))

    def _settle_all(self) -> None:
        """Each part on its card, for good."""
        for encoder in self._text_encoders():
            encoder.model.to(self.encoders_on)
        self._vae.to(self.vae_on)
        blocks = self._mmdit.blocks
        self._settle(self._mmdit, list(blocks))
        for stretch in self._mmdit.stretches:
            for i in stretch.blocks:
                blocks[i].to(stretch.device or self.device)

    def _stretches(self) -> tuple[Stretch, ...]:
        """The blocks by their cards; one stretch, wherever the transformer is, unless they are divided."""
        if self.plan.division is None:
            return (Stretch(range(len(self._mmdit.blocks))),)
        numbers = zip(self.cards, division.ranges(self.plan.division), strict=True)
        return tuple(Stretch(blocks, card.device) for card, blocks in numbers if blocks)

    def _place_encoders(self) -> None:
        if self.plan.encoders_stay:
            for encoder in self._text_encoders():
                encoder.model.to(self.device)
            return
        # Tables are read where they lie; a text's few vectors travel.
        self._relay = Relay(self.device)
        for encoder in self._text_encoders():
            layers = encoder.layers()
            self._settle(encoder.model, [*layers, *encoder.tables()])
            cargos = [Cargo(layer) for layer in layers]
            self._guests.append(
                Parade(
                    layers, cargos, self.dock,
                    repeats=False, lingers=True, before=self._send_home, relay=self._relay,
                )
            )  # fmt: skip

    def _place_mmdit(self) -> None:
        mmdit, plan = self._mmdit, self.plan
        modulations = mmdit.modulation_layers()
        self._settle(mmdit, [*modulations, *mmdit.blocks])
        if plan.modulations_stay:
            for layer in modulations:
                layer.to(self.device)
        else:
            cargos = [self._packed(Cargo(layer)) for layer in modulations]
            self._guests.append(Parade(modulations, cargos, self.dock, repeats=False))
        if not plan.blocks_stay:
            cargo = self._packed(Cargo(mmdit.blocks, without=modulations))
            self._guests.append(Visit(cargo, mmdit, self.dock))
            return
        passing = [mmdit.blocks[i] for i in memory.passing_blocks(plan, len(mmdit.blocks))]
        self._settle(mmdit.blocks, [*modulations, *passing])
        if passing:
            cargos = [self._packed(Cargo(block, without=modulations)) for block in passing]
            self._guests.append(Parade(passing, cargos, self.dock, repeats=True, keep=_kept))

    def _settle(self, module: nn.Module, but: list[nn.Module]) -> None:
        """Move a module to the device for good, but for some modules below it."""
        left_out = {id(inner) for left in but for inner in left.modules()}
        for owner in module.modules():
            if id(owner) not in left_out:
                owner._apply(lambda tensor: tensor.to(self.device), recurse=False)

    def _packed(self, cargo: Cargo) -> Cargo:
        """In page-locked memory where there is a card to read it."""
        if self.device.type == "cuda":
            cargo.pack()
        return cargo

    def _send_home(self) -> None:
        for guest in self._guests:
            guest.leave()

    def _budgets(self) -> list[int | None]:
        return [card.budget for card in self.cards]

    def _text_encoders(self) -> list[TextEncoder]:
        encoders = self._encoders
        return [encoders.clip_l, encoders.clip_g, *([encoders.t5] if encoders.t5 else [])]

    def parts(self) -> list[nn.Module]:
        """All modules with weights."""
        return [*(encoder.model for encoder in self._text_encoders()), self._mmdit, self._vae]


def _kept(streams: tuple[Residual, Residual]) -> tuple[Residual, Residual]:
    """A block's streams, whose last products its successor finishes, when the block may have gone."""
    sample, context = streams
    return sample.kept(), context.kept()
