"""The place in a list at which the next page begins, as a word that clients hand back."""

import base64
import binascii
import json

from sd35.serving.jobs import Job
from sd35.serving.problems import Problem, ServiceError


def cursor_after(job: Job) -> str:
    """What comes after this job, in a list of the newest first."""
    return base64.urlsafe_b64encode(json.dumps([job.created_at, job.id]).encode()).decode()


def read_cursor(cursor: str | None) -> tuple[float, str] | None:
    """created_at and id of the last job seen; None at the beginning."""
    if cursor is None:
        return None
    try:
        at, job_id = json.loads(base64.urlsafe_b64decode(cursor))
        return float(at), str(job_id)
    except (ValueError, TypeError, binascii.Error) as error:
        raise ServiceError(
            Problem.INVALID_REQUEST, f"cursor {cursor!r} is none of ours: send one that `next` gave."
        ) from error
