"""The place in a list at which the next page begins, as a word that clients hand back."""

import re
from typing import Annotated

from pydantic import WithJsonSchema

from sd35.serving.jobs import Job
from sd35.serving.problems import Problem, ServiceError

PATTERN = r"^[0-9]{1,12}(\.[0-9]{1,9})?~[0-9A-Za-z_]{1,40}$"
Cursor = Annotated[str | None, WithJsonSchema({"type": "string", "pattern": PATTERN})]


def cursor_after(job: Job) -> str:
    """What comes after this job, in a list of the newest first."""
    return f"{job.created_at!r}~{job.id}"


def read_cursor(cursor: str | None) -> tuple[float, str] | None:
    """created_at and id of the last job seen; None at the beginning."""
    if cursor is None:
        return None
    if not re.fullmatch(PATTERN, cursor):
        raise ServiceError(
            Problem.INVALID_REQUEST, f"cursor {cursor!r} is none of ours: send one that `next` gave."
        )
    at, _, job_id = cursor.partition("~")
    return float(at), job_id
