"""The hub's own variables, so that what people have set for other tools holds here too.

Names and places are those of huggingface_hub 2.4 (`constants.py`, `utils/_auth.py`): `HF_ENDPOINT`,
`HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HOME`, `HF_HUB_OFFLINE`. They are read when a fetch begins, never at import.
"""

import os
from pathlib import Path

from sd35.errors import MissingError

HUB = "https://huggingface.co"


def endpoint() -> str:
    """`HF_ENDPOINT`, else the hub itself."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def token() -> str | None:
    """`HF_TOKEN`, else what `hf auth login` left in the token file, else None."""
    if given := os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return given.strip() or None
    path = Path(os.environ.get("HF_TOKEN_PATH") or _hub_home() / "token").expanduser()
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise MissingError(
            f"The token file {path} can't be read ({error}): mend it, or set HF_TOKEN."
        ) from error


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` (or `TRANSFORMERS_OFFLINE`) forbids the network."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in {"1", "ON", "YES", "TRUE"}


def _hub_home() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("HF_HOME") or cache / "huggingface")
