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
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sd35.request import Picture, PromptTexts
from sd35.runtime.embeds import EmbedsKey, PromptCache, PromptEmbeds

CLIP_TOKENS = 77


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer and its model; the two are useless without one another."""

    tokenizer: Callable[..., Any]
    model: nn.Module

    def encode(self, texts: list[str], length: int) -> Any:
        """What the model makes of these texts."""
        return self.model(self.tokens(texts, length))

    def tokens(self, texts: list[str], length: int) -> Tensor:
        """Token ids [B, length], padded and cut to the length."""
        batch = self.tokenizer(
            texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        ids: Tensor = batch.input_ids
        return ids.to(next(self.model.parameters()).device)


@dataclass(frozen=True)
class TextEncoders:
    """The three of them; `t5` may be absent, and its tokens are then zeros."""

    clip_l: TextEncoder
    clip_g: TextEncoder
    t5: TextEncoder | None
    width: int  # of the sequence: T5's, and what the MMDiT expects
    identity: str  # of the checkpoint that they come from

    def encode(self, prompts: Sequence[PromptTexts], max_sequence_length: int) -> PromptEmbeds:
        """One row for each prompt."""
        tokens_l, pooled_l = self.clip_l.encode([prompt.clip_l for prompt in prompts], CLIP_TOKENS)
        tokens_g, pooled_g = self.clip_g.encode([prompt.clip_g for prompt in prompts], CLIP_TOKENS)
        clip = torch.cat([tokens_l, tokens_g], dim=-1)
        clip = F.pad(clip, (0, self.width - clip.shape[-1]))
        t5 = self._t5([prompt.t5 for prompt in prompts], max_sequence_length, clip)
        return PromptEmbeds(torch.cat([clip, t5], dim=1), torch.cat([pooled_l, pooled_g], dim=-1))

    def _t5(self, texts: list[str], length: int, like: Tensor) -> Tensor:
        if self.t5 is None:
            return like.new_zeros(len(texts), length, self.width)
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
    rows = {prompt: _recalled(encoders, prompt, length, cache) for prompt in dict.fromkeys(prompts)}
    return PromptEmbeds.join([rows[prompt] for prompt in prompts])


def _recalled(encoders: TextEncoders, prompt: PromptTexts, length: int, cache: PromptCache) -> PromptEmbeds:
    key = EmbedsKey(prompt, length, encoders.identity)
    return cache.recall(key, lambda: encoders.encode([prompt], length))
