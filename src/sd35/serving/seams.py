"""What the job core asks of a prompt filter. The filter itself, `safety.py`, needs packages that a server
without one does without.
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Verdict:
    """Whether a prompt may be drawn; if not, the list and the term (as the policy spells it) that say so."""

    allowed: bool
    list_name: str | None = None
    matched: str | None = None


class PromptPolicy(Protocol):
    """Which prompts are drawn."""

    def judge(self, text: str, key_id: str | None) -> Verdict:
        """Whether this key may ask for this text."""


class AllowAll:
    """A policy without lists."""

    def judge(self, text: str, key_id: str | None) -> Verdict:
        """Yes."""
        return Verdict(allowed=True)
