"""Everyone who watches a server's jobs, put together."""

from dataclasses import dataclass
from functools import partial

from sd35.serving import logs
from sd35.serving.alert_board import Board
from sd35.serving.alert_rules import Rules
from sd35.serving.alert_sending import Alerts, Receivers
from sd35.serving.cards import Cards
from sd35.serving.chores import Chore, Chores
from sd35.serving.gauges import read_gauges
from sd35.serving.happenings import Observers
from sd35.serving.metrics import Metrics
from sd35.serving.outbound import Outbound
from sd35.serving.records import keep_diagnosis
from sd35.serving.retention import Retention
from sd35.serving.service import JobService
from sd35.serving.signing import Signer
from sd35.serving.storage import Storage
from sd35.serving.store import Store
from sd35.serving.traces import Traces, exporter_to
from sd35.serving.webhooks import Courier, told_of


@dataclass(frozen=True)
class Watched:
    """What routes show of it."""

    metrics: Metrics
    board: Board
    signer: Signer
    chores: Chores
    cards: Cards


def watched(
    service: JobService,
    observers: Observers,
    retention: Retention,
    store: Store,
    storage: Storage,
    signer: Signer,
) -> Watched:
    """Let all of them observe; their chores begin with the server."""
    settings, read = service.settings, partial(read_gauges, service)
    metrics, rules, board, cards = Metrics(read), Rules(settings), Board(), Cards()
    outbound = Outbound(private_ok=settings.webhook_private)
    courier = Courier(store, outbound, signer, told_of(settings, storage), observers.tell)
    keep = partial(keep_diagnosis, store)
    for observer in (metrics.observe, rules.observe, courier.observe, keep, logs.observe, cards.observe):
        observers.add(observer)
    chores: list[Chore] = [courier.run]
    if settings.otlp_endpoint:
        traces = Traces(exporter_to(settings.otlp_endpoint))
        observers.add(traces.observe)
        chores.append(traces.run)
    alerts = Alerts(rules, board, read, Receivers.of(settings, signer))
    return Watched(metrics, board, signer, Chores([alerts.run, retention.run, *chores]), cards)
