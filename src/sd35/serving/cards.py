"""The memory of the cards that draw, as the last task on each left it: the bar on the page."""

from typing import Any

from sd35.serving.happenings import Drew, Happening


class Cards:
    """Remembers, for each worker's machine, how much was used at the peak of its last task."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, int]] = {}  # machine -> bytes used, bytes in all

    def observe(self, happening: Happening) -> None:
        """A task that tells of its card's memory."""
        match happening:
            case Drew(worker, _, int(free), int(total)):
                self._last[worker.rpartition(":")[0]] = (total - free, total)

    def view(self) -> dict[str, Any] | None:
        """All cards together; None before one has drawn, and where there is none."""
        if not self._last:
            return None
        used, total = (sum(column) for column in zip(*self._last.values(), strict=True))
        return {"cards": len(self._last), "used_bytes": used, "total_bytes": total}
