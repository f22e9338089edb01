"""Erasing pictures that nobody wants to keep, one or all of a job.

    DELETE /api/v1/jobs/{id}/images            all pictures, and the words that asked for them
    DELETE /api/v1/jobs/{id}/images/{seed}     one picture; with the last one go the words

The job's row stays, without prompt and pictures: quotas and records count what was drawn, not what was kept.
Files go first. A server that is killed in between has a row that still names them, and the same request
again finishes the work; the other way round a file would stay that nothing names. One erases at a time: of
two that read the same row, the later would bring back what the other took.
"""

import asyncio
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy.exc import SQLAlchemyError

from sd35.errors import Sd35Error
from sd35.serving.gateway import gateway_of
from sd35.serving.jobs import Job
from sd35.serving.live import EventLog, LiveJob
from sd35.serving.native import PREFIX, Known, view
from sd35.serving.problems import Problem, ServiceError
from sd35.serving.service import JobService
from sd35.serving.store import database_failed

router = APIRouter(prefix=PREFIX)


@router.delete("/jobs/{job_id}/images")
async def delete_images(job_id: str, request: Request, caller: Known) -> dict[str, Any]:
    """Erase an ended job's pictures, and its words."""
    service = gateway_of(request).service
    async with service.erasing:
        live = await service.find(job_id, caller)
        return view(await erase(service, live, {image.seed for image in live.job.images}), request)


@router.delete("/jobs/{job_id}/images/{seed}")
async def delete_image(job_id: str, seed: int, request: Request, caller: Known) -> dict[str, Any]:
    """Erase one picture of a job."""
    service = gateway_of(request).service
    async with service.erasing:
        live = await service.find(job_id, caller)
        if seed not in {image.seed for image in live.job.images}:
            raise ServiceError(Problem.NOT_FOUND, f"The job {job_id!r} has no picture of seed {seed}.")
        return view(await erase(service, live, {seed}), request)


async def erase(service: JobService, live: LiveJob, seeds: set[int]) -> LiveJob:
    """Remove files, then what the database and this server's memory tell of them."""
    if not live.job.state.is_final:
        raise ServiceError(
            Problem.NOT_OVER, f"The job {live.job.id!r} is not over: cancel it, then erase it."
        )
    try:
        for image in live.job.images:
            if image.seed in seeds:
                await asyncio.to_thread(service.storage.delete, image.name)
        erased = without(live.job, seeds)
        await service.rewrite(erased)
    except SQLAlchemyError as error:
        raise database_failed(error) from error
    except Sd35Error as error:
        raise ServiceError(Problem.STORAGE_FAILED, str(error)) from error
    live.job, live.events = erased, EventLog()  # its events held previews
    live.events.close()
    return live


def without(job: Job, seeds: set[int]) -> Job:
    """The job without these pictures; without its words too when none is left."""
    images = [image for image in job.images if image.seed not in seeds]
    spec = job.spec if images else replace(job.spec, prompt="", negative_prompt="", image=None)
    return replace(job, images=images, spec=spec)
