"""The face of OpenAI's Images API: its clients draw here with nothing but another base_url.

Source of the contract: the types and the client of https://github.com/openai/openai-python. Three things
shape this file. Its client retries 408, 409, 429 and 5xx on its own and sends no idempotency key, only the
count of the retry: a retry is joined to the job of the first try (same caller, same body). Programs send
fields that are meant for other models: those without a meaning here are ignored. It reads errors as
{"error": {message, type, param, code}}, in a stream as well.
"""

import json
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from sd35.serving.asking import Ask, make_job, model_named
from sd35.serving.gateway import Gateway, Watch, caller_of, drawn, gateway_of, link, outcome, picture_base64
from sd35.serving.jobs import Event, JobImage, Spec
from sd35.serving.keys import Caller
from sd35.serving.live import LiveJob
from sd35.serving.problems import Problem, ServiceError
from sd35.serving.settings import ServerSettings

Known = Annotated[Caller, Depends(caller_of)]
# Steps as a share of what the model's makers recommend.
QUALITY = {"low": 0.5, "standard": 1.0, "medium": 1.0, "auto": 1.0, "high": 1.5, "hd": 1.5}
# Names that clients have built in; here they mean the first model.
BUILT_IN = re.compile(r"^(gpt-image-|chatgpt-image-|dall-e-)")
USER_ERRORS = (Problem.PROMPT_BLOCKED, Problem.OUTPUT_BLOCKED)

NAME = "openai"  # in records and metrics
router = APIRouter(prefix="/v1")


class ImagesBody(BaseModel):
    """OpenAI's fields, and ours that `extra_body` may bring: negative_prompt, steps, scale, seed."""

    prompt: str
    model: str | None = None
    n: int | None = 1
    size: str | None = "auto"
    quality: str | None = "auto"
    response_format: Literal["url", "b64_json"] | None = None
    output_format: str | None = "png"
    output_compression: int | None = None
    stream: bool | None = False
    partial_images: int | None = 0
    negative_prompt: str = ""
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None


@router.post("/images/generations", response_model=None)
async def generate(body: ImagesBody, request: Request, caller: Known) -> JSONResponse | StreamingResponse:
    """Draw, and answer with the pictures; with `stream` as events on the way."""
    gateway = gateway_of(request)
    live = await _submit(body, request, gateway, caller)
    if body.stream:
        return StreamingResponse(_stream(gateway, live, body), media_type="text/event-stream")
    await drawn(request, live)
    data = [await _datum(request, live, image, body.response_format) for image in live.job.images]
    spec = live.job.spec
    answer = {"created": int(live.job.created_at), "data": data, **_facts(spec, body), "usage": _usage(spec)}
    return JSONResponse(answer, headers={"x-request-id": live.job.id})


@router.get("/models")
async def models(request: Request, caller: Known) -> dict[str, Any]:
    """The models in OpenAI's shape."""
    rows = gateway_of(request).service.models
    return {"object": "list", "data": [_model(name) for name in rows]}


@router.get("/models/{name}")
async def model(name: str, request: Request, caller: Known) -> dict[str, Any]:
    """One model."""
    return _model(model_named(name, gateway_of(request).settings).name)


def render(error: ServiceError) -> JSONResponse:
    """A problem in this face's shape."""
    return JSONResponse({"error": _error(error)}, error.problem.status, error.headers())


async def _submit(body: ImagesBody, request: Request, gateway: Gateway, caller: Caller) -> LiveJob:
    job = make_job(_ask(body, gateway.settings), caller, gateway.settings, gateway.policy)
    if request.headers.get("x-stainless-retry-count", "0") != "0":
        earlier = gateway.service.unfinished_twin(job)
        if earlier is not None:
            return earlier
    if (wait_s := _patience_s(request)) is not None:
        gateway.service.pool.refuse_unless_ready(gateway.service.models[job.spec.model], wait_s)
    return await gateway.service.submit(job, caller)


def _patience_s(request: Request) -> float | None:
    """What a client says with `Prefer: wait=SECONDS`, None where it says nothing. Source: RFC 7240, 4.3."""
    found = re.search(r"(?:^|[,;\s])wait\s*=\s*(\d{1,6})", request.headers.get("prefer", ""))
    return float(found[1]) if found else None


