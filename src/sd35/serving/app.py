"""The HTTP application: faces put together, and every error in the shape of the face that it leaves by."""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sd35 import __version__
from sd35.errors import AccessError, MissingError, Sd35Error, UnavailableError
from sd35.serving import (
    contract,
    gallery,
    model_routes,
    native,
    openai_face,
    operations,
    page,
    sdapi_face,
    sdapi_listings,
    stability_face,
)
from sd35.serving.gateway import Gateway, Reader, gateway_of
from sd35.serving.happenings import Refused
from sd35.serving.metrics import MEDIA_TYPE as METRICS_TYPE
from sd35.serving.page import has_current
from sd35.serving.pictures import PICTURE_TYPES, media_type
from sd35.serving.problems import BUG_WORDS, Problem, ServiceError
from sd35.serving.settings import LOOPBACK
from sd35.serving.uploads import LIMITS

BODY_LIMIT = 256 * 1024  # bytes; the largest prompts are some 40 kB in UTF-8
PICTURE_BODY_LIMIT = LIMITS.file_bytes * 4 // 3 + BODY_LIMIT  # base64 takes four bytes for three
# What JSON's values begin or end with; a body within BODY_LIMIT has no more of them. Where a picture may come
# there is room for ten million, and everyone would wait for a second while they become objects.
VALUE_SIGNS, MOST_VALUES = (b",", b"[", b"{"), BODY_LIMIT
STOP_S = 2.0  # for a database that doesn't answer: what it has can be gone on with
BY_STATUS = {404: Problem.NOT_FOUND, 405: Problem.METHOD_NOT_ALLOWED}

# Who answers under which path, errors included; all other paths speak as the native face does.
FOREIGN_FACES = {face.router.prefix: face for face in (openai_face, sdapi_face, stability_face)}
# Where bodies may hold a picture.
PICTURE_PATHS = tuple(path for face in (native, *FOREIGN_FACES.values()) for path in face.PICTURE_PATHS)

log = logging.getLogger(__name__)


def create_app(gateway: Gateway) -> FastAPI:
    """The application around one job service, which starts and stops with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await gateway.service.start()
        gateway.watch.chores.start()
        yield
        await gateway.watch.chores.stop()
        try:
            await asyncio.wait_for(gateway.service.stop(), STOP_S)
        except TimeoutError:
            log.warning("stopped without writing everything; the next start takes it up")

    # FastAPI's own pages of the document load their scripts from a CDN, and nothing here leaves the machine.
    app = FastAPI(
        title="sd35", version=__version__, lifespan=lifespan, redirect_slashes=False,
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.state.gateway = gateway
    app.state.assets = page.read_assets()
    app.state.desks = {}
    for room in (page, native, gallery, model_routes, operations, *FOREIGN_FACES.values(), sdapi_listings):
        app.include_router(room.router)
    plain: dict[str, Callable[..., Any]] = {
        "/livez": livez,
        "/readyz": readyz,
        "/metrics": metrics,
        "/files/{name}": picture,
    }
    kinds: dict[str, list[str]] = {"/metrics": [METRICS_TYPE], "/files/{name}": list(PICTURE_TYPES)}
    for path, route in plain.items():
        content: dict[str, Any] = {kind: {} for kind in kinds.get(path, ["application/json"])}
        app.add_api_route(
            path,
            route,
            methods=["GET"],
            response_model=None,
            response_class=Response if path in kinds else JSONResponse,
            responses={200: {"content": content}},
        )
    contract.complete(app, gateway)
    app.add_middleware(HeadAsGet)
    app.add_middleware(BodyLimit)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=_hosts(gateway), www_redirect=False)
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)
    return app


async def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


async def readyz(request: Request) -> JSONResponse:
    """Whether a job would be taken and worked on."""
    service = gateway_of(request).service
    if service.is_ready():
        return JSONResponse({"status": "ready"})
    is_full = len(service.queue) >= service.settings.max_queued
    reason = "draining" if service.is_draining else "queue full" if is_full else "nobody draws"
    return JSONResponse({"status": "not ready", "reason": reason}, 503)


async def metrics(request: Request, caller: Reader) -> Response:
    """What Prometheus scrapes."""
    content = gateway_of(request).watch.metrics.text()
    return Response(content, media_type=METRICS_TYPE)


async def picture(name: str, request: Request, expires: str = "", signature: str = "") -> Response:
    """A picture that this server keeps; its signed address is the permission."""
    gateway = gateway_of(request)
    try:
        gateway.urls.check(name, expires, signature)
        content = await asyncio.to_thread(gateway.service.storage.open, name)
    except AccessError as error:
        raise ServiceError(Problem.FORBIDDEN, str(error)) from error
    except MissingError as error:
        raise ServiceError(Problem.NOT_FOUND, "There is no such picture.") from error
    left_s = max(0, int(expires) - int(time.time()))
    headers = {
        "Cache-Control": f"private, max-age={left_s}, immutable",
        "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
        "X-Content-Type-Options": "nosniff",
    }
    if has_current(request.headers.get("if-none-match", ""), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type(name), headers=headers)


class HeadAsGet:
    """HEAD wherever GET works, without the body; not on streams, which have no end to wait for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Route a HEAD as the GET that it stands for."""
        is_head = scope["type"] == "http" and scope["method"] == "HEAD"
        if not is_head or scope["path"].endswith("/events"):
            await self._app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app({**scope, "method": "GET"}, receive, without_body)


class BodyLimit:
    """Refuses bodies that are too long, as they say so or as they come."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what comes in."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = _body_limit(scope["path"])
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > limit:
            await _render(scope["path"], _too_large(limit))(scope, receive, send)
            return
        is_json = not headers.get(b"content-type", b"").startswith(b"multipart/")
        taken = values = 0

        async def counted() -> Message:
            nonlocal taken, values
            message = await receive()
            body = message.get("body", b"")
            taken += len(body)
            values += sum(map(body.count, VALUE_SIGNS)) if is_json else 0
            if taken > limit:
                raise _too_large(limit)
            if values > MOST_VALUES:
                said = f"The body holds more than {MOST_VALUES} values: send one picture and its settings."
                raise ServiceError(Problem.TOO_LARGE, said)
            return message

        await self._app(scope, counted, send)


