"""Budgets in which a plan just fits."""

import math

from sd35.runtime.budget import ALLOCATOR_SHARE


def budget_for(needed: int) -> int:
    """The least of which so many bytes can be planned."""
    return math.ceil(needed / (1 - ALLOCATOR_SHARE))
