"""Jobs as traces for OpenTelemetry: one span a job, and one in it for each phase.

Phases were measured where they happened, the drawing in another process, and a job keeps only how long each
took; so a trace is made when its job has ended, from what its record says. Load, encode, denoise and decode
follow one another from the moment the last attempt began; saving ends with the job. Gaps between them are
what nobody measured. https://opentelemetry.io/docs/specs/otel/trace/api/
"""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sd35.errors import LibraryError
from sd35.serving.happenings import Ended, Happening
from sd35.serving.jobs import Job, State

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

PATIENCE_S = 5  # for one export, and for the last one when the server stops
_DRAWING = ("load", "encode", "denoise", "decode")


@dataclass(frozen=True)
class Phase:
    """A part of a job, in seconds since 1970."""

    name: str
    begin: float
    end: float


def phases_of(job: Job) -> list[Phase]:
    """Those that a job came to, in their order."""
    found, seconds = [], job.seconds
    if "queue" in seconds:
        found.append(Phase("queue", job.created_at, job.created_at + seconds["queue"]))
    at = job.started_at or job.created_at
    for name in _DRAWING:
        if name in seconds:
            found.append(Phase(name, at, at + seconds[name]))
            at += seconds[name]
    if "save" in seconds and job.finished_at is not None:
        found.append(Phase("save", job.finished_at - seconds["save"], job.finished_at))
    return found


def exporter_to(endpoint: str) -> "SpanExporter":
    """What sends spans to a collector, by OTLP over HTTP; LibraryError where the packages are missing."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise LibraryError(
            f"--otlp-endpoint needs {error.name}, which is not installed: pip install 'sd35-fp8[otel]'."
        ) from error
    return OTLPSpanExporter(endpoint=endpoint, timeout=PATIENCE_S)


class Traces:
    """Makes the trace of each job that ends; a thread of the library sends them."""

    def __init__(self, exporter: "SpanExporter") -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({"service.name": "sd35"})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("sd35.serving")

    def observe(self, happening: Happening) -> None:
        """A job that ended becomes a trace."""
        if isinstance(happening, Ended):
            self._trace(happening.job)

    async def run(self) -> None:
        """Wait for the server's end, then send what is left."""
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.shield(asyncio.to_thread(self._provider.force_flush, PATIENCE_S * 1000))

    def _trace(self, job: Job) -> None:
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        whole = self._tracer.start_span("job", start_time=_ns(job.created_at), attributes=_attributes(job))
        inside = set_span_in_context(whole)
        for phase in phases_of(job):
            part = self._tracer.start_span(phase.name, context=inside, start_time=_ns(phase.begin))
            part.end(_ns(phase.end))
        if job.state is State.FAILED and job.error is not None:
            whole.set_status(Status(StatusCode.ERROR, job.error.message))
        whole.end(_ns(job.finished_at or job.created_at))


def _attributes(job: Job) -> dict[str, str | int]:
    spec = job.spec
    facts: dict[str, str | int | None] = {
        "sd35.job_id": job.id,
        "sd35.key_id": job.key_id,
        "sd35.face": job.face,
        "sd35.model": spec.model,
        "sd35.precision": job.precision,
        "sd35.outcome": job.state.value,
        "sd35.error": None if job.error is None else job.error.code,
        "sd35.width": spec.width,
        "sd35.height": spec.height,
        "sd35.steps": spec.num_inference_steps,
        "sd35.pictures": spec.n,
        "sd35.attempts": job.token,
        "sd35.peak_vram_bytes": job.peak_vram_bytes,
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
