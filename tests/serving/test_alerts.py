"""Each alert fires once for its trouble and recovers once, and reaches those who want to know."""

import asyncio
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sd35.errors import RequestError
from sd35.serving.alert_board import Alert, Board
from sd35.serving.alert_rules import FEWEST_JOBS, WINDOW_S, Condition, Latch, Rules
from sd35.serving.alert_sending import Alertmanager, AlertWebhook
from sd35.serving.gauges import Gauges
from sd35.serving.happenings import Diagnosed, Drew, Ended, Happening, Judged, StoreTried, WorkerLost
from sd35.serving.jobs import JobError, State
from sd35.serving.outbound import Outbound
from sd35.serving.settings import ServerSettings
from sd35.serving.signing import Signer

from .conftest import ServerFactory
from .sink import sink
from .test_fair_queue import job
from .test_webhooks import verified

WELL = Gauges({"normal": 0}, 0.0, {}, is_ready=True, spooled=0, store_trouble=None)


class Watch:
    """Rules and a board at a time that tests decide."""

    def __init__(self, **settings: Any) -> None:
        self.now, self.gauges, self.board = 1000.0, WELL, Board()
        self.rules = Rules(ServerSettings(**settings), lambda: self.now)

    def see(self, *happenings: Happening, after: float = 1.0) -> list[tuple[str, str, str]]:
        """What is told some seconds later: name, subject and state of each."""
        for happening in happenings:
            self.rules.observe(happening)
        self.now += after
        news = self.board.update(self.rules.conditions(self.gauges), self.now)
        return [(one.condition.name, one.condition.subject, str(one.view()["state"])) for one in news]

    def text(self) -> str:
        """Of the only alert that is up."""
        (alert,) = self.board.up
        return alert.condition.text


def ended(state: State, code: str = "model_failed") -> Ended:
    """A job's end."""
    one = job()
    one.state = state
    one.error = JobError(code, "why") if state is State.FAILED else None
    return Ended(one)


def test_error_ratio() -> None:
    """Fires from one failed job in five on, is told once, and recovers well below."""
    watch = Watch()
    assert not watch.see(*[ended(State.FAILED)] * (FEWEST_JOBS - 1)), "too few to judge"
    assert watch.see(ended(State.SUCCEEDED)) == [("error_ratio", "jobs", "firing")]
    assert "9 of 10 jobs failed" in watch.text()
    assert not watch.see(*[ended(State.FAILED)] * 5)
    assert not watch.see(*[ended(State.SUCCEEDED)] * 90), "14 of 105 is between the two bounds"
    assert watch.see(*[ended(State.SUCCEEDED)] * 60) == [("error_ratio", "jobs", "resolved")]


def test_error_ratio_forgets() -> None:
    """After a quarter of an hour without failures it is over by itself."""
    watch = Watch()
    assert watch.see(*[ended(State.FAILED)] * FEWEST_JOBS)
    assert not watch.see(after=WINDOW_S - 10)
    assert watch.see(after=10) == [("error_ratio", "jobs", "resolved")]


def test_ends_that_accuse_nobody() -> None:
    """Cancelled, expired and held-back jobs are no failures of the server."""
    watch = Watch()
    innocent = [ended(State.CANCELLED), ended(State.EXPIRED), ended(State.FAILED, "output_blocked")]
    assert not watch.see(*innocent * 10)


def test_queue_wait() -> None:
    """Fires when the oldest job has waited too long, and recovers at half of that."""
    watch = Watch(alert_queue_wait_s=100)
    for wait, told in ((99, []), (101, ["firing"]), (60, []), (101, []), (49, ["resolved"]), (60, [])):
        watch.gauges = replace(WELL, queued={"normal": 7}, longest_wait_s=float(wait))
        assert [state for _, _, state in watch.see()] == told, wait
    watch.gauges = replace(WELL, queued={"normal": 7}, longest_wait_s=120.0)
    watch.see()
    assert "7 jobs wait, the oldest for 120 s" in watch.text()


