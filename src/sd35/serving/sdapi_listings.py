"""What clients of AUTOMATIC1111's API ask for beside drawing: lists, memory, and what is in a PNG file."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import psutil
from fastapi import APIRouter, Request
from pydantic import BaseModel

from sd35.serving.fields import BASE64, described
from sd35.serving.gateway import Known, gateway_of
from sd35.serving.infotext import SAMPLER, SCHEDULER, recipe_of_file
from sd35.serving.native import from_base64
from sd35.serving.settings import Model

# What clients list before they draw, and there is none of here.
EMPTY: dict[str, Any] = {
    "upscalers": [],
    "latent-upscale-modes": [],
    "sd-vae": [],
    "loras": [],
    "hypernetworks": [],
    "face-restorers": [],
    "realesrgan-models": [],
    "prompt-styles": [],
    "embeddings": {"loaded": {}, "skipped": {}},
    "scripts": {"txt2img": [], "img2img": []},
    "cmd-flags": {},
}

router = APIRouter(prefix="/sdapi/v1")


class PngInfo(BaseModel):
    """A file in base64, bare or as a `data:` URL."""

    image: Annotated[str, described(pattern=BASE64)]


@router.post("/png-info")
async def png_info(body: PngInfo, caller: Known) -> dict[str, Any]:
    """How a picture of ours was made; every other file is answered with nothing."""
    recipe = recipe_of_file(await asyncio.to_thread(from_base64, body.image))
    if recipe is None:
        return {"info": "", "items": {}, "parameters": {}}
    return {"info": recipe.text, "items": {"parameters": recipe.text}, "parameters": recipe.pairs}


@router.get("/memory")
async def memory(request: Request, caller: Known) -> dict[str, Any]:
    """The machine's memory, and that of the cards as their last tasks left it; in bytes."""
    cards = gateway_of(request).watch.cards.view()
    return {
        "ram": _ram(),
        "cuda": {"error": "nothing was drawn on a card yet"} if cards is None else _cuda(cards),
    }


@router.get("/sd-models")
async def sd_models(request: Request, caller: Known) -> list[dict[str, Any]]:
    """The models, each under its plain name."""
    return [_checkpoint(model) for model in gateway_of(request).service.models.values()]


@router.post("/refresh-checkpoints")
async def refresh_checkpoints(caller: Known) -> None:
    """Nothing to do: the models are those that the server was started with."""


@router.get("/samplers")
async def samplers(caller: Known) -> list[dict[str, Any]]:
    """The one there is."""
    return [{"name": SAMPLER, "aliases": ["euler", "k_euler"], "options": {}}]


@router.get("/schedulers")
async def schedulers(caller: Known) -> list[dict[str, Any]]:
    """The one there is: the model's own."""
    name = SCHEDULER
    row = {"aliases": None, "default_rho": -1.0, "need_inner_model": False}
    return [{"name": name.lower(), "label": name, **row}]


def _answering(nothing: Any) -> Callable[..., Awaitable[Any]]:
    async def listing(caller: Known) -> Any:
        return nothing

    return listing


for _name, _nothing in EMPTY.items():
    router.add_api_route(
        f"/{_name}", _answering(_nothing), name=_name, description="Nothing: there is none of these here."
    )


def _checkpoint(model: Model) -> dict[str, Any]:
    names = dict.fromkeys(("title", "model_name", "filename"), model.name)
    return {**names, "hash": None, "sha256": None, "config": None}


def _ram() -> dict[str, int]:
    found = psutil.virtual_memory()
    return {"free": found.free, "used": found.total - found.free, "total": found.total}


def _cuda(cards: dict[str, Any]) -> dict[str, Any]:
    used, total = cards["used_bytes"], cards["total_bytes"]
    return {"system": {"free": total - used, "used": used, "total": total}}
