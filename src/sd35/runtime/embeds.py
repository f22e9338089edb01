"""Encoded prompts, and those of them that are kept because they will be wanted again.

The negative prompt comes with every request and is nearly always the same; a prompt comes again with
another seed. So a pipeline remembers what its encoders last gave. Remembering must change no picture: each
text is encoded by itself (a batch of two would be rounded differently, as matrix products of other sizes
are), and what is kept is told apart by all that it depends on: the texts to the last character, how many
tokens T5 reads, and whose encoders they were.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from sd35.request import PromptTexts

KEPT_BYTES = 32 * 2**20  # a dozen prompts of SD3.5, at 2.7 MB each


@dataclass(frozen=True)
class PromptEmbeds:
    """Encoded prompts, one row each: `sequence` [B, T, C] and `pooled` [B, P]."""

    sequence: Tensor
    pooled: Tensor

    @classmethod
    def join(cls, parts: "list[PromptEmbeds]") -> "PromptEmbeds":
        """All rows of all parts, in new memory."""
        return cls(torch.cat([part.sequence for part in parts]), torch.cat([part.pooled for part in parts]))

    def to(self, device: torch.device) -> "PromptEmbeds":
        """The same on a device."""
        return PromptEmbeds(self.sequence.to(device), self.pooled.to(device))

    @property
    def nbytes(self) -> int:
        """Of both tensors."""
        return self.sequence.nbytes + self.pooled.nbytes


@dataclass(frozen=True)
class EmbedsKey:
    """All that a text's embeds depend on; `encoders` is the identity of the three."""

    prompt: PromptTexts
    max_sequence_length: int
    encoders: str


class PromptCache:
    """The embeds last used, up to so many bytes on the encoders' device."""

    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        self.max_bytes = max_bytes
        self._kept: OrderedDict[EmbedsKey, PromptEmbeds] = OrderedDict()  # least recently used first

    @property
    def nbytes(self) -> int:
        """What is kept now."""
        return sum(embeds.nbytes for embeds in self._kept.values())

    def recall(self, key: EmbedsKey) -> PromptEmbeds | None:
        """The embeds of a key, if they are kept; nobody may write into them."""
        embeds = self._kept.get(key)
        if embeds is not None:
            self._kept.move_to_end(key)
        return embeds

    def keep(self, key: EmbedsKey, embeds: PromptEmbeds) -> None:
        """Remember these, and forget the least recently used beyond the bound."""
        self._kept[key] = embeds
        while self.nbytes > self.max_bytes:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        """Give the memory back."""
        self._kept.clear()
