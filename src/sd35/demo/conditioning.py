"""Text to conditioning, exactly as StableDiffusion3Pipeline builds it.

    sequence  [CLIP-L row | CLIP-G row | zeros] x 77, then T5 rows x T
    pooled    [CLIP-L projection | CLIP-G projection]

The CLIP rows are taken before the last layer, without a final norm. No mask reaches the MMDiT: padding
is read like words, so the model must meet every T5 length in training that it shall meet in use. A text
encoder that is left out in use (the pipeline without T5) means zeros; training shows zeros now and then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .architecture import TextEncoders, Tokenizers

CAPTION_DROPPED = 0.10
CLIP_DROPPED = 0.05
T5_DROPPED = 0.08


@dataclass(frozen=True)
class Tokens:
    """Token ids of a batch of captions: CLIP-L and CLIP-G [B, 77], T5 [B, T]."""

    clip_l: Tensor
    clip_g: Tensor
    t5: Tensor

    def select(self, index: Tensor, device: torch.device) -> Tokens:
        """The captions at `index`, as 64-bit ids on `device`."""
        return Tokens(*(ids[index].to(device).long() for ids in (self.clip_l, self.clip_g, self.t5)))

    def replace(self, where: Tensor, other: Tokens) -> Tokens:
        """These captions, but the single caption `other` where the mask [B] says so."""
        mask = where[:, None]
        return Tokens(
            torch.where(mask, other.clip_l, self.clip_l),
            torch.where(mask, other.clip_g, self.clip_g),
            torch.where(mask, other.t5, self.t5),
        )

    def pad_t5(self, length: int, pad: int) -> Tokens:
        """The same captions with T5 padded to `length` tokens."""
        return Tokens(self.clip_l, self.clip_g, F.pad(self.t5, (0, length - self.t5.shape[1]), value=pad))


def tokenize(tokenizers: Tokenizers, captions: list[str], t5_length: int) -> Tokens:
    """Token ids as 16-bit integers, to be kept by the hundred thousand."""

    def ids(tokenizer: object, length: int) -> Tensor:
        batch = tokenizer(captions, padding="max_length", max_length=length, truncation=True)  # type: ignore[operator]
        return torch.tensor(batch.input_ids, dtype=torch.int16)

    return Tokens(ids(tokenizers.clip_l, 77), ids(tokenizers.clip_g, 77), ids(tokenizers.t5, t5_length))


def encode(encoders: TextEncoders, tokens: Tokens, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Prompt embeds [B, 77 + T, 256] and pooled embeds [B, 256]; `keep` [B, 3] zeroes single encoders."""
    rows_l, pooled_l = _clip(encoders.clip_l, tokens.clip_l)
    rows_g, pooled_g = _clip(encoders.clip_g, tokens.clip_g)
    rows_t5 = encoders.t5(tokens.t5)[0]
    if keep is not None:
        weight = keep.to(rows_t5.dtype)[:, :, None, None]
        rows_l, pooled_l = rows_l * weight[:, 0], pooled_l * weight[:, 0, 0]
        rows_g, pooled_g = rows_g * weight[:, 1], pooled_g * weight[:, 1, 0]
        rows_t5 = rows_t5 * weight[:, 2]
    rows = torch.cat([rows_l, rows_g], dim=-1).to(rows_t5.dtype)
    rows = F.pad(rows, (0, rows_t5.shape[-1] - rows.shape[-1]))
    return torch.cat([rows, rows_t5], dim=1), torch.cat([pooled_l, pooled_g], dim=-1)


def _clip(encoder: torch.nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    output = encoder(ids, output_hidden_states=True)
    return output.hidden_states[-2], output.text_embeds


def draw_dropout(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which captions become empty [B], and which encoders stay [B, 3]."""
    draws = torch.rand(count, 4, generator=generator, device=generator.device)
    limits = torch.tensor([CLIP_DROPPED, CLIP_DROPPED, T5_DROPPED], device=generator.device)
    return draws[:, 0] < CAPTION_DROPPED, draws[:, 1:] >= limits
