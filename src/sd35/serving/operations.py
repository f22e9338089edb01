"""Routes for those who run the server.

    GET /api/v1/records?since=&until=&state=&model=&key_id=&abnormal=&limit=&cursor=
    GET /api/v1/records/export?format=jsonl|json|csv       the same filters, all pages
    GET /api/v1/alerts                 those that are up, and those of late that are over
    GET /api/v1/webhooks/secret        what the caller checks the signatures of its webhooks with

A key sees its own records; one with the scope `admin`, or anyone where there are no keys, sees all.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import WithJsonSchema

from sd35.errors import RequestError
from sd35.serving import records
from sd35.serving.cursors import Cursor, cursor_after, read_cursor
from sd35.serving.gateway import Known, Reader, gateway_of
from sd35.serving.jobs import State
from sd35.serving.problems import Problem, ServiceError, of_request
from sd35.serving.records import Format, Which

MEDIA_TYPES = {"jsonl": "application/jsonl", "json": "application/json", "csv": "text/csv"}

# What `records.moment` reads.
_MOMENTS = [
    {"type": "string", "format": "date"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "pattern": r"^[0-9]{1,10}(\.[0-9]{1,6})?$"},
]
Moment = Annotated[str | None, WithJsonSchema({"anyOf": _MOMENTS})]

router = APIRouter(prefix="/api/v1")


def which(
    caller: Known,
    since: Moment = None,
    until: Moment = None,
    state: State | None = None,
    model: str | None = None,
    key_id: str | None = None,
    abnormal: bool | None = None,
) -> Which:
    """The records that a request asks for and may see."""
    sees_all = caller.key_id is None or "admin" in caller.scopes
    if not sees_all and key_id not in (None, caller.key_id):
        raise ServiceError(
            Problem.FORBIDDEN, "Records of other keys are for keys with the scope 'admin': leave key_id out."
        )
    try:
        begin, end = (None if text is None else records.moment(text) for text in (since, until))
    except RequestError as error:
        raise of_request(error) from error
    return Which(
        since=begin,
        until=end,
        state=state,
        model=model,
        key_id=key_id if sees_all else caller.key_id,
        abnormal=abnormal,
    )


Filtered = Annotated[Which, Depends(which)]


@router.get("/records")
async def list_records(
    request: Request,
    filtered: Filtered,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    cursor: Cursor = None,
) -> dict[str, Any]:
    """Records, newest first; `next` is the cursor of the following page, null at the end."""
    gateway, before = gateway_of(request), read_cursor(cursor)
    found = await gateway.service.read(records.page, gateway.store, filtered, before, limit + 1)
    shown = found[:limit]
    following = cursor_after(shown[-1]) if len(found) > limit else None
    return {"data": [records.record_of(job) for job in shown], "next": following}


@router.get(
    "/records/export",
    response_class=StreamingResponse,
    responses={200: {"content": {kind: {} for kind in MEDIA_TYPES.values()}}},
)
async def export_records(
    request: Request, filtered: Filtered, form: Annotated[Format, Query(alias="format")] = "jsonl"
) -> StreamingResponse:
    """All of them, as a file."""
    rows = records.every(gateway_of(request).store, filtered)
    headers = {"Content-Disposition": f'attachment; filename="records.{form}"', "Cache-Control": "no-store"}
    return StreamingResponse(records.written(rows, form), media_type=MEDIA_TYPES[form], headers=headers)


@router.get("/alerts")
async def alerts(request: Request, caller: Reader) -> dict[str, Any]:
    """What is wrong now, and what was lately."""
    board = gateway_of(request).watch.board
    return {"up": [alert.view() for alert in board.up], "over": [alert.view() for alert in board.over]}


@router.get("/webhooks/secret")
async def webhook_secret(request: Request, caller: Known) -> dict[str, str]:
    """The caller's own; every key has another."""
    return {"secret": gateway_of(request).watch.signer.secret(caller.key_id)}
