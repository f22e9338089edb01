"""Whether a checkpoint can begin with an image, told from names alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sd35.checkpoints.vae_halves import lacks_encoder

WEIGHTS = Path("vae") / "diffusion_pytorch_model.safetensors"


def test_a_folder(demo_copy: Path, edit_tensors: Callable[..., None]) -> None:
    """The demo is whole; it lacks what was cut off, and without a VAE there is no telling."""
    assert not lacks_encoder(demo_copy)

    def cut(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("encoder.")]:
            del tensors[name]

    edit_tensors(demo_copy / WEIGHTS, cut)
    assert lacks_encoder(demo_copy)
    (demo_copy / WEIGHTS).unlink()
    assert not lacks_encoder(demo_copy)


@pytest.mark.parametrize(
    ("names", "lacks"),
    [
        (["first_stage_model.decoder.conv_in.weight"], True),
        (["first_stage_model.decoder.conv_in.weight", "first_stage_model.encoder.conv_in.weight"], False),
        (
            ["model.diffusion_model.x_embedder.proj.weight", "text_encoders.t5xxl.transformer.encoder.a"],
            False,
        ),
    ],
)
def test_a_single_file(tmp_path: Path, names: list[str], lacks: bool) -> None:
    """Of its VAE the encoder counts, not a text encoder; one without a VAE takes that from elsewhere."""
    save_file({name: torch.zeros(2) for name in names}, tmp_path / "one.safetensors")
    assert lacks_encoder(tmp_path / "one.safetensors") is lacks
