"""The end of a job reaches the address that it named: signed, tried again, never lost."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from sd35.serving.happenings import Happening, WebhookTried
from sd35.serving.jobs import Job, JobImage, State
from sd35.serving.keys import KeyStore
from sd35.serving.outbound import Outbound
from sd35.serving.settings import ServerSettings
from sd35.serving.signing import Signer
from sd35.serving.store import Store
from sd35.serving.tables import webhooks
from sd35.serving.webhooks import JITTER, PAUSES_S, Courier, told_of

from .conftest import ServerFactory
from .sink import Received, Sink, sink
from .stores import Memory
from .test_fair_queue import job

SECRET = bytes(32)


@pytest.fixture
def receiver() -> Iterator[Sink]:
    """Somebody who wants to be told."""
    with sink() as one:
        yield one


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """An empty database."""
    store = Store(url)
    yield store
    store.close()


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def owed(store: Store, url: str, **facts: Any) -> Job:
    """A job that has ended and names this address."""
    one = job("a")
    one.webhook_url = url
    one = store.accept(one).result()
    one.images = [JobImage("x.png", 7, 64, 32, "ab", 9)]
    one.state, one.finished_at = State.SUCCEEDED, time.time()
    for name, value in facts.items():
        setattr(one, name, value)
    store.end_attempt(one, one.state.value, one.finished_at).result()
    return one


def courier(store: Store, clock: Clock, told: list[Happening], *, private_ok: bool = True) -> Courier:
    """One that counts time by this clock."""
    whole = told_of(ServerSettings(public_url="https://pictures.example/"), Memory())
    return Courier(store, Outbound(private_ok=private_ok), Signer(SECRET), whole, told.append, clock)


def send_due(one: Courier) -> None:
    """What is due now."""
    asyncio.run(one.send_due())


def row(store: Store) -> Any:
    """The only webhook that was ever owed."""
    (found,) = store.rows(sa.select(webhooks))
    return found


def verified(one: Received, secret: str) -> Any:
    """The body, once the other side's own package has checked it."""
    headers = {name.lower(): value for name, value in one.headers.items()}
    return Webhook(secret).verify(one.body, headers)


def test_a_server_tells_the_end_of_a_job(start_server: ServerFactory, receiver: Sink) -> None:
    """Signed so that the reference package accepts it with the caller's secret, and no other's."""
    served = start_server(webhook_private=True)
    made = served.end(served.post(webhook_url=receiver.url, seed=5)["id"])
    secret = served.client.get("/api/v1/webhooks/secret").json()["secret"]
    (one,) = receiver.await_requests(1)
    told = verified(one, secret)
    assert told["type"] == "job.succeeded"
    assert told["data"]["images"][0]["sha256"] == made["images"][0]["sha256"]
    assert one.headers["webhook-id"] == f"msg_{made['id']}"
    with pytest.raises(WebhookVerificationError):
        verified(one, Signer(SECRET).secret("another"))


def test_a_failure_is_told_as_well(start_server: ServerFactory, receiver: Sink) -> None:
    """With the error that the job has; a cancelled job says so."""
    served = start_server(rough=True, webhook_private=True)
    served.end(served.post(prompt="memory", webhook_url=receiver.url)["id"])
    slow = served.post(prompt="slow", webhook_url=receiver.url)["id"]
    receiver.await_requests(1)
    served.client.delete(f"/api/v1/jobs/{slow}")
    first, second = (one.json for one in receiver.await_requests(2))
    assert (first["type"], first["data"]["error"]["code"]) == ("job.failed", "out_of_memory")
    assert (second["type"], second["data"]["images"]) == ("job.cancelled", [])


def test_what_is_owed_survives_kill_9(start_server: ServerFactory, receiver: Sink) -> None:
    """A receiver that fails at first is told by the next server, under the same id."""
    receiver.answers = [500]
    served = start_server(webhook_private=True)
    made = served.post(webhook_url=receiver.url)["id"]
    receiver.await_requests(1)
    time.sleep(0.5)
    served.kill()
    start_server(webhook_private=True)
    first, second = receiver.await_requests(2)
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == f"msg_{made}"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/x", "http://[::1]/", "file:///etc/passwd", "not an address"]
)
def test_an_address_that_is_no_good_is_refused_at_once(start_server: ServerFactory, url: str) -> None:
    """Before the job is made."""
    answer = start_server().client.post("/api/v1/jobs", json={"prompt": "a fox", "webhook_url": url})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert answer.json()["error"]["param"] == "webhook_url"


