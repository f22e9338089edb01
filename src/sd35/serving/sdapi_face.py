"""The face of AUTOMATIC1111's web UI (/sdapi/v1), as far as its clients need it to draw.

Source of the contract: `modules/api/{api,models}.py` and `modules/processing.py` of
https://github.com/AUTOMATIC1111/stable-diffusion-webui, and what clients read of it. That program has one
user, one checkpoint in use and one picture in hand. Here each key has a `Desk` of its own: the checkpoint
that it chose by POST options, and its unfinished jobs, of which `progress` shows and `interrupt` ends the
oldest. Fields that we don't know are ignored, and so are samplers: Euler's method for flow matching draws
all, and `info` says so. Sizes are brought to the nearest that the model can draw; `info` has those as well.
"""

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from pydantic.json_schema import SkipJsonSchema

from sd35.request import STRENGTH, size_for
from sd35.serving.asking import MAX_PREVIEWS, NO_MASK, Ask, model_named
from sd35.serving.fields import PICTURE, Factor, Flag, Guidance, Pixels, SeedOrAny, Steps, Strength, described
from sd35.serving.gateway import Known, drawn, gateway_of, picture_base64, submit
from sd35.serving.infotext import info_of
from sd35.serving.keys import Caller
from sd35.serving.live import LiveJob
from sd35.serving.model_routes import Admin
from sd35.serving.native import from_base64
from sd35.serving.problems import Problem, ServiceError
from sd35.serving.settings import Model
from sd35.serving.sizes import fitted

CHECKPOINT = "sd_model_checkpoint"
NAME = "sdapi"  # in records and metrics
router = APIRouter(prefix="/sdapi/v1")
PICTURE_PATHS = ("/sdapi/v1/img2img", "/sdapi/v1/png-info")  # where bodies may hold a picture


class Txt2Img(BaseModel):
    """The fields that mean something here; null means the same as nothing, as clients send it."""

    prompt: str | None = None
    negative_prompt: str | None = None
    seed: SeedOrAny | None = None
    steps: Steps | None = None
    cfg_scale: Guidance | None = None
    width: Pixels | None = None
    height: Pixels | None = None
    batch_size: Factor | None = None
    n_iter: Factor | None = None
    send_images: Flag | None = None
    override_settings: dict[str, Any] | None = None


class Img2Img(Txt2Img):
    """The same, and what to begin with; `mask` is here to be refused rather than overlooked."""

    init_images: Annotated[list[Annotated[str, described(**PICTURE)]], described(minItems=1, maxItems=1)]
    denoising_strength: Strength | None = None
    mask: SkipJsonSchema[Any] = None


@dataclass
class Desk:
    """What a key has in use."""

    checkpoint: str | None = None  # None: the first model
    lives: list[LiveJob] = field(default_factory=list)  # oldest first

    def take(self, live: LiveJob) -> None:
        """A job more. It stays until it ends: some clients hang up first and interrupt then."""
        self.lives = [*self.unfinished, live]

    @property
    def unfinished(self) -> list[LiveJob]:
        """The jobs that go on, oldest first: `progress` and `interrupt` are about the first."""
        return [live for live in self.lives if not live.job.state.is_final]


@router.post("/txt2img")
async def txt2img(body: Txt2Img, request: Request, caller: Known) -> dict[str, Any]:
    """Draw, and answer with the pictures and all that is known about them."""
    model = _model(body, _desk(request, caller), request)
    return await _drawn(_ask(body, model, None), body, request, caller)


@router.post("/img2img")
async def img2img(body: Img2Img, request: Request, caller: Known) -> dict[str, Any]:
    """Draw, beginning with a picture."""
    if body.mask is not None:
        raise ServiceError(Problem.INVALID_REQUEST, NO_MASK, param="mask")
    if len(body.init_images) != 1:
        count = len(body.init_images)
        raise ServiceError(
            Problem.INVALID_REQUEST, f"init_images has {count} pictures: give one.", param="init_images"
        )
    gateway, desk = gateway_of(request), _desk(request, caller)
    model = _model(body, desk, request)
    data = await asyncio.to_thread(from_base64, body.init_images[0])
    begin = await gateway.uploads.accept(data)
    ask = replace(_ask(body, model, (begin.width, begin.height)), image=begin, strength=_strength(body))
    answer = await _drawn(ask, body, request, caller)
    return {**answer, "parameters": {**answer["parameters"], "init_images": None}}


