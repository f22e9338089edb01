"""Every way in which the server says no: one table, which each face renders in its own shape.

`retry` says whether the same request may do better later. Clients such as OpenAI's package retry 408, 409,
429 and every 5xx on their own, so whatever will fail again goes out with `x-should-retry: false`.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from sd35.errors import PromptError, RequestError, Sd35Error


@dataclass(frozen=True)
class Kind:
    """One row: the stable word for programs, the HTTP status, and whether a retry makes sense."""

    code: str
    status: int
    retry: bool = False


class Problem(Kind, Enum):
    """The kinds of refusal and failure there are."""

    INVALID_REQUEST = "invalid_request", 400
    INVALID_IMAGE = "invalid_image", 400
    PROMPT_BLOCKED = "prompt_blocked", 400
    OUTPUT_BLOCKED = "output_blocked", 400
    UNAUTHORIZED = "unauthorized", 401
    FORBIDDEN = "forbidden", 403
    NOT_FOUND = "not_found", 404
    MODEL_NOT_FOUND = "model_not_found", 404
    METHOD_NOT_ALLOWED = "method_not_allowed", 405
    CONFLICT = "idempotency_conflict", 422  # 409 would be retried
    TOO_LARGE = "request_too_large", 413
    QUEUE_FULL = "queue_full", 429, True
    QUOTA_EXCEEDED = "quota_exceeded", 429
    CANCELLED = "cancelled", 499  # as nginx says of a client that went away
    OUT_OF_MEMORY = "out_of_memory", 500
    NOT_FINITE = "nan_output", 500
    MODEL_FAILED = "model_failed", 500
    WORKER_DIED = "worker_died", 500
    BUG = "internal_error", 500
    DRAINING = "draining", 503, True
    MODEL_LOADING = "model_loading", 503, True
    STORE_FAILED = "store_failed", 503, True
    STORAGE_FAILED = "storage_failed", 503, True
    EXPIRED = "deadline_passed", 504


BUG_WORDS = "The server has a bug; its log has more."


class ServiceError(Sd35Error):
    """A problem on its way to a client; the face adds the shape."""

    def __init__(
        self, problem: Problem, message: str, *, retry_after_s: int | None = None, **details: Any
    ) -> None:
        super().__init__(message)
        self.problem, self.retry_after_s, self.details = problem, retry_after_s, details

    def headers(self) -> dict[str, str]:
        """What tells a client whether and when to come again."""
        if not self.problem.retry:
            return {"x-should-retry": "false"}
        return {"Retry-After": str(self.retry_after_s or 1)}


def problem_named(code: str) -> Problem:
    """The row with this code; a code from another version counts as a bug of ours."""
    return next((problem for problem in Problem if problem.code == code), Problem.BUG)


def of_request(error: RequestError | PromptError) -> ServiceError:
    """What the request's own checks say, as an answer."""
    return ServiceError(Problem.INVALID_REQUEST, str(error))