def test_a_name_that_turns_out_private_gets_nothing(store: Store, receiver: Sink) -> None:
    """What only its resolution shows is refused when it is sent, and not tried again."""
    owed(store, receiver.url.replace("127.0.0.1", "localhost"))
    told: list[Happening] = []
    send_due(courier(store, Clock(), told, private_ok=False))
    assert not receiver.received
    assert (row(store)["next_at"], row(store)["tries"]) == (None, 1)
    assert "is not a public address" in row(store)["failure"]
    assert isinstance(told[0], WebhookTried)


def test_ten_tries_over_two_hours(store: Store, receiver: Sink) -> None:
    """Each pause is as long as planned, give or take the jitter; after the tenth try it is over."""
    receiver.answers = [500] * 20
    clock, told = Clock(), []
    begin, one = clock.now, courier(store, clock, told)
    owed(store, receiver.url)
    clock.now = begin = time.time() + 1
    for pause in PAUSES_S:
        send_due(one)
        wait = row(store)["next_at"] - clock.now
        assert pause * (1 - JITTER) <= wait <= pause * (1 + JITTER)
        clock.now += wait - 0.1
        count = len(receiver.received)
        send_due(one)
        assert len(receiver.received) == count, "it came before its time"
        clock.now += 0.2
    send_due(one)
    assert (row(store)["tries"], row(store)["next_at"], row(store)["taken_at"]) == (10, None, None)
    assert 5700 < clock.now - begin < 8800
    assert [happening.failure for happening in told] == ["it answered 500"] * 10  # type: ignore[attr-defined]


@pytest.mark.parametrize(("status", "is_taken", "is_over"), [(200, True, True), (204, True, True),
    (410, False, True), (404, False, False), (302, False, False)])  # fmt: skip
def test_what_an_answer_means(
    store: Store, receiver: Sink, status: int, is_taken: bool, is_over: bool
) -> None:
    """2xx takes it, 410 wants no more, and everything else is tried again."""
    receiver.answers = [status]
    owed(store, receiver.url)
    clock = Clock()
    clock.now += 1
    send_due(courier(store, clock, []))
    assert (row(store)["taken_at"] is not None, row(store)["next_at"] is None) == (is_taken, is_over)


def test_a_receiver_that_is_away_delays_nobody(store: Store, receiver: Sink) -> None:
    """All that are due are tried together."""
    owed(store, "http://127.0.0.1:1/away")
    second = owed(store, receiver.url)
    clock = Clock()
    clock.now += 1
    send_due(courier(store, clock, []))
    assert [one.json["data"]["id"] for one in receiver.received] == [second.id]


def test_addresses_of_pictures_are_whole(store: Store, receiver: Sink) -> None:
    """What the storage gives stays as it is; what begins at this server gets its public name."""

    class Local(Memory):
        def url(self, name: str, expires_s: float) -> str:
            return f"/files/{name}?signed"

    told = told_of(ServerSettings(public_url="https://pictures.example/"), Local())
    assert (
        told(owed(store, receiver.url))["images"][0]["url"] == "https://pictures.example/files/x.png?signed"
    )


def test_jobs_without_an_address_owe_nothing(store: Store) -> None:
    """No row, and an unfinished job has none yet either."""
    one = job("a")
    one.webhook_url = "https://example.com/"
    one = store.accept(one).result()
    store.end_attempt(one, "worker_died", time.time()).result()
    owed(store, "", webhook_url=None)
    assert not store.rows(sa.select(webhooks))


def test_every_key_has_a_secret_of_its_own(
    start_server: ServerFactory, tmp_path: Path, receiver: Sink
) -> None:
    """One key's owner can't sign for another, and the server's secret differs from folder to folder."""
    keys = KeyStore(tmp_path / "data")
    (_, one), (_, other) = keys.add("one"), keys.add("other")
    keys.close()
    served = start_server(webhook_private=True)
    found = []
    for secret in (one, other):
        served.client.headers["Authorization"] = f"Bearer {secret}"
        found.append(served.client.get("/api/v1/webhooks/secret").json()["secret"])
    served.end(served.post(webhook_url=receiver.url)["id"])
    (sent,) = receiver.await_requests(1)
    assert verified(sent, found[1])
    with pytest.raises(WebhookVerificationError):
        verified(sent, found[0])
    assert Signer(SECRET).secret("a") != Signer(bytes([1]) * 32).secret("a")