@router.get("/progress")
async def progress(request: Request, caller: Known, skip_current_image: bool = False) -> dict[str, Any]:
    """How far the caller's oldest job is; 0 and no job where nothing is drawn."""
    lives = _desk(request, caller).unfinished
    live = lives[0] if lives else None
    done, of = live.progress if live else (0, 0)
    share, since = done / of if of else 0.0, live.job.started_at if live else None
    eta = (time.time() - since) * (1 / share - 1) if since is not None and share else 0.0
    state = {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": live.job.id if live else "",
        "job_count": len(lives),
        "job_timestamp": _timestamp(since),
        "job_no": 0,
        "sampling_step": done,
        "sampling_steps": of,
    }
    preview = live.events.latest("preview") if live and not skip_current_image else None
    return {
        "progress": share,
        "eta_relative": eta,
        "state": state,
        "current_image": preview.data["b64_json"] if preview else None,
        "textinfo": live.job.state.value if live else None,
    }


@router.post("/interrupt")
@router.post("/skip")
async def interrupt(request: Request, caller: Known) -> dict[str, Any]:
    """Cancel the caller's oldest job; its pictures are one job, so there is no skipping of one."""
    for live in _desk(request, caller).unfinished[:1]:
        await gateway_of(request).service.cancel(live)
    return {}


@router.get("/options")
async def options(request: Request, caller: Known) -> dict[str, Any]:
    """What is set, as far as it can be."""
    chosen = _desk(request, caller).checkpoint or next(iter(gateway_of(request).service.models))
    return {CHECKPOINT: chosen, "sd_vae": "Automatic", "samples_format": "png", "CLIP_stop_at_last_layers": 1}


@router.post("/options")
async def set_options(body: dict[str, Any], request: Request, caller: Known) -> None:
    """Choose the checkpoint for what this key draws from now on; there is nothing else to set."""
    if body.get(CHECKPOINT):
        chosen = model_named(str(body[CHECKPOINT]), gateway_of(request).settings)
        _desk(request, caller).checkpoint = chosen.name


@router.post("/unload-checkpoint")
async def unload_checkpoint(request: Request, caller: Admin) -> dict[str, Any]:
    """Give back the memory of the caller's checkpoint; the next picture loads it again."""
    gateway_of(request).service.pool.unload(_model(Txt2Img(), _desk(request, caller), request))
    return {}


@router.post("/reload-checkpoint")
async def reload_checkpoint(request: Request, caller: Admin) -> dict[str, Any]:
    """Get the caller's checkpoint ready."""
    gateway_of(request).service.pool.load(_model(Txt2Img(), _desk(request, caller), request))
    return {}


async def _drawn(ask: Ask, body: Txt2Img, request: Request, caller: Caller) -> dict[str, Any]:
    gateway, desk = gateway_of(request), _desk(request, caller)
    live = await submit(ask, gateway, caller)
    desk.take(live)
    await drawn(request, live)
    sent = live.job.images if body.send_images is not False else []
    return {
        "images": [await picture_base64(gateway, image) for image in sent],
        "parameters": body.model_dump(),
        "info": info_of(live.job, body.batch_size or 1),
    }


def render(error: ServiceError) -> JSONResponse:
    """A problem in this face's shape."""
    problem, headers = error.problem, error.headers()
    if problem is Problem.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Basic realm="sd35"'
    body = {"error": problem.code, "detail": str(error), "body": "", "errors": str(error)}
    return JSONResponse(body, problem.status, headers)


def _desk(request: Request, caller: Caller) -> Desk:
    desks: dict[str | None, Desk] = request.app.state.desks
    return desks.setdefault(caller.key_id, Desk())


def _model(body: Txt2Img, desk: Desk, request: Request) -> Model:
    """The checkpoint for this one request, or the one that was chosen for all, or the first."""
    name = (body.override_settings or {}).get(CHECKPOINT) or desk.checkpoint
    return model_named(None if not name else str(name), gateway_of(request).settings)


def _strength(body: Img2Img) -> float:
    return STRENGTH if body.denoising_strength is None else body.denoising_strength


def _ask(body: Txt2Img, model: Model, shape: tuple[int, int] | None) -> Ask:
    """`shape` is that of the picture to begin with, if there is one."""
    variant = model.variant
    width, height = size_for(shape, body.width or None, body.height or None, variant)
    if min(width, height) < 1:
        raise ServiceError(
            Problem.INVALID_REQUEST, f"A picture can't be {width}x{height}: give pixels above 0."
        )
    width, height = fitted(width, height, variant)
    return Ask(
        face=NAME,
        prompt=body.prompt or "",
        negative_prompt=body.negative_prompt or "",
        model=model.name,
        width=width,
        height=height,
        num_inference_steps=body.steps,
        guidance_scale=body.cfg_scale,
        seed=None if body.seed is None or body.seed < 0 else body.seed,
        previews=MAX_PREVIEWS,
        n=(body.batch_size or 1) * (body.n_iter or 1),
    )


def _timestamp(since: float | None) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.localtime(since)) if since is not None else "0"
