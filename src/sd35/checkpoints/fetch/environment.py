"""The hub's own variables, so that what people have set for other tools holds here too.

Names and places are those of huggingface_hub 2.4 (`constants.py`, `utils/_auth.py`): `HF_ENDPOINT`,
`HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HOME`, `HF_HUB_OFFLINE`. They are read when a fetch begins, never at import.
"""

import os
from pathlib import Path

from sd35.errors import MissingError, RequestError

HUB = "https://huggingface.co"


def endpoint() -> str:
    """`HF_ENDPOINT`, else the hub itself."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def token() -> str | None:
    """`HF_TOKEN`, else what `hf auth login` left in the token file, else None."""
    if given := os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return _checked(given, "HF_TOKEN")
    path = token_path()
    try:
        return _checked(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise MissingError(
            f"The token file {path} can't be read ({error}): mend it, or set HF_TOKEN."
        ) from error


def token_path() -> Path:
    """The file that `hf auth login` keeps the token in."""
    return Path(os.path.expanduser(os.environ.get("HF_TOKEN_PATH") or _hub_home() / "token"))


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` (or `TRANSFORMERS_OFFLINE`) forbids the network."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in {"1", "ON", "YES", "TRUE"}


def _checked(text: str, where: str) -> str | None:
    """The token without the space around it; a header can't hold more than visible ASCII."""
    found = text.strip()
    if not found.isascii() or any(not character.isprintable() or character == " " for character in found):
        raise RequestError(f"What {where} holds is no token (it has spaces or other signs in it): set it.")
    return found or None


def _hub_home() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("HF_HOME") or cache / "huggingface")
