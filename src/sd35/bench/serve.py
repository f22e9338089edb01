"""How a server bears it: each face by one client, at a steady rate and by many at once, then accepts alone.

With the null engine a picture costs nothing, so what a request takes is the layer's own: HTTP, checks,
database, queue, pipe to the worker, PNG, storage. The row `livez` is HTTP alone, and the client's share of
every other row. Accepts leave a queue behind, so they come last, and only at a server that was started for
this: first with a worker that is busy, as with a long picture on its card, then with one that draws meanwhile
as fast as it can, which no card does.
"""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx2
import psutil

from sd35.bench.faces import Faces
from sd35.bench.load import Answers, Ask, closed_loop, open_loop, percentile
from sd35.bench.null_server import NullServer, null_server
from sd35.errors import NetworkError, RequestError

NULL = "null"
PICTURES = ("openai", "native")  # errands that end with pictures
ACCEPT, ACCEPT_AND_DRAW = "accept", "accept+draw"
WARM_UP = 20  # requests before the first row, by one client
MINUTES_A_DAY = 1440

OnRow = Callable[["ServeReport", "ServeRow"], None]


@dataclass(frozen=True, kw_only=True)
class ServePlan:
    """What to press on, and how hard; `asked` are fields of a job, beside the prompt."""

    target: str  # a URL, or "null"
    clients: int = 16
    rate: float = 20.0  # requests a second
    seconds: float = 10.0  # of each row
    models: str = "demo"  # of a server that is started for this
    key: str | None = field(default=None, repr=False)
    asked: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("clients", "rate", "seconds"):
            if not getattr(self, name) > 0:
                raise RequestError(f"{name} is {getattr(self, name):g}: give more than 0.")
        if self.target != NULL and not self.target.startswith(("http://", "https://")):
            raise RequestError(
                f"--serve can't be {self.target!r}: give a server's http:// or https:// address, or null to "
                "have one started."
            )


@dataclass(frozen=True)
class Loop:
    """So many clients (closed), or requests a second (open)."""

    clients: int | None = None
    rate: float | None = None

    async def press(self, ask: Ask, seconds: float) -> Answers:
        """Ask for so long."""
        if self.clients is not None:
            return await closed_loop(ask, self.clients, seconds)
        assert self.rate is not None, "a loop has clients or a rate"
        return await open_loop(ask, self.rate, seconds)


@dataclass(frozen=True, kw_only=True)
class ServeRow:
    """One loop's figures; times in milliseconds, None where nothing succeeded."""

    errand: str  # openai, native: from asking to the picture; accept, accept+draw: to the acknowledgement
    clients: int | None  # of a closed loop
    rate: float | None  # of an open one, requests a second
    succeeded: int
    failed: dict[str, int]
    per_second: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    images_per_minute: float | None  # None where no pictures come
    images_per_day: float | None
    server_cpu_ms: float | None  # the server's own processor time for each success, None for a URL
    worker_cpu_ms: float | None


@dataclass
class ServeReport:
    """All rows and what they were measured on."""

    machine: dict[str, Any]
    server: str
    asked: dict[str, Any]
    seconds: float
    commit_ms: float | None = None
    load_average: dict[str, tuple[float, ...]] = field(default_factory=dict)  # 1, 5, 15 min
    rows: list[ServeRow] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def bench_serve(plan: ServePlan, machine: dict[str, Any], on_row: OnRow) -> ServeReport:
    """All rows, one after the other; NetworkError where no server answers."""
    report = ServeReport(machine, "given" if plan.target != NULL else "null", plan.asked, plan.seconds)
    report.load_average["before"] = psutil.getloadavg()
    with ExitStack() as stack:
        server = stack.enter_context(null_server(plan.models)) if plan.target == NULL else None
        report.commit_ms = server.commit_ms if server else None
        url = server.url if server else plan.target
        _ask_whether_ready(url)
        asyncio.run(_rows(plan, url, server, report, on_row))
    report.load_average["after"] = psutil.getloadavg()
    return report


async def _rows(
    plan: ServePlan, url: str, server: NullServer | None, report: ServeReport, on_row: OnRow
) -> None:
    async with Faces(url, plan.key, plan.asked) as faces:
        if server is not None:
            for _ in range(WARM_UP):
                await faces.openai()
        for errand, ask, loop in _turns(plan, faces, with_accepts=server is not None):
            before = server.cpu_seconds() if server else None
            with server.busy_workers() if server and errand == ACCEPT else nullcontext():
                answers = await loop.press(ask, plan.seconds)
            after = server.cpu_seconds() if server else None
            cost = None if before is None or after is None else (after[0] - before[0], after[1] - before[1])
            images = plan.asked.get("n", 1) if errand in PICTURES else None
            report.rows.append(row_of(errand, loop, answers, cost, images))
            on_row(report, report.rows[-1])


def _turns(plan: ServePlan, faces: Faces, *, with_accepts: bool) -> list[tuple[str, Ask, Loop]]:
    alone, steady, crowd = Loop(clients=1), Loop(rate=plan.rate), Loop(clients=plan.clients)
    turns: list[tuple[str, Ask, Loop]] = [("livez", faces.livez, loop) for loop in (alone, steady)]
    for errand, ask in zip(PICTURES, (faces.openai, faces.native), strict=True):
        turns += [(errand, ask, loop) for loop in (alone, steady, crowd)]
    accepts = [(errand, faces.accept, crowd) for errand in (ACCEPT, ACCEPT_AND_DRAW)]
    return [*turns, *accepts] if with_accepts else turns


def row_of(
    errand: str, loop: Loop, answers: Answers, cost: tuple[float, float] | None, images: int | None
) -> ServeRow:
    """A loop's figures; `cost` in processor seconds of server and worker, `images` in each answer."""
    count = len(answers.times)
    shares = (percentile(answers.times, share) for share in (0.5, 0.95, 0.99))
    p50, p95, p99 = (None if value is None else 1e3 * value for value in shares)
    server, worker = (None, None) if cost is None or not count else (1e3 * part / count for part in cost)
    a_minute = None if images is None else 60 * answers.per_second * images
    return ServeRow(
        errand=errand,
        clients=loop.clients,
        rate=loop.rate,
        succeeded=count,
        failed=dict(answers.failures),
        per_second=answers.per_second,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        images_per_minute=a_minute,
        images_per_day=None if a_minute is None else MINUTES_A_DAY * a_minute,
        server_cpu_ms=server,
        worker_cpu_ms=worker,
    )


def _ask_whether_ready(url: str) -> None:
    try:
        answer = httpx2.get(f"{url.rstrip('/')}/readyz", timeout=30.0, trust_env=False)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise NetworkError(f"No server answers at {url} ({error}): start it, or correct --serve.") from error
    if answer.status_code != 200:
        raise NetworkError(
            f"{url}/readyz answers {answer.status_code}: it is no sd35 server, or it takes no jobs now."
        )