def test_restart_loop() -> None:
    """Three workers lost within a quarter of an hour; two are bad luck."""
    watch = Watch()
    lost = WorkerLost("worker", "killed", "it was ended by SIGKILL")
    assert not watch.see(lost, lost)
    assert watch.see(lost) == [("restart_loop", "worker", "firing")]
    assert (
        "3 workers were lost in 15 minutes, the last because of this: it was ended by SIGKILL" in watch.text()
    )
    assert not watch.see(lost, after=WINDOW_S - 5)
    assert watch.see(after=10) == [("restart_loop", "worker", "resolved")]


@pytest.mark.parametrize("place", ["database", "storage"])
def test_store_failing(place: str) -> None:
    """From the first write that fails to the first that works."""
    watch = Watch()
    failed = StoreTried(place, "disk full")
    assert watch.see(failed, failed) == [("store_failing", place, "firing")]
    assert watch.text() == f"The {place} fails: disk full"
    assert not watch.see(failed)
    assert watch.see(StoreTried(place, None)) == [("store_failing", place, "resolved")]


def test_pictures_in_the_spool() -> None:
    """A store that is down is told though every picture is safe on the disk."""
    watch = Watch()
    watch.gauges = replace(WELL, spooled=12, store_trouble="the store fails")
    assert watch.see() == [("store_failing", "storage", "firing")]
    assert watch.text() == "The storage fails: the store fails 12 pictures wait on the disk."
    watch.gauges = WELL
    assert watch.see() == [("store_failing", "storage", "resolved")]


def test_vram_headroom() -> None:
    """Below one part in twenty at a job's peak, for each machine by itself, whatever the process."""
    watch = Watch()
    assert not watch.see(Drew("host:1", 1, 6, 100), Drew("other:1", 1, None, None))
    assert watch.see(Drew("host:1", 1, 4, 100)) == [("vram_headroom", "host", "firing")]
    assert "4.0% of the card's memory was free" in watch.text()
    assert watch.see(Drew("host:2", 1, 6, 100)) == [("vram_headroom", "host", "resolved")]


def test_abnormal_pictures() -> None:
    """Fires with what was found out, even if it is over by the next look; ends with a good picture."""
    watch = Watch()
    found = Diagnosed(job(), "worker", is_fp8=True, text="FP8 is at fault.")
    good = Judged(job(), "worker", (None,))
    assert watch.see(found, good) == [("abnormal_pictures", "worker", "firing")]
    assert watch.text() == "Abnormal pictures in a row. FP8 is at fault."
    assert watch.see() == [("abnormal_pictures", "worker", "resolved")]
    assert watch.see(found) == [("abnormal_pictures", "worker", "firing")]
    assert not watch.see(Judged(job(), "worker", ("black", None)))
    assert not watch.see(good), "it is shown once more"
    assert watch.see() == [("abnormal_pictures", "worker", "resolved")]


def test_a_latch_keeps_its_state_between_the_bounds() -> None:
    """On at the upper, off below the lower."""
    latch = Latch(10, 5)
    assert [latch.update(value) for value in (9, 10, 6, 5, 4.9, 9)] == [False, True, True, True, False, False]


def test_texts_of_what_goes_on_are_kept_fresh() -> None:
    """The board shows the latest words, and its memory what is over."""
    board = Board()
    one = Condition("queue_wait", "queue", "warning", "7 jobs wait")
    assert len(board.update([one], 1.0)) == 1
    assert not board.update([replace(one, text="9 jobs wait")], 2.0)
    assert [alert.view()["text"] for alert in board.up] == ["9 jobs wait"]
    board.update([], 3.0)
    assert [(alert.began_at, alert.ended_at) for alert in board.over] == [(1.0, 3.0)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"alert_error_ratio": 2.0}, "give a share from 0 to 1"), ({"alert_restarts": 0}, "give 1 or more")],
)
def test_nonsense_is_refused(settings: dict[str, Any], said: str) -> None:
    """Before the server starts."""
    with pytest.raises(RequestError, match=said):
        ServerSettings(**settings)


