"""What a hub means when it says no, in words: which page to visit, which variable to set.

The hub puts the reason into the header `X-Error-Code`; a private repository and one that is not there look
alike to a stranger (401, `RepoNotFound`), so that nobody learns which exist.
"""

from dataclasses import dataclass

import httpx2

from sd35.errors import MissingError, NetworkError, Sd35Error

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Asked:
    """What was asked of whom: what an explanation needs to know."""

    repository: str
    endpoint: str
    has_token: bool
    revision: str | None = None
    commit: str | None = None

    @property
    def place(self) -> str:
        """The repository's page."""
        return f"{self.endpoint}/{self.repository}"


def is_passing(status: int) -> bool:
    """Whether a later try may get another answer."""
    return status in _PASSING


def refusal(response: httpx2.Response, asked: Asked, path: str | None = None) -> Sd35Error:
    """The error for a final 4xx or 5xx answer."""
    code = response.headers.get("X-Error-Code", "")
    status = response.status_code
    if code == "RevisionNotFound":
        return MissingError(f"{asked.place} has no revision {asked.revision or asked.commit}: name another.")
    if code == "EntryNotFound":
        return MissingError(f"{asked.place} has no file {path} at {asked.commit or asked.revision}.")
    if code == "GatedRepo" or (status in (401, 403) and code != "RepoNotFound"):
        return NetworkError(_gated(asked, status))
    if status in (401, 404):
        return MissingError(_not_found(asked, path))
    return NetworkError(f"{asked.place} answered HTTP {status}: try later, or another --endpoint.")


def _gated(asked: Asked, status: int) -> str:
    if not asked.has_token:
        return (
            f"{asked.repository} is gated and there is no token: accept its licence at {asked.place}, make a "
            f"token at {asked.endpoint}/settings/tokens and set HF_TOKEN to it."
        )
    if status == 401:
        return (
            f"{asked.endpoint} does not know the token: make a new one at {asked.endpoint}/settings/tokens "
            "and set HF_TOKEN to it."
        )
    return (
        f"The token's owner has no access to {asked.repository}: accept its licence at {asked.place} (and "
        "wait where its makers approve by hand), and let the token read gated repositories."
    )


def _not_found(asked: Asked, path: str | None) -> str:
    what = f"{path} of {asked.repository}" if path else asked.repository
    hint = "check the name" if asked.has_token else "check the name, or set HF_TOKEN if it is private"
    return f"{asked.endpoint} has no {what}: {hint}."