def _body_limit(path: str) -> int:
    return PICTURE_BODY_LIMIT if path.startswith(PICTURE_PATHS) else BODY_LIMIT


def _too_large(limit: int) -> ServiceError:
    remedy = "shorten the prompt" if limit == BODY_LIMIT else "send a smaller picture"
    return ServiceError(Problem.TOO_LARGE, f"The body is longer than {limit} bytes: {remedy}.")


def _hosts(gateway: Gateway) -> list[str]:
    """Names that requests may call us by: others come from pages that point their own name at us."""
    settings = gateway.settings
    named = [host.strip() for host in settings.hosts.split(",") if host.strip()]
    own = [] if settings.is_loopback else [settings.host]
    return [*(f"[{host}]" if ":" in host else host for host in LOOPBACK), *own, *named]


def _face(path: str) -> Any:
    """The module that speaks under this path."""
    faces = (face for prefix, face in FOREIGN_FACES.items() if path.startswith(prefix + "/"))
    return next(faces, native)


def _render(path: str, error: ServiceError) -> JSONResponse:
    answer: JSONResponse = _face(path).render(error)
    return answer


def _tell(request: Request, error: ServiceError) -> None:
    """A request that never became a job, or asked for one that failed, is told to the observers."""
    if "job_id" not in error.details:  # that one is counted when it ends
        refused = Refused(_face(request.url.path).NAME, error.problem.code, error.details.get("filter_list"))
        gateway_of(request).service.tell(refused)


async def _on_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    _tell(request, error)
    return _render(request.url.path, error)


async def _on_invalid(request: Request, error: Exception) -> Response:
    """The first thing that is wrong with a body or a parameter, in words."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    names = [str(part) for part in first["loc"][1:]]
    where = ".".join(names) or "the body"
    said = ServiceError(Problem.INVALID_REQUEST, f"{where}: {first['msg']}.", param=where)
    _tell(request, said)
    return _render(request.url.path, said)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(
        error.__cause__, ServiceError
    ):  # raised while FastAPI read the body, which it calls a bad body
        return await _on_service_error(request, error.__cause__)
    problem = BY_STATUS.get(error.status_code, Problem.INVALID_REQUEST)
    said = ServiceError(problem, f"{request.method} {request.url.path}: {error.detail}.")
    answer = _render(request.url.path, said)
    answer.headers.update(error.headers or {})
    if error.status_code == 405:
        answer.headers["Allow"] = ", ".join(_methods(request))
    return answer


def _methods(request: Request) -> list[str]:
    """All that this path knows; the route that has refused a method knows only its own."""

    def is_known(method: str) -> bool:
        asked = {**request.scope, "method": method}
        return any(route.matches(asked)[0] is Match.FULL for route in request.app.routes)

    found = [method for method in ("DELETE", "GET", "POST", "PUT") if is_known(method)]
    return sorted([*found, "HEAD"] if "GET" in found else found)


async def _on_bug(request: Request, error: Exception) -> Response:
    """Whatever nobody expected; what it was is in the log only."""
    if isinstance(error, Sd35Error):
        is_ours = isinstance(error, UnavailableError)
        problem = Problem.STORE_FAILED if is_ours else Problem.INVALID_REQUEST
        said = ServiceError(problem, str(error))
        _tell(request, said)
        return _render(request.url.path, said)
    _tell(request, ServiceError(Problem.BUG, BUG_WORDS))
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _render(request.url.path, ServiceError(Problem.BUG, BUG_WORDS))
