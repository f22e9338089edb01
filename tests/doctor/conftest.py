"""A home for each test, no hub settings of the user's, and what the tests of checkpoints have made."""

import sys
from pathlib import Path

import pytest

BESIDE = Path(__file__).parents[1] / "checkpoints"
sys.path += [str(BESIDE), str(BESIDE / "fetch")]


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SD35_HOME, empty."""
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE",
                 "TRANSFORMERS_OFFLINE"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("SD35_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
