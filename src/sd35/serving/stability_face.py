"""The face of Stability's API for SD3.5: one form in, one picture out.

Source of the contract: the TypeScript rendering of Stability's OpenAPI document in
https://github.com/tadasant/mcp-server-stability-ai (`src/stabilityAi/types.ts`, 2025-06). Its ways that are
not ours: seed 0 means any; the picture comes as bytes with its facts in headers, or as JSON with the facts
beside it; a refused prompt is 403 `content_moderation`; and a picture that was held back is no error, but a
picture without content and the reason CONTENT_FILTERED. Its strength is ours: near 0 the picture stays as it
is, at 1 nothing is left of it; 0 itself is refused. Fields that we don't know are ignored.
"""

import base64
import secrets
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Request, Response, UploadFile
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from sd35.request import STRENGTH
from sd35.serving.asking import Ask, model_named, strength_checked
from sd35.serving.fields import Guidance, Seed, Strength, described
from sd35.serving.gateway import Gateway, Known, drawn, gateway_of, submit
from sd35.serving.pictures import FORMATS, blank
from sd35.serving.problems import Problem, ServiceError
from sd35.serving.settings import Model, ServerSettings
from sd35.serving.sizes import RATIOS, of_ratio

# Stability's names, which scripts have built in, and the variants they mean.
MODELS = {
    "sd3.5-large": "large",
    "sd3.5-large-turbo": "large-turbo",
    "sd3.5-medium": "medium",
    "sd3-large": "large",
    "sd3-large-turbo": "large-turbo",
    "sd3-medium": "medium",
}
NAMES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    413: "payload_too_large",
    429: "rate_limit_exceeded",
}

NAME = "stability"  # in records and metrics
router = APIRouter(prefix="/v2beta")
PICTURE_PATHS = ("/v2beta/stable-image/generate/sd3",)  # where bodies may hold a picture


class Sd3Form(BaseModel):
    """The form's fields."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"properties": {"mode": {"enum": ["text-to-image", ""]}}, "not": {"required": ["image"]}},
                {"properties": {"mode": {"const": "image-to-image"}}, "required": ["mode", "image"]},
            ]
        }
    )

    prompt: str
    mode: Literal["text-to-image", "image-to-image"] = "text-to-image"
    negative_prompt: str = ""
    aspect_ratio: Annotated[str, described(enum=list(RATIOS))] = "1:1"
    model: str | None = None
    seed: Seed = 0
    output_format: Annotated[str, described(enum=list(FORMATS))] = "png"
    cfg_scale: Guidance | None = None
    image: UploadFile | None = None
    strength: Strength | None = None


@router.post(
    "/stable-image/generate/sd3",
    response_model=None,
    responses={200: {"content": {"application/json": {}, **{f"image/{form}": {} for form in FORMATS}}}},
)
async def generate(
    form: Annotated[Sd3Form, Form(media_type="multipart/form-data")], request: Request, caller: Known
) -> Response:
    """Draw one picture: bytes, or JSON for a client that accepts `application/json`."""
    gateway = gateway_of(request)
    model = _model(form.model, gateway.settings)
    begin = await _image(form, gateway)
    live = await submit(replace(_ask(form, model), **begin), gateway, caller)
    spec = live.job.spec
    try:
        await drawn(request, live)
        content, reason = await gateway.service.read_picture(live.job.images[0].name), "SUCCESS"
    except ServiceError as error:
        if error.problem is not Problem.OUTPUT_BLOCKED:
            raise
        content, reason = blank(spec.width, spec.height, spec.output_format), "CONTENT_FILTERED"
    headers = {"x-request-id": live.job.id, "x-sd35-model": model.name}
    if "application/json" in request.headers.get("accept", ""):
        image = base64.b64encode(content).decode()
        return JSONResponse({"image": image, "finish_reason": reason, "seed": spec.seed}, headers=headers)
    headers |= {"finish-reason": reason, "seed": str(spec.seed)}
    return Response(content, media_type=f"image/{spec.output_format}", headers=headers)


def render(error: ServiceError) -> JSONResponse:
    """A problem in this face's shape."""
    status, name = _status_and_name(error.problem)
    details = dict(error.details)
    request_id, param = details.pop("job_id", None) or secrets.token_hex(16), details.pop("param", None)
    said = f"{param}: {error}" if param and not str(error).startswith(param) else str(error)
    headers = {**error.headers(), "x-request-id": request_id}
    return JSONResponse({"id": request_id, "name": name, "errors": [said]}, status, headers)


def _status_and_name(problem: Problem) -> tuple[int, str]:
    if problem is Problem.PROMPT_BLOCKED:
        return 403, "content_moderation"
    unnamed = "internal_error" if problem.status == 500 else problem.code
    return problem.status, NAMES.get(problem.status, unnamed)


def _model(name: str | None, settings: ServerSettings) -> Model:
    """The model of that name, of that variant, or for Stability's names the first there is."""
    models = settings.catalogue()
    if name is not None and (name in models or name not in MODELS):
        return model_named(name, settings)
    wanted = MODELS[name or "sd3.5-large"]
    meant = (model for model in models.values() if model.variant.name == wanted)
    return next(meant, model_named(None, settings))


def _ask(form: Sd3Form, model: Model) -> Ask:
    if form.aspect_ratio not in RATIOS:
        raise _invalid("aspect_ratio", f"{form.aspect_ratio!r} is none of {', '.join(RATIOS)}")
    width, height = of_ratio(form.aspect_ratio, model.variant)
    return Ask(
        face=NAME,
        prompt=form.prompt,
        negative_prompt=form.negative_prompt,
        model=model.name,
        width=width,
        height=height,
        guidance_scale=form.cfg_scale,
        seed=form.seed or None,
        output_format=form.output_format,
    )


async def _image(form: Sd3Form, gateway: Gateway) -> dict[str, Any]:
    """What image-to-image changes of an `Ask`: the picture has its own shape, so aspect_ratio is not read."""
    if form.strength is not None:
        strength_checked(form.strength)
    if form.mode == "text-to-image":
        if form.image is not None:
            raise _invalid("image", "with mode text-to-image nothing begins with it: say image-to-image")
        return {}
    if form.image is None:
        raise _invalid("image", "image-to-image begins with a picture: send it as a file")
    begin = await gateway.uploads.accept(await form.image.read())
    strength = STRENGTH if form.strength is None else form.strength
    return {"image": begin, "strength": strength, "width": None, "height": None}


def _invalid(field: str, why: str) -> ServiceError:
    return ServiceError(Problem.INVALID_REQUEST, f"{field}: {why}.", param=field)
