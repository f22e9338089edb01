"""The server's own face: jobs as resources, under /api/v1.

    POST   /api/v1/jobs               202, Location           GET /api/v1/jobs?state=&model=&q=&limit=&cursor=
    PUT    /api/v1/jobs/{client_id}   the same, idempotent    GET /api/v1/jobs/{id}
    DELETE /api/v1/jobs/{id}          cancel                  GET /api/v1/jobs/{id}/events (event stream)
    GET    /api/v1/capabilities, /api/v1/stats

Bodies are strict: a field that we don't know is refused, for what is misspelt would be silently ignored.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr

from sd35 import __version__
from sd35.request import MAX_PROMPT_CHARACTERS, MAX_SEED, MAX_STEPS, STRENGTH
from sd35.serving.asking import LONGEST_DEADLINE_S, MAX_PREVIEWS, Ask, make_job
from sd35.serving.attendant import Attendant
from sd35.serving.cursors import Cursor, cursor_after, read_cursor
from sd35.serving.fields import PICTURE, Exact, described
from sd35.serving.gateway import caller_of, gateway_of, link
from sd35.serving.jobs import Event, Priority, State, outcome
from sd35.serving.keys import Caller
from sd35.serving.live import LiveJob
from sd35.serving.model_routes import row_of
from sd35.serving.offers import offer
from sd35.serving.pictures import FORMATS
from sd35.serving.problems import Problem, ServiceError
from sd35.serving.store import Wanted
from sd35.serving.uploads import IMAGE_FORMATS, LIMITS
from sd35.variants import PIXELS_PER_TOKEN

PREFIX = "/api/v1"


class EventStream(StreamingResponse):
    """Server-sent events."""

    media_type = "text/event-stream"


Known = Annotated[Caller, Depends(caller_of)]
# The same place in the path as a job's id, and so by the same name in the document.
ClientId = Annotated[str, Path(alias="job_id", min_length=1, max_length=200, pattern=r"^[A-Za-z0-9._:-]+$")]

NAME = "native"  # in records and metrics
PICTURE_PATHS = (f"{PREFIX}/jobs",)  # where bodies may hold a picture
LONGEST_WORD = 2000
LONGEST_EVENT_ID = 20  # digits; microseconds since 1970 have 16
BASE64_PIECE = 1 << 19  # characters, a multiple of 4: a millisecond
Real = StrictFloat | StrictInt
Side = Annotated[Exact, described(minimum=PIXELS_PER_TOKEN, multipleOf=PIXELS_PER_TOKEN)]
Words = Annotated[StrictStr, described(maxLength=MAX_PROMPT_CHARACTERS)]
router = APIRouter(prefix=PREFIX)


class JobBody(BaseModel):
    """What a job may ask for; only `prompt` is needed."""

    model_config = ConfigDict(
        extra="forbid",
        # Strength is of an image: without one there is none.
        json_schema_extra={
            "anyOf": [
                {"properties": {"strength": {"type": "null"}}},
                {"properties": {"image": {"type": "string"}}, "required": ["image"]},
            ]
        },
    )

    prompt: Words
    negative_prompt: Words = ""
    model: Annotated[StrictStr, Field(max_length=LONGEST_WORD)] | None = None
    width: Side | None = None
    height: Side | None = None
    num_inference_steps: Annotated[Exact, described(minimum=1, maximum=MAX_STEPS)] | None = None
    guidance_scale: Annotated[Real, described(minimum=0, maximum=100)] | None = None
    seed: Annotated[Exact, described(minimum=0, maximum=MAX_SEED)] | None = None
    n: Annotated[Exact, described(minimum=1)] = 1
    output_format: Annotated[StrictStr, Field(max_length=LONGEST_WORD), described(enum=list(FORMATS))] = "png"
    output_compression: Annotated[Exact, described(minimum=0, maximum=100)] | None = None
    previews: Annotated[Exact, described(minimum=0, maximum=MAX_PREVIEWS)] = 0
    priority: Priority = Priority.NORMAL
    deadline_s: Annotated[Real, described(exclusiveMinimum=0, maximum=LONGEST_DEADLINE_S)] | None = None
    webhook_url: Annotated[StrictStr, Field(max_length=LONGEST_WORD), described(format="uri")] | None = None
    image: Annotated[StrictStr, described(**PICTURE)] | None = None
    strength: Annotated[Real, described(exclusiveMinimum=0, maximum=1)] | None = None


@router.post("/jobs", status_code=202)
async def post_job(body: JobBody, request: Request, caller: Known) -> JSONResponse:
    """Accept a job; it is durable when this answers."""
    return await _accept(body, request, caller, None)


@router.put("/jobs/{job_id}", status_code=202)
async def put_job(client_id: ClientId, body: JobBody, request: Request, caller: Known) -> JSONResponse:
    """Accept a job under the client's own name; again with the same body gives the same job."""
    return await _accept(body, request, caller, client_id)


@router.get("/jobs")
async def list_jobs(
    request: Request,
    caller: Known,
    state: State | None = None,
    model: str | None = None,
    q: Annotated[str | None, Query(max_length=200)] = None,
    sha256: Annotated[str | None, Query(pattern="^[0-9a-f]{64}$")] = None,
    with_images: bool = False,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Cursor = None,
) -> dict[str, Any]:
    """The caller's jobs, newest first; `next` is the cursor of the following page, null at the end.

    `q` is looked for in prompts; `sha256` is a picture's; `with_images` leaves out jobs that have none.
    """
    before = read_cursor(cursor)
    wanted = Wanted(state=state, model=model, words=q, sha256=sha256, with_images=with_images)
    lives = await gateway_of(request).service.page(caller, before, limit + 1, wanted)
    page = lives[:limit]
    following = cursor_after(page[-1].job) if len(lives) > limit else None
    return {"data": [view(live, request) for live in page], "next": following}


