"""What every route needs: the server's parts, who is calling, and a wait that ends when the client leaves."""

import asyncio
import base64
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from sd35.errors import AccessError
from sd35.serving.asking import Ask, make_job
from sd35.serving.folder import SignedUrls
from sd35.serving.jobs import JobError, JobImage, State
from sd35.serving.keys import Caller, KeyStore
from sd35.serving.live import LiveJob
from sd35.serving.problems import Problem, ServiceError, problem_named
from sd35.serving.seams import PromptPolicy
from sd35.serving.service import JobService
from sd35.serving.settings import ServerSettings
from sd35.serving.store import Store
from sd35.serving.uploads import Uploads
from sd35.serving.watch import Watched

ABANDONED_S = 10.0  # a client that retries is back by then


@dataclass(frozen=True)
class Gateway:
    """The parts of a server, for its routes."""

    settings: ServerSettings
    service: JobService
    policy: PromptPolicy
    keys: KeyStore
    urls: SignedUrls
    store: Store
    watch: Watched
    uploads: Uploads


def gateway_of(request: Request) -> Gateway:
    """The server that this request came to."""
    gateway: Gateway = request.app.state.gateway
    return gateway


async def caller_of(request: Request) -> Caller:
    """Who asks; unauthorized without a key where one is needed, forbidden with one that may not do this.

    A key that may draw may look at its own jobs. A thread is taken only where the file of keys must be read.
    """
    keys, header = gateway_of(request).keys, request.headers.get("authorization")
    try:
        if keys.is_current:
            caller = keys.authenticate(header)
        else:
            caller = await asyncio.to_thread(keys.authenticate, header)
    except AccessError as error:
        raise ServiceError(Problem.UNAUTHORIZED, str(error)) from error
    try:
        caller.require("read" if request.method == "GET" and "generate" not in caller.scopes else "generate")
    except AccessError as error:
        raise ServiceError(Problem.FORBIDDEN, str(error)) from error
    return caller


Known = Annotated[Caller, Depends(caller_of)]


def reader_of(caller: Known) -> Caller:
    """A caller who may look at the server itself."""
    try:
        caller.require("read")
    except AccessError as error:
        raise ServiceError(Problem.FORBIDDEN, str(error)) from error
    return caller


Reader = Annotated[Caller, Depends(reader_of)]


def link(request: Request, image: JobImage) -> str:
    """The picture's address, whole."""
    gateway = gateway_of(request)
    address = gateway.service.storage.url(image.name, gateway.settings.url_life_s)
    base = gateway.settings.public_url or str(request.base_url)
    return base.rstrip("/") + address if address.startswith("/") else address


async def submit(ask: Ask, gateway: Gateway, caller: Caller) -> LiveJob:
    """Make a job of what was asked, and accept it."""
    job = make_job(ask, caller, gateway.settings, gateway.policy)
    return await gateway.service.submit(job, caller)


async def picture_base64(gateway: Gateway, image: JobImage) -> str:
    """A stored picture as JSON carries it."""
    return base64.b64encode(await gateway.service.read_picture(image.name)).decode()


async def outcome(live: LiveJob) -> LiveJob:
    """Wait for a job's pictures; ServiceError for every other end."""
    await live.settled.wait()
    job = live.job
    if job.state is State.SUCCEEDED:
        return live
    if job.state is State.CANCELLED:
        raise ServiceError(Problem.CANCELLED, f"The job {job.id} was cancelled.", job_id=job.id)
    if job.error is not None:
        raise failure(job.error, job.id)
    raise ServiceError(
        Problem.DRAINING,
        f"The server is stopping; the job {job.id} is kept, and done after the next start.",
        retry_after_s=5,
        job_id=job.id,
    )


def failure(error: JobError, job_id: str) -> ServiceError:
    """A job's error as an answer; the job has ended, so asking again begins another."""
    return ServiceError(problem_named(error.code), error.message, job_id=job_id)


class Watch:
    """`async with` around a wait: a job that nobody waits for any more is cancelled after a while.

    The while is for clients that lost their connection: their retry finds the job still running.
    """

    def __init__(self, service: JobService, live: LiveJob) -> None:
        self._service, self._live = service, live

    async def __aenter__(self) -> LiveJob:
        self._live.watchers += 1
        return self._live

    async def __aexit__(self, *_: object) -> None:
        self._live.watchers -= 1
        if not self._live.watchers and not self._live.settled.is_set():
            asyncio.get_running_loop().call_later(ABANDONED_S, self._give_up)

    def _give_up(self) -> None:
        if not self._live.watchers:
            self._service.spawn(self._service.cancel(self._live))


async def drawn(request: Request, live: LiveJob) -> LiveJob:
    """Wait with the client for a job's pictures; the job is cancelled if the client does not come back."""
    async with Watch(gateway_of(request).service, live):
        return await _unless_client_leaves(request, live)


async def _unless_client_leaves(request: Request, live: LiveJob) -> LiveJob:
    """`outcome`, or the problem `cancelled` where the client hangs up first."""
    waiting = asyncio.ensure_future(outcome(live))
    leaving = asyncio.ensure_future(_hung_up(request))
    await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
    leaving.cancel()
    if not waiting.done():
        waiting.cancel()
        raise ServiceError(Problem.CANCELLED, "The client hung up.")
    return waiting.result()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
