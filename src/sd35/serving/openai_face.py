"""The face of OpenAI's Images API: its clients draw here with nothing but another base_url.

Source of the contract: the types and the client of https://github.com/openai/openai-python. Three things
shape this file. Its client retries 408, 409, 429 and 5xx on its own and sends no idempotency key, only the
count of the retry: a retry is joined to the job of the first try (same caller, same body). Programs send
fields that are meant for other models: those without a meaning here are ignored. It reads errors as
{"error": {message, type, param, code}}, in a stream as well.
"""

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Form, Request, UploadFile
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from sd35.request import STRENGTH
from sd35.serving.asking import NO_MASK, Ask, make_job, model_named
from sd35.serving.fields import Count, Few, Flag, Guidance, Percent, Seed, Steps, Strength, described
from sd35.serving.gateway import Gateway, Watch, caller_of, drawn, gateway_of, link, outcome, picture_base64
from sd35.serving.jobs import JobImage
from sd35.serving.keys import Caller
from sd35.serving.live import LiveJob
from sd35.serving.openai_shapes import completed, error_shape, event_of_error, facts, partial, usage
from sd35.serving.pictures import FORMATS
from sd35.serving.problems import Problem, ServiceError
from sd35.serving.settings import ServerSettings

Known = Annotated[Caller, Depends(caller_of)]
# Steps as a share of what the model's makers recommend.
QUALITY = {"low": 0.5, "standard": 1.0, "medium": 1.0, "auto": 1.0, "high": 1.5, "hd": 1.5}
# Names that clients have built in; here they mean the first model.
BUILT_IN = re.compile(r"^(gpt-image-|chatgpt-image-|dall-e-)")
# How much of the picture may go, where a client asks for fidelity to it.
FIDELITY = {"low": 0.75, "high": 0.45}

# Pictures in one answer, or one after the other as events.
ANSWERS: dict[int | str, Any] = {200: {"content": {"application/json": {}, "text/event-stream": {}}}}

NAME = "openai"  # in records and metrics
router = APIRouter(prefix="/v1")
PICTURE_PATHS = ("/v1/images/edits",)  # where bodies may hold a picture


class ImagesBody(BaseModel):
    """OpenAI's fields, and ours that `extra_body` may bring: negative_prompt, steps, scale, seed."""

    prompt: str
    model: str | None = None
    n: Count | None = 1
    size: str | None = "auto"
    quality: Annotated[str, described(enum=list(QUALITY))] | None = "auto"
    response_format: Literal["url", "b64_json"] | None = None
    output_format: Annotated[str, described(enum=list(FORMATS))] | None = "png"
    output_compression: Percent | None = None
    stream: Flag | None = False
    partial_images: Few | None = 0
    negative_prompt: str = ""
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    seed: Seed | None = None


class EditsForm(ImagesBody):
    """The same fields in a form, with a picture; clients call it `image[]` where they could send several."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["image"]}, {"required": ["image[]"]}]}
    )

    image: UploadFile | None = None
    images: Annotated[list[UploadFile], Field(alias="image[]")] = []
    mask: SkipJsonSchema[UploadFile | None] = None
    input_fidelity: Literal["low", "high"] | None = None
    strength: Strength | None = None


@router.post("/images/generations", response_model=None, responses=ANSWERS)
async def generate(body: ImagesBody, request: Request, caller: Known) -> JSONResponse | StreamingResponse:
    """Draw, and answer with the pictures; with `stream` as events on the way."""
    return await _answer(_ask(body, gateway_of(request).settings), body, request, caller)


@router.post("/images/edits", response_model=None, responses=ANSWERS)
async def edit(
    form: Annotated[EditsForm, Form(media_type="multipart/form-data")], request: Request, caller: Known
) -> JSONResponse | StreamingResponse:
    """Draw, beginning with a picture: the prompt describes the result, it is not an instruction."""
    gateway = gateway_of(request)
    if form.mask is not None:
        raise ServiceError(Problem.INVALID_REQUEST, NO_MASK, param="mask")
    sent = [one for one in (form.image, *form.images) if one is not None]
    if len(sent) != 1:
        raise ServiceError(
            Problem.INVALID_REQUEST, f"image: {len(sent)} pictures came, and one is needed.", param="image"
        )
    ask = _ask(form, gateway.settings)
    begin = await gateway.uploads.accept(await sent[0].read())
    return await _answer(replace(ask, image=begin, strength=_strength(form)), form, request, caller)


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
    return JSONResponse({"error": error_shape(error)}, error.problem.status, error.headers())


async def _answer(
    ask: Ask, body: ImagesBody, request: Request, caller: Caller
) -> JSONResponse | StreamingResponse:
    gateway = gateway_of(request)
    live = await _submit(ask, request, gateway, caller)
    if body.stream:
        return StreamingResponse(_stream(gateway, live, body.quality), media_type="text/event-stream")
    await drawn(request, live)
    data = [await _datum(request, live, image, body.response_format) for image in live.job.images]
    spec = live.job.spec
    told = {**facts(spec, body.quality), "usage": usage(spec)}
    answer = {"created": int(live.job.created_at), "data": data, **told}
    return JSONResponse(answer, headers={"x-request-id": live.job.id})


async def _submit(ask: Ask, request: Request, gateway: Gateway, caller: Caller) -> LiveJob:
    job = make_job(ask, caller, gateway.settings, gateway.policy)
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
    width, height = _size("auto" if body.size is None else body.size)
    name = None if body.model is None or _is_built_in(body.model, settings) else body.model
    catalogue = settings.catalogue()
    served = catalogue.get(name) if name else next(iter(catalogue.values()))
    steps, share = body.num_inference_steps, _share("auto" if body.quality is None else body.quality)
    if steps is None and served is not None:
        steps = max(1, round(served.variant.num_inference_steps * share))
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
        output_format="png" if body.output_format is None else body.output_format,
        output_compression=body.output_compression,
        previews=min(body.partial_images or 0, 3) if body.stream else 0,
    )


def _strength(form: EditsForm) -> float:
    if form.strength is not None:
        return form.strength
    return STRENGTH if form.input_fidelity is None else FIDELITY[form.input_fidelity]


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


async def _stream(gateway: Gateway, live: LiveJob, quality: str | None) -> AsyncIterator[str]:
    """Unfinished pictures as they come, then each finished one; a failure is an event like any other."""
    async with Watch(gateway.service, live):
        async for event in live.events.after(0):
            if event.name == "preview" and event.data["picture"] == 0:
                yield partial(live, event, quality)
        try:
            await outcome(live)
            for image in live.job.images:
                yield completed(live, await picture_base64(gateway, image), image, quality)
        except ServiceError as error:
            yield event_of_error(error)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "sd35"}