@router.get("/jobs/{job_id}")
async def get_job(job_id: str, request: Request, caller: Known) -> dict[str, Any]:
    """One job as it stands."""
    return view(await gateway_of(request).service.find(job_id, caller), request)


@router.delete("/jobs/{job_id}")
async def delete_job(job_id: str, request: Request, caller: Known) -> dict[str, Any]:
    """Cancel: the worker stops within one step. A job that has ended stays as it is."""
    service = gateway_of(request).service
    live = await service.find(job_id, caller)
    await service.cancel(live)
    return view(live, request)


@router.get("/jobs/{job_id}/events", response_class=EventStream)
async def job_events(job_id: str, request: Request, caller: Known) -> StreamingResponse:
    """What happens to a job, from the first event remembered or from `Last-Event-ID` on, until it ends."""
    live = await gateway_of(request).service.find(job_id, caller)
    last = request.headers.get("last-event-id", "0")
    if not last.isdecimal() or len(last) > LONGEST_EVENT_ID:
        raise ServiceError(Problem.INVALID_REQUEST, f"Last-Event-ID is {last[:80]!r}: give an id that came.")
    return EventStream(_stream(live, int(last)), headers={"Cache-Control": "no-store"})


@router.get("/capabilities")
async def capabilities(request: Request, caller: Known) -> dict[str, Any]:
    """What may be asked for: models with their settings, formats, bounds."""
    gateway = gateway_of(request)
    served = gateway.service.models.values()
    return {
        "version": __version__,
        "models": [{**row_of(model), **offer(model, served)} for model in served],
        "precision": gateway.settings.precision if gateway.settings.engine == "sd35" else None,
        "output_formats": list(FORMATS),
        "priorities": [priority.value for priority in Priority],
        "max_images": gateway.settings.max_images,
        "image": {"formats": IMAGE_FORMATS, "max_bytes": LIMITS.file_bytes, "max_pixels": LIMITS.pixels},
        "strength": STRENGTH,
        "max_previews": MAX_PREVIEWS,
    }


@router.get("/stats")
async def stats(request: Request, caller: Known) -> dict[str, Any]:
    """How busy the server is."""
    gateway = gateway_of(request)
    service = gateway.service
    queue, workers = service.queue, [_worker(one) for one in service.pool.attendants]
    return {
        "queued": len(queue),
        "queued_by_priority": queue.by_priority(),
        "queued_megapixel_steps": queue.cost(),
        "megapixel_steps_per_s": queue.rate.cost_per_s,
        "running": list(service.pool.in_hand()),
        "worker": workers[0],
        "workers": workers,
        "vram": gateway.watch.cards.view(),
        "ended": service.ended,
        "draining": service.is_draining,
        "paused": service.pool.is_paused,
    }


def view(live: LiveJob, request: Request) -> dict[str, Any]:
    """A job as clients see it."""
    job, service = live.job, gateway_of(request).service
    done, of = live.progress
    return {
        "id": job.id,
        "client_id": job.client_id,
        "state": job.state.value,
        "priority": job.priority.value,
        "queue_position": service.queue.position(job),
        "eta_s": service.queue.eta_s(job),
        "progress": {"done": done, "of": of},
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "deadline_at": job.deadline_at,
        "webhook_url": job.webhook_url,
        "request": vars(job.spec),
        **outcome(job, partial(link, request)),
    }


def render(error: ServiceError) -> JSONResponse:
    """A problem in this face's shape."""
    body = {"code": error.problem.code, "message": str(error), **error.details}
    return JSONResponse({"error": body}, error.problem.status, error.headers())


async def _accept(body: JobBody, request: Request, caller: Caller, client_id: str | None) -> JSONResponse:
    gateway = gateway_of(request)
    asked = {**vars(body), "image": None}
    if body.image is not None:
        asked["image"] = await gateway.uploads.accept(await asyncio.to_thread(from_base64, body.image))
    job = make_job(Ask(**asked), caller, gateway.settings, gateway.policy, client_id)
    live = await gateway.service.submit(job, caller)
    location = f"{PREFIX}/jobs/{live.job.id}"
    return JSONResponse(view(live, request), 202, {"Location": location})


def from_base64(text: str) -> bytes:
    """A file that JSON carries, bare or as a `data:` URL; ServiceError where it is neither."""
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    # In pieces: decoding lets no other thread run, and clients of /livez would wait for all of it.
    pieces = (encoded[at : at + BASE64_PIECE] for at in range(0, len(encoded), BASE64_PIECE))
    try:
        decoded = [base64.b64decode(piece, validate=True) for piece in pieces]
    except ValueError as error:
        raise _not_base64() from error
    if any(len(piece) != BASE64_PIECE // 4 * 3 for piece in decoded[:-1]):  # it ended, and went on
        raise _not_base64()
    return b"".join(decoded)


def _not_base64() -> ServiceError:
    said = "image is not base64: send the file's bytes encoded so."
    return ServiceError(Problem.INVALID_IMAGE, said, param="image")


async def _stream(live: LiveJob, last: int) -> AsyncIterator[str]:
    async for event in live.events.after(last):
        yield as_sse(event)


def as_sse(event: Event) -> str:
    """One event on the wire. Source: https://html.spec.whatwg.org/multipage/server-sent-events.html"""
    return f"id: {event.id}\nevent: {event.name}\ndata: {json.dumps(event.data)}\n\n"


def _worker(care: Attendant) -> dict[str, Any]:
    return {
        "device": care.device,
        "pid": care.worker_pid,
        "restarts": care.restarts,
        "running": list(care.in_hand),
        "holds": {one.name: one.place for one in care.holdings()},
    }
