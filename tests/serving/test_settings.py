"""How to serve: flags, environment, defaults."""

import pytest

from sd35.errors import RequestError
from sd35.serving.settings import Model, ServerSettings
from sd35.serving.sources import from_sources
from sd35.variants import VARIANTS


def test_flag_wins_over_environment_over_default() -> None:
    """Each source fills what the one before left open, in the field's own type."""
    environment = {
        "SD35_SERVE_PORT": "9000",
        "SD35_SERVE_MAX_QUEUED": "5",
        "SD35_SERVE_PROMPT_IN_PICTURES": "yes",
    }
    settings = from_sources({"port": 9001, "max_queued": None}, environment)
    assert (settings.port, settings.max_queued, settings.host) == (9001, 5, "127.0.0.1")
    assert settings.prompt_in_pictures is True


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "many"), ("PORT", "70000"), ("ENGINE", "other"), ("MAX_QUEUED", "0"),
     ("PROMPT_IN_PICTURES", "2"),
     ("MODELS", "stranger"), ("MODELS", ","), ("STEP_S", "0")],
)  # fmt: skip
def test_nonsense_is_refused(name: str, value: str) -> None:
    """A value outside its range is an error that names it."""
    with pytest.raises(RequestError, match=value.strip(",") or "no model"):
        from_sources({}, {f"SD35_SERVE_{name}": value})


def test_models_by_name_path_and_variant() -> None:
    """A variant's name says everything; another name says its variant."""
    settings = ServerSettings(models="large, small@medium=/data/m.safetensors,demo=/data/d")
    assert settings.catalogue() == {
        "large": Model("large", "large", VARIANTS["large"]),
        "small": Model("small", "/data/m.safetensors", VARIANTS["medium"]),
        "demo": Model("demo", "/data/d", VARIANTS["demo"]),
    }
