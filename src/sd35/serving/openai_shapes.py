"""Answers and events in the shapes of OpenAI's Images API."""

import json
from typing import Any

from sd35.serving.jobs import Event, JobImage, Spec
from sd35.serving.live import LiveJob
from sd35.serving.problems import Problem, ServiceError

USER_ERRORS = (Problem.PROMPT_BLOCKED, Problem.OUTPUT_BLOCKED)


def partial(live: LiveJob, event: Event, quality: str | None) -> str:
    """An unfinished picture, on the wire."""
    name = f"{kind(live.job.spec)}.partial_image"
    data = {
        "type": name,
        "b64_json": event.data["b64_json"],
        "partial_image_index": event.data["index"],
        "created_at": event.id // 1_000_000,
        **facts(live.job.spec, quality),
        "size": f"{event.data['width']}x{event.data['height']}",
    }
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def completed(live: LiveJob, content: str, image: JobImage, quality: str | None) -> str:
    """A finished picture, on the wire."""
    name, spec = f"{kind(live.job.spec)}.completed", live.job.spec
    data = {
        "type": name,
        "b64_json": content,
        "created_at": int(live.job.finished_at or 0),
        "seed": image.seed,
        **facts(spec, quality),
        "usage": usage(spec),
    }
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def facts(spec: Spec, quality: str | None) -> dict[str, Any]:
    """What was drawn, as it was drawn: `size` is never the word auto."""
    named = {"hd": "high", "standard": "medium", "auto": "medium"}.get(quality or "auto", quality)
    return {
        "size": f"{spec.width}x{spec.height}",
        "quality": named,
        "background": "opaque",
        "output_format": spec.output_format,
    }


def usage(spec: Spec) -> dict[str, Any]:
    """Tokens, as the transformer counts them: 16 x 16 pixels are one; texts are not counted."""
    each = spec.width * spec.height // 256
    read, drawn = 0 if spec.image is None else each, each * spec.n
    return {
        "input_tokens": read,
        "output_tokens": drawn,
        "total_tokens": read + drawn,
        "input_tokens_details": {"image_tokens": read, "text_tokens": 0},
    }


def error_shape(error: ServiceError) -> dict[str, Any]:
    """A problem, as its clients read it."""
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


def event_of_error(error: ServiceError) -> str:
    """A failure in a stream that has begun."""
    return f"data: {json.dumps({'error': error_shape(error)})}\n\n"


def kind(spec: Spec) -> str:
    """What its events are called."""
    return "image_generation" if spec.image is None else "image_edit"
