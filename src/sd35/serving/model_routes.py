"""The server's own face for whoever runs it: models to load and unload, work to pause; scope `admin`.

GET  /api/v1/models                what each model is and where it is (scope read)
POST /api/v1/models/{id}/load      get it ready before anybody needs it      202, the model's row
POST /api/v1/models/{id}/unload    give its memory back                      202, the model's row
POST /api/v1/pause, /api/v1/resume no job begins, jobs are still accepted    the server's state
POST /api/v1/drain                 what SIGTERM does: the running jobs end, then the server
"""

import os
import signal
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from sd35.errors import AccessError
from sd35.serving.gateway import caller_of, gateway_of
from sd35.serving.keys import Caller
from sd35.serving.problems import Problem, ServiceError
from sd35.serving.settings import Model


def administrator(caller: Annotated[Caller, Depends(caller_of)]) -> Caller:
    """Who may change what the server does."""
    try:
        caller.require("admin")
    except AccessError as error:
        raise ServiceError(Problem.FORBIDDEN, str(error)) from error
    return caller


router = APIRouter(prefix="/api/v1")
Known = Annotated[Caller, Depends(caller_of)]
Admin = Annotated[Caller, Depends(administrator)]


@router.get("/models")
async def models(request: Request, caller: Known) -> dict[str, Any]:
    """The models, and where they are."""
    return {"data": [_row(model, request) for model in gateway_of(request).service.models.values()]}


@router.post("/models/{name}/load", status_code=202)
async def load(name: str, request: Request, caller: Admin) -> dict[str, Any]:
    """Get a model ready; again while it is on its way, this tells how far it is."""
    model = _model(name, request)
    gateway_of(request).service.pool.load(model)
    return _row(model, request)


@router.post("/models/{name}/unload", status_code=202)
async def unload(name: str, request: Request, caller: Admin) -> dict[str, Any]:
    """Let go of a model, after what is drawn with it now; the next job that needs it loads it again."""
    model = _model(name, request)
    gateway_of(request).service.pool.unload(model)
    return _row(model, request)


@router.post("/pause")
async def pause(request: Request, caller: Admin) -> dict[str, bool]:
    """Begin no further job; those that run go on, and new ones may wait."""
    return _paused(request, is_paused=True)


@router.post("/resume")
async def resume(request: Request, caller: Admin) -> dict[str, bool]:
    """Begin jobs again."""
    return _paused(request, is_paused=False)


@router.post("/drain", status_code=202)
async def drain(request: Request, caller: Admin) -> dict[str, bool]:
    """End the server as SIGTERM does: nothing new, time for what runs, the rest for the next start."""
    os.kill(os.getpid(), signal.SIGTERM)
    return {"draining": True}


def row_of(model: Model) -> dict[str, Any]:
    """What a model is."""
    variant = model.variant
    return {
        "id": model.name,
        "variant": variant.name,
        "title": variant.title,
        "native_size": variant.native_size,
        "max_size": variant.max_size,
        "num_inference_steps": variant.num_inference_steps,
        "guidance_scale": variant.guidance_scale,
    }


def _row(model: Model, request: Request) -> dict[str, Any]:
    service = gateway_of(request).service
    pinned = model.name in service.settings.pinned_names
    return {**row_of(model), **service.pool.describe(model.name), "pinned": pinned}


def _model(name: str, request: Request) -> Model:
    model = gateway_of(request).service.models.get(name)
    if model is None:
        raise ServiceError(Problem.MODEL_NOT_FOUND, f"There is no model {name!r} here.", param="model")
    return model


def _paused(request: Request, *, is_paused: bool) -> dict[str, bool]:
    service = gateway_of(request).service
    service.pool.pause(is_paused=is_paused)
    return {"paused": is_paused, "draining": service.is_draining}
