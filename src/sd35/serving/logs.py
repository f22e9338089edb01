"""What the server says on stderr: lines for people, or one JSON object a line for programs.

Code logs as usual, through `logging`; structlog only writes it down, with the job that it is about. That job
travels in a context variable: whatever is logged on behalf of a job, in whatever file, carries its id. Texts
that strangers send may be in any message, so nothing of a message can end a line or drive a terminal.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from structlog.contextvars import bound_contextvars
from structlog.typing import EventDict

from sd35.serving.happenings import Ended, Happening
from sd35.serving.settings import LogFormat

log = logging.getLogger(__name__)


def configure(form: LogFormat) -> None:
    """Let all handlers of this process write in this form."""
    before: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _harmless,
    ]
    last: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if form == "json":
        last += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        # Rich's own tracebacks, where it is installed, show what variables hold: prompts.
        plain = structlog.dev.plain_traceback
        last += [
            structlog.dev.ConsoleRenderer(
                colors=False, pad_event_to=0, pad_level=False, exception_formatter=plain
            )
        ]
    formatter = structlog.stdlib.ProcessorFormatter(foreign_pre_chain=before, processors=last)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(formatter)


@contextmanager
def about(job_id: str) -> Iterator[None]:
    """What is logged inside, and in tasks that begin inside, is about this job."""
    with bound_contextvars(job_id=job_id):
        yield


def observe(happening: Happening) -> None:
    """One line for each job that ends."""
    if isinstance(happening, Ended):
        job = happening.job
        facts = {
            "job_id": job.id,
            "key_id": job.key_id,
            "model": job.spec.model,
            "outcome": job.state.value,
            "error": None if job.error is None else job.error.code,
            "seconds": {phase: round(seconds, 3) for phase, seconds in job.seconds.items()},
            "attempts": job.token,
        }
        log.info("job ended", extra={name: fact for name, fact in facts.items() if fact is not None})


def _harmless(_: Any, __: str, event: EventDict) -> EventDict:
    """Control characters, line ends and marks that turn text around, written as escapes."""
    return {name: _escaped(value) if isinstance(value, str) else value for name, value in event.items()}


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
