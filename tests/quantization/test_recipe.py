"""Which layers the recipes choose."""

import pytest
import torch

from sd35.checkpoints.folder import open_folder
from sd35.errors import RequestError
from sd35.fp8 import Scheme
from sd35.quantization.recipe import Recipe, Rule


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
    recipes += [Recipe(rounding="learned"), Recipe(outliers="ignore"), Recipe(outliers="refuse")]
    assert len({recipe.name for recipe in recipes}) == len(recipes)


def test_the_first_rule_that_fits_decides() -> None:
    """Rules come before the default, in their order; layers that no rule fits keep the default."""
    rules = (
        "*.ff.net.2=16bit",
        "*.blocks.1.*=e5m2",
        "transformer.transformer_blocks.1.*=e5m2-tensorwise-storage",
    )
    recipe = Recipe.of(Scheme(), rules=tuple(Rule.parse(text) for text in rules))
    plan = recipe.plan("transformer", shapes("transformer"))
    assert "transformer_blocks.1.ff.net.2" not in plan
    assert plan["transformer_blocks.1.ff.net.0.proj"] == Scheme("e5m2", "tensorwise", "none")
    assert plan["transformer_blocks.2.ff.net.0.proj"] == Scheme()
    assert recipe.name != Recipe().name


@pytest.mark.parametrize("choice", [{"rounding": "stochastic"}, {"outliers": "drop"}])
def test_unknown_choices_are_refused(choice: dict[str, str]) -> None:
    """A word that means nothing is an error that lists those that do."""
    with pytest.raises(RequestError, match="choose one of"):
        Recipe(**choice)  # type: ignore[arg-type]


def test_rules_reach_t5_and_nothing_forbidden() -> None:
    """A rule may ask for T5; what no recipe may touch stays 16-bit."""
    recipe = Recipe(rules=(Rule.parse("*=e4m3fn-rowwise-storage"),))
    assert recipe.plan("text_encoder_3", shapes("text_encoder_3"))
    assert recipe.plan("vae", shapes("vae")) == {}
    assert not any(
        ".norm" not in layer and "blocks" not in layer
        for layer in recipe.plan("transformer", shapes("transformer"))
    )


def test_rules_may_not_part_q_k_and_v() -> None:
    """What is one layer at run time is refused when it is planned, not when it is loaded."""
    with pytest.raises(RequestError, match="one layer"):
        Recipe(rules=(Rule.parse("*.attn.to_k=16bit"),)).plan("transformer", shapes("transformer"))


@pytest.mark.parametrize(
    "text", ["", "*.ff", "=16bit", "*=", "*=fp4", "*=e4m3fn-columnwise", "*=e5m2-rowwise-x"]
)
def test_bad_rules_are_refused(text: str) -> None:
    """A rule that can't be read is a RequestError."""
    with pytest.raises(RequestError):
        Rule.parse(text)