def test_a_server_tells_a_webhook(start_server: ServerFactory) -> None:
    """Workers that die in a row: one signed message, though the trouble goes on, and it is shown."""
    with sink() as receiver:
        served = start_server(rough=True, alert_webhook=receiver.url, alert_restarts=2)
        for _ in range(2):
            served.end(served.post(prompt="die")["id"])
        (one,) = receiver.await_requests(1)
        time.sleep(3)
        assert len(receiver.received) == 1
        (up,) = served.client.get("/api/v1/alerts").json()["up"]
        secret = served.client.get("/api/v1/webhooks/secret").json()["secret"]
    told = verified(one, secret)
    assert told["type"] == "alert.firing"
    assert (told["data"]["name"], up["name"], up["state"]) == ("restart_loop", "restart_loop", "firing")
    assert "SIGKILL" in told["data"]["text"]


def alert(name: str = "queue_wait", *, is_over: bool = False) -> Alert:
    """One that began a minute ago."""
    now = time.time()
    condition = Condition(name, "queue", "warning", "9 jobs wait")
    return Alert(condition, now - 60, now if is_over else None)


def test_an_alert_webhook_that_is_away_gets_its_news_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The firing is tried again until it is taken, and the recovery waits for its turn."""
    monkeypatch.setattr("sd35.serving.alert_sending.PAUSES_S", (0.05,) * 5)

    async def both(url: str) -> None:
        webhook = AlertWebhook(url, Outbound(private_ok=True), Signer(bytes(32)))
        await asyncio.gather(webhook.send(alert()), webhook.send(alert(is_over=True)))

    with sink() as receiver:
        receiver.answers = [500, 503, 204, 204]
        asyncio.run(both(receiver.url))
        kinds = [one.json["type"] for one in receiver.received]
    assert kinds == ["alert.firing"] * 3 + ["alert.resolved"]


def test_an_alertmanager_that_is_away_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged; the next refresh tells it again."""
    away = Alertmanager("http://127.0.0.1:1", Outbound(private_ok=True), "me")
    asyncio.run(away.send([alert()]))
    assert "Alertmanager: 127.0.0.1 can't be reached" in caplog.text


@pytest.fixture
def alertmanager(tmp_path: Path) -> Iterator[str]:
    """A running Alertmanager that sends to nobody."""
    program = shutil.which("prometheus-alertmanager")
    assert program is not None, "apt-get install prometheus-alertmanager"
    config = tmp_path / "alertmanager.yml"
    config.write_text("route: {receiver: nobody}\nreceivers: [{name: nobody}]\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [f"--config.file={config}", f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="]
    process = subprocess.Popen(
        [program, *words, f"--storage.path={tmp_path / 'alertmanager'}"], stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _await_answer(f"{url}/-/ready")
        yield url
    finally:
        process.kill()
        process.wait()


@pytest.mark.server
def test_a_real_alertmanager_understands(alertmanager: str) -> None:
    """It shows the alert while it holds, and not after its recovery."""
    sender = Alertmanager(alertmanager, Outbound(private_ok=True), "http://me:8000")
    asyncio.run(sender.send([alert()]))
    (shown,) = _shown(alertmanager)
    assert shown["labels"]["alertname"] == "sd35_queue_wait"
    assert shown["labels"]["instance"] == "http://me:8000"
    assert shown["annotations"]["summary"] == "9 jobs wait"
    assert shown["status"]["state"] == "active"
    asyncio.run(sender.send([alert(is_over=True)]))
    assert not _shown(alertmanager)


@pytest.mark.server
def test_a_server_tells_a_real_alertmanager(start_server: ServerFactory, alertmanager: str) -> None:
    """Workers that die in a row show there, from the server's own rules."""
    served = start_server(rough=True, alertmanager=alertmanager, alert_restarts=2)
    served.end(served.post(prompt="die")["id"])
    deadline = time.monotonic() + 20
    while not (shown := _shown(alertmanager)):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.2)
    assert [one["labels"]["alertname"] for one in shown] == ["sd35_restart_loop"]


def _shown(url: str) -> list[Any]:
    return json.loads(httpx2.get(f"{url}/api/v2/alerts").text)


def _await_answer(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            if httpx2.get(url).status_code == 200:
                return
        except httpx2.TransportError:
            assert time.monotonic() < deadline, "it does not answer"
        time.sleep(0.1)
