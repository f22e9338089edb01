"""How full the cards are."""

from sd35.serving.cards import Cards
from sd35.serving.happenings import Drew


def test_the_last_task_on_each_card_counts() -> None:
    """Two cards add up, a later task replaces an earlier one, and a worker on the CPU tells nothing."""
    cards = Cards()
    cards.observe(Drew("here:cpu:1", 1))
    assert cards.view() is None
    for worker, free in (("here:cuda0:1", 10), ("here:cuda0:2", 14), ("here:cuda1:3", 24)):
        cards.observe(Drew(worker, 1, free, 24))
    assert cards.view() == {"cards": 2, "used_bytes": 10, "total_bytes": 48}
