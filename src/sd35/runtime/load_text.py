"""The three text encoders of a checkpoint, each with its tokenizer.

The models are our own (`text_models.py`), under transformers' names; the tokenizers are transformers'.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.models.clip.tokenization_clip import CLIPTokenizer
from transformers.models.t5.tokenization_t5 import T5Tokenizer

from sd35.checkpoints.formats import Checkpoint
from sd35.runtime.configs import read_clip_config, read_t5_config
from sd35.runtime.encoders import TextEncoder, TextEncoders
from sd35.runtime.sharing import SharedParts, encoders_identity, part_identity
from sd35.runtime.text_models import ClipTextModel, T5Encoder
from sd35.runtime.weights import Placement, fill_module

_T5_EMBEDDING = ("shared.weight", "encoder.embed_tokens.weight")  # two names of one tensor


def load_text_encoders(
    checkpoint: Checkpoint,
    width: int,
    known_as: str,
    placement: Placement,
    shared: SharedParts | None = None,
) -> TextEncoders:
    """CLIP-L, CLIP-G and, where the checkpoint has it, T5; `width` is the sequence's, for the MMDiT.

    With `shared` an encoder that is loaded already serves here too, and so does what it has made of prompts.
    """

    def one(part: str, load: Callable[[], TextEncoder]) -> TextEncoder:
        return shared.one((part_identity(checkpoint, part), placement), load) if shared else load()

    has_t5 = "text_encoder_3" in checkpoint.parts
    return TextEncoders(
        clip_l=one("text_encoder", lambda: _load_clip(checkpoint, "", placement)),
        clip_g=one("text_encoder_2", lambda: _load_clip(checkpoint, "_2", placement)),
        t5=one("text_encoder_3", lambda: _load_t5(checkpoint, placement)) if has_t5 else None,
        width=width,
        identity=encoders_identity(checkpoint) if shared else known_as,
    )


def _load_clip(checkpoint: Checkpoint, suffix: str, placement: Placement) -> TextEncoder:
    part = f"text_encoder{suffix}"
    with torch.device("meta"):
        model = ClipTextModel(read_clip_config(checkpoint, part))
    _fill(model, checkpoint, part, placement)
    return TextEncoder(_tokenizer(checkpoint, f"tokenizer{suffix}", CLIPTokenizer), model, placement.device)


def _load_t5(checkpoint: Checkpoint, placement: Placement) -> TextEncoder:
    with torch.device("meta"):
        model = T5Encoder(read_t5_config(checkpoint))
    _fill(model, checkpoint, "text_encoder_3", placement, _T5_EMBEDDING)
    return TextEncoder(_tokenizer(checkpoint, "tokenizer_3", T5Tokenizer), model, placement.device)


def _fill(
    model: nn.Module,
    checkpoint: Checkpoint,
    part: str,
    placement: Placement,
    shared: tuple[str, ...] = (),
) -> None:
    with checkpoint.tensors(part) as tensors:
        fill_module(model, tensors, placement, shared)
    model.eval()


def _tokenizer(checkpoint: Checkpoint, part: str, kind: Any) -> Any:
    return kind.from_pretrained(checkpoint.folder(part), local_files_only=True)
