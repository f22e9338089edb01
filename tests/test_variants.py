"""The table of variants."""

import pytest

from sd35.errors import RequestError
from sd35.variants import VARIANTS, variant_named, variant_of


@pytest.mark.parametrize("name", ["demo", "medium", "large"])
def test_recognised_by_depth_and_dual_layers(name: str) -> None:
    """Depth and dual attention lead back to the variant; Turbo is Large to the last byte."""
    variant = VARIANTS[name]
    assert variant_of(variant.num_layers, variant.dual_attention_layers) is variant


def test_strangers() -> None:
    """An unknown depth is no variant, and an unknown name is told the known ones."""
    assert variant_of(24, ()) is None
    with pytest.raises(RequestError, match="large-turbo"):
        variant_named("huge")