def _ask(body: ImagesBody, settings: ServerSettings) -> Ask:
    width, height = _size(body.size or "auto")
    name = None if body.model is None or _is_built_in(body.model, settings) else body.model
    catalogue = settings.catalogue()
    served = catalogue.get(name) if name else next(iter(catalogue.values()))
    steps = body.num_inference_steps
    if steps is None and served is not None:
        steps = max(1, round(served.variant.num_inference_steps * _share(body.quality or "auto")))
    return Ask(
        face=NAME,
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
        model=name,
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=body.guidance_scale,
        seed=body.seed,
        n=1 if body.n is None else body.n,
        output_format=body.output_format or "png",
        output_compression=body.output_compression,
        previews=min(body.partial_images or 0, 3) if body.stream else 0,
    )


def _size(size: str) -> tuple[int | None, int | None]:
    if size == "auto":
        return None, None
    if (match := re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)) is None:
        raise ServiceError(
            Problem.INVALID_REQUEST, f"size is {size!r}: write WIDTHxHEIGHT, or auto.", param="size"
        )
    return int(match[1]), int(match[2])


def _share(quality: str) -> float:
    if quality not in QUALITY:
        choices = ", ".join(QUALITY)
        raise ServiceError(
            Problem.INVALID_REQUEST, f"quality is {quality!r}: choose one of {choices}.", param="quality"
        )
    return QUALITY[quality]


def _is_built_in(name: str, settings: ServerSettings) -> bool:
    return name not in settings.catalogue() and BUILT_IN.match(name) is not None


async def _datum(
    request: Request, live: LiveJob, image: JobImage, response_format: str | None
) -> dict[str, Any]:
    datum: dict[str, Any] = {"seed": image.seed}
    if response_format == "url":
        return {**datum, "url": link(request, image)}
    return {**datum, "b64_json": await picture_base64(gateway_of(request), image)}


async def _stream(gateway: Gateway, live: LiveJob, body: ImagesBody) -> AsyncIterator[str]:
    """Unfinished pictures as they come, then each finished one; a failure is an event like any other."""
    async with Watch(gateway.service, live):
        async for event in live.events.after(0):
            if event.name == "preview" and event.data["picture"] == 0:
                yield _partial(live, event, body)
        try:
            await outcome(live)
            for image in live.job.images:
                yield _completed(live, await picture_base64(gateway, image), image, body)
        except ServiceError as error:
            yield f"data: {json.dumps({'error': _error(error)})}\n\n"


def _partial(live: LiveJob, event: Event, body: ImagesBody) -> str:
    name = "image_generation.partial_image"
    data = {
        "type": name,
        "b64_json": event.data["b64_json"],
        "partial_image_index": event.data["index"],
        "created_at": event.id // 1_000_000,
        **_facts(live.job.spec, body),
        "size": f"{event.data['width']}x{event.data['height']}",
    }
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _completed(live: LiveJob, content: str, image: JobImage, body: ImagesBody) -> str:
    name, spec = "image_generation.completed", live.job.spec
    data = {
        "type": name,
        "b64_json": content,
        "created_at": int(live.job.finished_at or 0),
        "seed": image.seed,
        **_facts(spec, body),
        "usage": _usage(spec),
    }
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _facts(spec: Spec, body: ImagesBody) -> dict[str, Any]:
    """What was drawn, as it was drawn: `size` is never the word auto."""
    quality = {"hd": "high", "standard": "medium", "auto": "medium"}.get(body.quality or "auto", body.quality)
    return {
        "size": f"{spec.width}x{spec.height}",
        "quality": quality,
        "background": "opaque",
        "output_format": spec.output_format,
    }


def _usage(spec: Spec) -> dict[str, Any]:
    """Tokens, as the transformer counts them: 16 x 16 pixels are one; texts are not counted."""
    drawn = spec.width * spec.height // 256 * spec.n
    nothing = {"image_tokens": 0, "text_tokens": 0}
    return {
        "input_tokens": 0,
        "output_tokens": drawn,
        "total_tokens": drawn,
        "input_tokens_details": nothing,
    }


def _error(error: ServiceError) -> dict[str, Any]:
    problem = error.problem
    details = dict(error.details)
    shape = {"message": str(error), "type": _type(problem), "param": details.pop("param", None)}
    code = "moderation_blocked" if problem in USER_ERRORS else problem.code
    return {**shape, "code": code, **details}


def _type(problem: Problem) -> str:
    if problem in USER_ERRORS:
        return "image_generation_user_error"
    if problem.status == 401:
        return "authentication_error"
    if problem.status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if problem.status < 499 else "server_error"


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "sd35"}
