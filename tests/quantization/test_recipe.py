"""Which layers the recipes choose."""

import pytest
import torch

from sd35.checkpoints.folder import open_folder
from sd35.fp8 import Scheme
from sd35.quantization.recipe import Recipe


def shapes(part: str) -> dict[str, torch.Size]:
    """Names and shapes of a part of the demo."""
    from sd35.checkpoints.store import locate

    with open_folder(locate("demo")).tensors(part) as reader:
        return {name: spec.shape for name, spec in reader.specs.items()}


def test_default_is_every_linear_of_the_blocks() -> None:
    """All 2-D weights inside transformer_blocks, nothing outside; AdaLN in storage only."""
    names = shapes("transformer")
    linears = {
        name.removesuffix(".weight")
        for name, shape in names.items()
        if name.startswith("transformer_blocks.") and name.endswith(".weight") and len(shape) == 2
    }
    plan = Recipe().plan("transformer", names)
    assert set(plan) == linears
    storage = {layer for layer, scheme in plan.items() if scheme.activation == "none"}
    assert storage == {layer for layer in linears if ".norm1" in layer}
    assert {scheme.granularity for scheme in plan.values()} == {"rowwise"}


def test_t5_is_a_choice() -> None:
    """T5's attention and MLP are planned when asked for, its embeddings and biases never."""
    names = shapes("text_encoder_3")
    assert Recipe().plan("text_encoder_3", names) == {}
    plan = Recipe.of(Scheme(), with_t5=True).plan("text_encoder_3", names)
    blocks = {name.split(".")[2] for name in names if name.startswith("encoder.block.")}
    assert len(plan) == 7 * len(blocks)
    assert not any("relative" in layer or "shared" in layer for layer in plan)
    assert {scheme.activation for scheme in plan.values()} == {"none"}


@pytest.mark.parametrize("part", ["vae", "text_encoder", "text_encoder_2"])
def test_the_rest_stays_16_bit(part: str) -> None:
    """No recipe touches the VAE or the CLIPs."""
    assert Recipe.of(Scheme(), with_t5=True).plan(part, shapes(part)) == {}


def test_names_tell_recipes_apart() -> None:
    """Different recipes never share a derived folder."""
    recipes = [Recipe(), Recipe.of(Scheme("e5m2")), Recipe.of(Scheme(), with_t5=True), Recipe(adaln=None)]
    assert len({recipe.name for recipe in recipes}) == len(recipes)
