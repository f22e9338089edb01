"""Configs written down here are those that the real checkpoints have."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from sd35.bench.random_weights import RandomCheckpoint
from sd35.checkpoints.full_size import PARTS, config_of
from sd35.checkpoints.gates import check_config
from sd35.checkpoints.sizes import config_size, layout_of
from sd35.runtime import configs


def built(part: str, config: dict[str, object]) -> nn.Module:
    """The library's own module of this config, without memory."""
    with torch.device("meta"):
        if part == "transformer":
            return SD3Transformer2DModel.from_config(config)
        if part == "vae":
            return AutoencoderKL.from_config(config)
        if part == "text_encoder_3":
            return T5EncoderModel(T5Config(**config))
        return CLIPTextModelWithProjection(CLIPTextConfig(**config))


@pytest.mark.parametrize("variant", ["large", "large-turbo", "medium"])
@pytest.mark.parametrize("part", PARTS)
def test_configs_pass_the_gate(variant: str, part: str) -> None:
    """No key and no value that a real checkpoint could not have."""
    check_config(Path(part), part, config_of(variant, part))


@pytest.mark.parametrize("variant", ["large", "medium"])
@pytest.mark.parametrize("part", [part for part in PARTS if part != "scheduler"])
def test_libraries_build_the_real_tensors(variant: str, part: str) -> None:
    """The module that a library builds of the config has exactly the tensors of the full-size table."""
    config = config_of(variant, part)
    shapes = {name: tensor.shape for name, tensor in built(part, config).state_dict().items()}
    shapes.pop("encoder.embed_tokens.weight", None)  # the shared table's other name
    assert shapes == {name: spec.shape for name, spec in layout_of(config_size(part, config)).items()}


@pytest.mark.parametrize("variant", ["large", "large-turbo", "medium"])
def test_our_own_readers_read_them(variant: str) -> None:
    """Loading a checkpoint of random weights finds in its configs all that it asks for."""
    checkpoint = RandomCheckpoint(variant, torch.device("cpu"))
    assert configs.read_mmdit_config(checkpoint).num_layers == {"medium": 24}.get(variant, 38)
    assert configs.read_vae_config(checkpoint).groups == 32
    assert configs.read_clip_config(checkpoint, "text_encoder").epsilon == 1e-5
    assert configs.read_clip_config(checkpoint, "text_encoder_2").channels == 1280
    assert configs.read_t5_config(checkpoint).epsilon == 1e-6
    assert configs.read_shift(checkpoint) == 3.0
