"""Metrics for Prometheus, counted from what happens and read off the server when it is scraped.

Names follow https://prometheus.io/docs/practices/naming/: base units, counters end in `_total`. Every label
has few values: states, phases, models that are served, kinds of trouble. Prompts, keys and job ids are none.
The registry is our own, so that two servers in one process count apart.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric

from sd35.serving.gauges import PLACES as MODEL_PLACES
from sd35.serving.gauges import Gauges
from sd35.serving.happenings import (
    ABNORMAL,
    FACES,
    LOST,
    PLACES,
    Drew,
    Ended,
    Happening,
    Judged,
    ModelLoaded,
    Refused,
    Stepped,
    StoreTried,
    WebhookTried,
    WorkerLost,
)
from sd35.serving.jobs import FINAL, Job

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
GIB = 2**30
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1800)
VRAM = tuple(GIB * size for size in (2, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 80, 141))


class Metrics:
    """All metrics of one server."""

    def __init__(self, read: Callable[[], Gauges]) -> None:
        self._read = read
        disable_created_metrics()  # a second series for each counter and histogram, which nobody asks for
        self._registry = CollectorRegistry()
        self._define()
        ProcessCollector(registry=self._registry)
        self._begin_at_zero()
        self._registry.register(self)  # for what `collect` reads off the server

    def _define(self) -> None:
        own: dict[str, Any] = {"namespace": "sd35", "registry": self._registry}
        self._requests = Counter(
            "requests", "Jobs that ended and requests that were refused.", ("face", "model", "outcome"), **own
        )
        self._images = Counter("images", "Pictures that were drawn and stored.", ("model",), **own)
        self._steps = Counter("steps", "Denoising steps, counted for each picture of a batch.", **own)
        self._abnormal = Counter("abnormal_images", "Pictures that were abnormal.", ("reason",), **own)
        self._restarts = Counter("worker_restarts", "Workers lost.", ("reason",), **own)
        self._blocks = Counter("filter_blocks", "Prompts that the filter refused.", ("list",), **own)
        self._store_errors = Counter("storage_errors", "Writes that failed.", ("place",), **own)
        self._webhooks = Counter("webhook_failures", "Tries of a webhook that failed.", **own)
        self._wait = Histogram("queue_wait_seconds", "From acceptance to a worker.", buckets=SECONDS, **own)
        self._phase = Histogram("phase_seconds", "Parts of a job.", ("phase",), buckets=SECONDS, **own)
        self._load = Histogram("model_load_seconds", "Loading a model.", ("model",), buckets=SECONDS, **own)
        self._batch = Histogram("batch_size", "Pictures drawn together.", buckets=(1, 2, 4, 8, 16), **own)
        self._peak = Histogram("job_peak_vram_bytes", "Most memory of the card.", buckets=VRAM, **own)
        self._vram = Gauge("vram_bytes", "The card's memory, after a job.", ("worker", "kind"), **own)

    def _begin_at_zero(self) -> None:
        """A series that appears with its first event has not increased, for Prometheus: show it before."""
        for reason in ABNORMAL:
            self._abnormal.labels(reason)
        for kind in LOST:
            self._restarts.labels(kind)
        for place in PLACES:
            self._store_errors.labels(place)
        for face, model, state in product(FACES, self._read().models, FINAL):
            self._requests.labels(face, model, state.value)

    def text(self) -> bytes:
        """What a scrape answers."""
        return generate_latest(self._registry)

    def observe(self, happening: Happening) -> None:
        """Count what happened."""
        match happening:
            case Ended(job):
                self._count(job)
            case Refused(face, code, filter_list):
                self._requests.labels(face, "", code).inc()
                if filter_list is not None:
                    self._blocks.labels(filter_list).inc()
            case Stepped(steps):
                self._steps.inc(steps)
            case Drew():
                self._drew(happening)
            case Judged(_, _, reasons):
                for reason in filter(None, reasons):
                    self._abnormal.labels(reason).inc()
            case ModelLoaded(model, seconds):
                self._load.labels(model).observe(seconds)
            case WorkerLost(_, kind, _):
                self._restarts.labels(kind).inc()
            case StoreTried(place, str()):
                self._store_errors.labels(place).inc()
            case WebhookTried(_, str()):
                self._webhooks.inc()

    def collect(self) -> Iterator[Metric]:
        """What is read at the moment of a scrape."""
        now = self._read()
        queue = GaugeMetricFamily("sd35_queue_depth", "Jobs that wait.", labels=["priority"])
        for priority, count in now.queued.items():
            queue.add_metric([priority], count)
        yield queue
        models = GaugeMetricFamily("sd35_model_state", "1 for the state it is in.", labels=["model", "state"])
        for model, state in now.models.items():
            for one in MODEL_PLACES:
                models.add_metric([model, one], one == state)
        yield models
        yield GaugeMetricFamily("sd35_queue_longest_wait_seconds", "Of a job that waits.", now.longest_wait_s)
        yield GaugeMetricFamily("sd35_ready", "Whether a job would be taken and worked on.", now.is_ready)
        yield GaugeMetricFamily("sd35_spooled_images", "Pictures that wait for the store.", now.spooled)

    def _count(self, job: Job) -> None:
        self._requests.labels(job.face, job.spec.model, job.state.value).inc()
        if job.images:
            self._images.labels(job.spec.model).inc(len(job.images))
        for phase, seconds in job.seconds.items():
            (self._wait if phase == "queue" else self._phase.labels(phase)).observe(seconds)
        if job.peak_vram_bytes is not None:
            self._peak.observe(job.peak_vram_bytes)

    def _drew(self, drew: Drew) -> None:
        self._batch.observe(drew.pictures)
        if drew.free_vram_bytes is not None and drew.total_vram_bytes is not None:
            # The last part of a worker's name changes with every restart; the series should not.
            worker = drew.worker.rpartition(":")[0]
            self._vram.labels(worker, "free").set(drew.free_vram_bytes)
            self._vram.labels(worker, "total").set(drew.total_vram_bytes)
