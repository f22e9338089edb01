"""Our text encoders against transformers' own."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5EncoderModel
from transformers import T5Config as TheirT5Config

from sd35.checkpoints.reader import TensorReader
from sd35.checkpoints.source import TensorSource
from sd35.runtime.text_models import ClipConfig, ClipTextModel, T5Config, T5Encoder, distance_buckets
from sd35.runtime.weights import Placement, fill_module

CPU32 = Placement(torch.device("cpu"), torch.float32, "auto")
END = 90  # the highest of the texts' tokens, so that both ways to find it agree


def randomized(model: nn.Module) -> nn.Module:
    """The model with random weights everywhere, norms and biases included."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.15)
    return model.eval()


def filled(ours: nn.Module, theirs: nn.Module, folder: Path, shared: tuple[str, ...] = ()) -> nn.Module:
    """Our model, filled from a file of their weights by the names that they have there."""
    path = folder / "model.safetensors"
    tensors = {name: value for name, value in theirs.state_dict().items() if name not in shared[1:]}
    save_file(tensors, path)
    with TensorSource.of(TensorReader([path])) as source:
        fill_module(ours, source, CPU32, shared)
    return ours


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("end_token", [2, END])
@torch.inference_mode()
def test_clip_equals_transformers(activation: str, end_token: int, tmp_path: Path) -> None:
    """The last layer's input and the pooled text are theirs, whatever the config says of the end token."""
    config = CLIPTextConfig(
        vocab_size=100,
        hidden_size=48,
        intermediate_size=80,
        projection_dim=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=20,
        hidden_act=activation,
        layer_norm_eps=1e-4,
        eos_token_id=end_token,
    )
    theirs = randomized(CLIPTextModelWithProjection(config))
    with torch.device("meta"):
        ours = ClipTextModel(ClipConfig(3, 48, 80, 4, 40, 100, 20, end_token, activation, 1e-4))
    ids = torch.randint(3, END, (3, 17))
    ids[0, 6] = ids[1, 16] = ids[2, 1] = END
    ids[2, 2:] = END  # CLIP-L pads with its end token
    tokens, pooled = filled(ours, theirs, tmp_path)(ids)
    expected = theirs(ids, output_hidden_states=True)
    torch.testing.assert_close(tokens, expected.hidden_states[-2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled, expected.text_embeds, rtol=1e-4, atol=1e-5)
    assert float(pooled.std()) > 0.1


@pytest.mark.parametrize("tokens", [9, 300])
@torch.inference_mode()
def test_t5_equals_transformers(tokens: int, tmp_path: Path) -> None:
    """Tokens are theirs, also where distances are beyond the largest that is told apart."""
    config = TheirT5Config(
        vocab_size=100,
        d_model=64,
        d_kv=24,
        d_ff=96,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        layer_norm_epsilon=1e-5,
    )
    theirs = randomized(T5EncoderModel(config))
    with torch.device("meta"):
        ours = T5Encoder(T5Config(3, 64, 96, 4, 24, 100, 32, 128, 1e-5))
    shared = ("shared.weight", "encoder.embed_tokens.weight")
    ids = torch.randint(0, 100, (2, tokens))
    expected = theirs(ids)[0]
    torch.testing.assert_close(filled(ours, theirs, tmp_path, shared)(ids), expected, rtol=1e-4, atol=1e-5)
    assert float(expected.std()) > 0.1


def test_buckets_of_distances() -> None:
    """Near tokens each have a bucket of their own, far ones share, and both directions are apart."""
    row = distance_buckets(300, buckets=32, max_distance=128)[150]
    assert row[150 - 7 : 150 + 8].tolist() == [*range(7, -1, -1), *range(17, 24)]
    assert set(row[:22].tolist()) == {15}  # 129 and more behind
    assert set(row[279:].tolist()) == {31}
    assert len(set(row.tolist())) == 31  # 16 + 0 would be a distance of 0 ahead
