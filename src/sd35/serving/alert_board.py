"""Which alerts are up. A condition is told once when it begins and once when it is over; nothing between."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sd35.serving.alert_rules import Condition

REMEMBERED = 100  # alerts that are over


@dataclass(frozen=True)
class Alert:
    """A condition from its beginning; `ended_at` is None while it holds. Seconds since 1970."""

    condition: Condition
    began_at: float
    ended_at: float | None = None

    def view(self) -> dict[str, object]:
        """As clients and receivers see it."""
        one = self.condition
        return {
            "name": one.name,
            "subject": one.subject,
            "severity": one.severity,
            "state": "firing" if self.ended_at is None else "resolved",
            "text": one.text,
            "began_at": self.began_at,
            "ended_at": self.ended_at,
        }


class Board:
    """Holds the alerts of one server."""

    def __init__(self) -> None:
        self._up: dict[tuple[str, str], Alert] = {}
        self._over: deque[Alert] = deque(maxlen=REMEMBERED)

    def update(self, conditions: Sequence[Condition], now: float) -> list[Alert]:
        """What began or ended, given all that holds now."""
        holding = {(one.name, one.subject): one for one in conditions}
        news = [replace(alert, ended_at=now) for name, alert in self._up.items() if name not in holding]
        self._over.extend(news)
        kept = {name: alert for name, alert in self._up.items() if name in holding}
        begun = {name: Alert(one, now) for name, one in holding.items() if name not in kept}
        # The text of one that goes on may change; that it holds is told already.
        texts = {name: replace(alert, condition=holding[name]) for name, alert in kept.items()}
        self._up = {**texts, **begun}
        return [*news, *begun.values()]

    @property
    def up(self) -> list[Alert]:
        """Those that hold."""
        return list(self._up.values())

    @property
    def over(self) -> list[Alert]:
        """Those of late that are over, the latest first."""
        return list(reversed(self._over))
