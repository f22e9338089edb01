"""Alerts on their way to people: to a webhook, each once and its recovery once, and to an Alertmanager.

A webhook gets each piece of news until it is taken, or a few tries have failed. An Alertmanager sees to
"once" itself, and expects the opposite: to be told every minute what still holds, so that an alert whose
server has died ends by itself. https://prometheus.io/docs/alerting/latest/clients/
"""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sd35.errors import Sd35Error
from sd35.serving.alert_board import Alert, Board
from sd35.serving.alert_rules import Rules
from sd35.serving.gauges import Gauges
from sd35.serving.outbound import Outbound
from sd35.serving.settings import ServerSettings
from sd35.serving.signing import Signer

TICK_S = 2.0
PAUSES_S = (1.0, 5.0, 30.0, 120.0, 300.0)  # between the tries of one webhook
REFRESH_S = 60.0
OUTLIVES_S = 4 * REFRESH_S  # that an Alertmanager keeps an alert of which it hears nothing more

log = logging.getLogger(__name__)


class AlertWebhook:
    """Where the operator wants alerts as JSON, signed like the webhooks of jobs."""

    def __init__(self, url: str, outbound: Outbound, signer: Signer) -> None:
        self._url, self._outbound, self._signer = url, outbound, signer
        self._turn = asyncio.Lock()  # news arrives in the order in which it happened

    async def send(self, alert: Alert) -> None:
        """Until it is taken; what is never taken is in the log."""
        async with self._turn:
            await self._send(alert)

    async def _send(self, alert: Alert) -> None:
        now = datetime.now(UTC).isoformat()
        kind = "alert.firing" if alert.ended_at is None else "alert.resolved"
        body = json.dumps({"type": kind, "timestamp": now, "data": alert.view()}).encode()
        message_id = f"msg_{secrets.token_hex(12)}"
        for pause in (*PAUSES_S, None):
            try:
                headers = self._signer.headers(None, message_id, body, time.time())
                status = await self._outbound.post(self._url, body, headers)
                failure = "" if 200 <= status < 300 else f"it answered {status}"
            except Sd35Error as error:
                failure = str(error)
            if not failure:
                return
            log.warning("alert webhook: %s was not taken: %s", alert.condition.name, failure)
            if pause is not None:
                await asyncio.sleep(pause)


class Alertmanager:
    """An Alertmanager's API, version 2."""

    def __init__(self, url: str, outbound: Outbound, instance: str) -> None:
        self._url, self._outbound = url.rstrip("/") + "/api/v2/alerts", outbound
        self._instance = instance

    async def send(self, alerts: list[Alert]) -> None:
        """Tell how these stand; what fails is told again with the next refresh."""
        body = json.dumps([self._posted(alert) for alert in alerts]).encode()
        try:
            status = await self._outbound.post(self._url, body, {"Content-Type": "application/json"})
        except Sd35Error as error:
            log.warning("Alertmanager: %s", error)
        else:
            if status != 200:
                log.warning("Alertmanager answered %d to %d alerts", status, len(alerts))

    def _posted(self, alert: Alert) -> dict[str, object]:
        one = alert.condition
        ends = time.time() + OUTLIVES_S if alert.ended_at is None else alert.ended_at
        labels = {"subject": one.subject, "severity": one.severity, "instance": self._instance}
        return {
            "labels": {"alertname": f"sd35_{one.name}", "job": "sd35", **labels},
            "annotations": {"summary": one.text},
            "startsAt": _rfc3339(alert.began_at),
            "endsAt": _rfc3339(ends),
        }


@dataclass(frozen=True)
class Receivers:
    """Where alerts go; without any they are in the log and at /api/v1/alerts."""

    webhook: AlertWebhook | None = None
    alertmanager: Alertmanager | None = None

    @classmethod
    def of(cls, settings: ServerSettings, signer: Signer) -> "Receivers":
        """Those that the settings name; they may be in the operator's own network."""
        outbound = Outbound(private_ok=True)
        instance = settings.public_url or f"{settings.host}:{settings.port}"
        return cls(
            AlertWebhook(settings.alert_webhook, outbound, signer) if settings.alert_webhook else None,
            Alertmanager(settings.alertmanager, outbound, instance) if settings.alertmanager else None,
        )


class Alerts:
    """The chore that asks the rules, keeps the board and sends what is new."""

    def __init__(self, rules: Rules, board: Board, read: Callable[[], Gauges], receivers: Receivers) -> None:
        self._rules, self.board, self._read, self._receivers = rules, board, read, receivers
        self._refreshed = 0.0  # time.monotonic
        self._sending: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Every other second, until cancelled."""
        while True:
            self._tick()
            await asyncio.sleep(TICK_S)

    def _tick(self) -> None:
        news = self.board.update(self._rules.conditions(self._read()), time.time())
        for alert in news:
            word = "ALERT" if alert.ended_at is None else "over"
            log.error(
                "%s %s (%s): %s", word, alert.condition.name, alert.condition.subject, alert.condition.text
            )
            if self._receivers.webhook is not None:
                self._spawn(self._receivers.webhook.send(alert))
        due = time.monotonic() - self._refreshed >= REFRESH_S and bool(self.board.up)
        if self._receivers.alertmanager is not None and (news or due):
            self._refreshed = time.monotonic()
            over = [alert for alert in news if alert.ended_at is not None]
            self._spawn(self._receivers.alertmanager.send([*self.board.up, *over]))

    def _spawn(self, sending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(sending)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)


def _rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()
