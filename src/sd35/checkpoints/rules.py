"""Small rules that a value of a JSON config must keep: a whole number from 1 to 64, one of these words.

A rule is a predicate that can say what it wants. Numbers are bounded before anything is allocated from them;
`True` is no number here, though Python thinks so.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from sd35.checkpoints.strict_json import is_deeper


@dataclass(frozen=True)
class Rule:
    """`wants` finishes "it must be ..."; `holds` decides."""

    wants: str
    holds: Callable[[object], bool]


def whole(low: int, high: int) -> Rule:
    """An integer from `low` to `high`."""
    return Rule(
        f"a whole number from {low} to {high}",
        lambda value: type(value) is int and low <= value <= high,
    )


def real(low: float, high: float) -> Rule:
    """A finite number from `low` to `high`."""
    return Rule(
        f"a number from {low:g} to {high:g}",
        lambda value: type(value) in (int, float) and math.isfinite(value) and low <= value <= high,  # type: ignore[arg-type, operator]
    )


def one_of(*choices: object) -> Rule:
    """One of these values, of the same type."""
    return Rule(
        "one of " + ", ".join(map(repr, choices)) if len(choices) > 1 else repr(choices[0]),
        lambda value: any(type(value) is type(choice) and value == choice for choice in choices),
    )


def maybe(rule: Rule) -> Rule:
    """null, or what the rule wants."""
    return Rule(f"null or {rule.wants}", lambda value: value is None or rule.holds(value))


def either(first: Rule, second: Rule) -> Rule:
    """What one of the two rules wants."""
    return Rule(f"{first.wants} or {second.wants}", lambda value: first.holds(value) or second.holds(value))


def each(rule: Rule, most: int) -> Rule:
    """A list of at most `most` values that keep the rule."""
    return Rule(
        f"a list of at most {most}, each {rule.wants}",
        lambda value: isinstance(value, list) and len(value) <= most and all(map(rule.holds, value)),
    )


def _is_small(value: object) -> bool:
    return not is_deeper(value, 8) and len(repr(value)) <= 1 << 17


FLAG = Rule("true or false", lambda value: isinstance(value, bool))
TEXT = Rule("a text of at most 1000 letters", lambda value: isinstance(value, str) and len(value) <= 1000)
SMALL = Rule("small", _is_small)  # what nobody reads: bounded, and searched for keys that load code
