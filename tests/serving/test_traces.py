"""A job's trace: its phases where they were, and its outcome."""

import builtins
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from sd35.errors import LibraryError
from sd35.serving.happenings import Ended
from sd35.serving.jobs import Job, JobError, State
from sd35.serving.traces import Phase, Traces, exporter_to, phases_of

from .conftest import ServerFactory
from .sink import sink
from .test_fair_queue import job


def finished() -> Job:
    """Made at 100, begun at 102, done at 110."""
    one = job("a")
    one.created_at, one.started_at, one.finished_at, one.state = 100.0, 102.0, 110.0, State.SUCCEEDED
    one.seconds = {"queue": 2.0, "load": 1.0, "encode": 0.5, "denoise": 4.0, "decode": 0.5, "save": 1.5}
    return one


def test_phases_lie_where_they_were() -> None:
    """One after the other from the attempt's beginning; saving ends with the job."""
    assert phases_of(finished()) == [
        Phase("queue", 100.0, 102.0),
        Phase("load", 102.0, 103.0),
        Phase("encode", 103.0, 103.5),
        Phase("denoise", 103.5, 107.5),
        Phase("decode", 107.5, 108.0),
        Phase("save", 108.5, 110.0),
    ]


def test_what_never_was_has_no_span() -> None:
    """A job that was cancelled while it waited has no phase but what was measured."""
    one = finished()
    one.seconds, one.started_at = {}, None
    assert phases_of(one) == []


def test_spans_hang_together() -> None:
    """Phases are children of the job's span, in one trace, with the times that were measured."""
    exporter = InMemorySpanExporter()
    traces = Traces(exporter)
    traces.observe(Ended(finished()))
    traces._provider.force_flush()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"job", "queue", "load", "encode", "denoise", "decode", "save"}
    whole = spans["job"]
    assert all(span.parent == whole.context for name, span in spans.items() if name != "job")
    assert (spans["denoise"].start_time, spans["denoise"].end_time) == (103_500_000_000, 107_500_000_000)
    assert (whole.start_time, whole.end_time) == (100_000_000_000, 110_000_000_000)
    assert whole.attributes is not None
    assert whole.attributes["sd35.outcome"] == "succeeded"
    assert "sd35.error" not in whole.attributes
    traces._provider.shutdown()


def test_a_failed_job_is_an_error() -> None:
    """With its code and its sentence."""
    exporter, one = InMemorySpanExporter(), finished()
    one.state, one.error = State.FAILED, JobError("out_of_memory", "no room")
    traces = Traces(exporter)
    traces.observe(Ended(one))
    traces._provider.force_flush()
    whole = next(span for span in exporter.get_finished_spans() if span.name == "job")
    assert (whole.status.status_code, whole.status.description) == (StatusCode.ERROR, "no room")
    assert whole.attributes is not None
    assert whole.attributes["sd35.error"] == "out_of_memory"
    traces._provider.shutdown()


def test_a_server_sends_what_is_left_when_it_stops(start_server: ServerFactory) -> None:
    """A collector gets the job's trace by OTLP, though the server ends right after the job."""
    with sink() as collector:
        served = start_server(otlp_endpoint=collector.url)
        made = served.end(served.post()["id"])
        assert served.stop() == 0
        collector.await_requests(1)
        request = ExportTraceServiceRequest.FromString(collector.received[0].body)
    spans = [span for one in request.resource_spans for scope in one.scope_spans for span in scope.spans]
    whole = next(span for span in spans if span.name == "job")
    facts = {fact.key: fact.value.string_value for fact in whole.attributes}
    assert facts["sd35.job_id"] == made["id"]
    assert {"queue", "denoise", "save"} <= {span.name for span in spans}


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that brings them."""
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("opentelemetry.exporter"):
            raise ImportError("none", name="opentelemetry")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LibraryError, match=r"pip install 'sd35-fp8\[otel\]'"):
        exporter_to("http://collector:4318/v1/traces")
