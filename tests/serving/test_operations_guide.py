"""The guide to running a server says what is so, and its receiver takes what a server sends."""

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from sd35.serving.alert_rules import Condition
from sd35.serving.metrics import Metrics

from .conftest import ServerFactory
from .sink import sink
from .test_metrics import GAUGES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/guides/operations.md").read_text(encoding="utf-8")


def test_the_table_has_every_metric() -> None:
    """No more and no fewer than the server shows."""
    shown = {
        family.name for family in text_string_to_metric_families(Metrics(lambda: GAUGES).text().decode())
    }
    told = {name.removesuffix("_total") for name in re.findall(r"`(sd35_\w+)", PAGE)}
    assert told == {name for name in shown if name.startswith("sd35_")}


def test_the_table_has_every_alert() -> None:
    """By the names that the rules give."""
    source = (ROOT / "src/sd35/serving/alert_rules.py").read_text(encoding="utf-8")
    given = set(re.findall(rf'{Condition.__name__}\(\s*"(\w+)"', source))
    table = PAGE.partition("| alert | starts when | is resolved |")[2].partition("```")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == given
    assert len(given) == 6


def test_the_receiver_runs(start_server: ServerFactory) -> None:
    """The Python of the page takes what a server sends."""
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(block, "operations.md", "exec"), names)
    with sink() as receiver:
        served = start_server(webhook_private=True)
        made = served.end(served.post(webhook_url=receiver.url)["id"])
        (one,) = receiver.await_requests(1)
        secret = served.client.get("/api/v1/webhooks/secret").json()["secret"]
    headers = {name.lower(): value for name, value in one.headers.items()}
    told = names["receive"](one.body, headers, secret)  # type: ignore[operator]
    assert told["data"]["id"] == made["id"]
