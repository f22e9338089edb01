"""Three text encoders, one text: CLIP-L and CLIP-G side by side, T5 after them.

What the MMDiT reads is made of their results so:

    sequence   [ CLIP-L tokens | CLIP-G tokens | zeros ]  77 tokens, padded with zeros to T5's width
               [ T5 tokens                             ]  `max_sequence_length` tokens
    pooled     [ CLIP-L pooled | CLIP-G pooled ]

The CLIP tokens are those of the last layer but one. No encoder masks its padding: the model was trained
so. Without T5 its tokens are zeros. The models are in `text_models.py`; encoding follows
`StableDiffusion3Pipeline.encode_prompt` of diffusers, which the tests hold it to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sd35.request import Picture, PromptTexts
from sd35.runtime.embeds import EmbedsKey, PromptCache, PromptEmbeds
from sd35.runtime.text_models import Table

CLIP_TOKENS = 77


class Model(Protocol):
    """What encodes token ids [1, T] of texts, each by itself."""

    def each(self, texts: list[Tensor]) -> list[Any]:
        """What it makes of each."""
        ...


@dataclass(eq=False)
class TextEncoder:
    """A tokenizer and its model; the two are useless without one another."""

    tokenizer: Callable[..., Any]
    model: nn.Module
    device: torch.device  # where it encodes, as `residence.py` says; its weights may lie elsewhere meanwhile

    def encode(self, texts: list[str], length: int) -> list[Any]:
        """What the model makes of each of these texts."""
        return cast(Model, self.model).each([self.tokens(text, length) for text in texts])

    def layers(self) -> list[nn.Module]:
        """The model's layers in the order in which a walk through it calls them."""
        return list(next(inner for inner in self.model.modules() if isinstance(inner, nn.ModuleList)))

    def tables(self) -> list[nn.Module]:
        """What the model only looks up: most of the rest."""
        return [inner for inner in self.model.modules() if isinstance(inner, Table)]

    def tokens(self, text: str, length: int) -> Tensor:
        """Token ids [1, length], padded and cut to the length."""
        batch = self.tokenizer(
            [text], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        ids: Tensor = batch.input_ids
        return ids.to(self.device)


@dataclass(frozen=True)
class TextEncoders:
    """The three of them; `t5` may be absent, and its tokens are then zeros."""

    clip_l: TextEncoder
    clip_g: TextEncoder
    t5: TextEncoder | None
    width: int  # of the sequence: T5's, and what the MMDiT expects
    identity: str  # of the checkpoint that they come from

    def encode(self, prompts: Sequence[PromptTexts], max_sequence_length: int) -> list[PromptEmbeds]:
        """One row for each prompt, by itself; the encoders take turns, as they may have to share a card."""
        from_l = self.clip_l.encode([prompt.clip_l for prompt in prompts], CLIP_TOKENS)
        from_g = self.clip_g.encode([prompt.clip_g for prompt in prompts], CLIP_TOKENS)
        clips, pooled = [], []
        for (tokens_l, pooled_l), (tokens_g, pooled_g) in zip(from_l, from_g, strict=True):
            clips.append(self._padded(tokens_l, tokens_g))
            pooled.append(torch.cat([pooled_l, pooled_g], dim=-1))
        t5s = self._t5([prompt.t5 for prompt in prompts], max_sequence_length, clips)
        sequences = [torch.cat([clip, t5], dim=1) for clip, t5 in zip(clips, t5s, strict=True)]
        return [PromptEmbeds(*row) for row in zip(sequences, pooled, strict=True)]

    def _padded(self, tokens_l: Tensor, tokens_g: Tensor) -> Tensor:
        """Both CLIP's tokens side by side, as wide as the sequence."""
        clip = torch.cat([tokens_l, tokens_g], dim=-1)
        return F.pad(clip, (0, self.width - clip.shape[-1]))

    def _t5(self, texts: list[str], length: int, like: list[Tensor]) -> list[Tensor]:
        if self.t5 is None:
            return [clip.new_zeros(1, length, self.width) for clip in like]
        return self.t5.encode(texts, length)


def encode(encoders: TextEncoders, pictures: Sequence[Picture], cache: PromptCache) -> PromptEmbeds:
    """Embeds for a batch: one row a picture, after one negative row a picture where guidance is on.

    Each distinct text is encoded once, by itself, and not at all if the cache has kept it.
    """
    settings = pictures[0].settings
    prompts = [picture.prompt for picture in pictures]
    if settings.guided:
        prompts = [picture.negative_prompt for picture in pictures] + prompts
    length = settings.max_sequence_length
    keys = {prompt: EmbedsKey(prompt, length, encoders.identity) for prompt in prompts}
    known = {prompt: embeds for prompt, key in keys.items() if (embeds := cache.recall(key))}
    strangers = [prompt for prompt in keys if prompt not in known]
    if strangers:
        known |= zip(strangers, encoders.encode(strangers, length), strict=True)
    for prompt in strangers:
        cache.keep(keys[prompt], known[prompt])
    # What is kept may be from before the encoders went to another device.
    return PromptEmbeds.join([known[prompt].to(encoders.clip_l.device) for prompt in prompts])
