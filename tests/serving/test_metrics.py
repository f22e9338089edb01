"""What Prometheus scrapes, and the dashboard and rules that are made of it."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from sd35.serving.gauges import Gauges
from sd35.serving.happenings import (
    Drew,
    Ended,
    Happening,
    Judged,
    ModelLoaded,
    Observers,
    Refused,
    Stepped,
    StoreTried,
    WebhookTried,
    WorkerLost,
)
from sd35.serving.jobs import JobImage, State
from sd35.serving.keys import KeyStore
from sd35.serving.metrics import GIB, Metrics

from .conftest import ServerFactory
from .test_fair_queue import job

DEPLOY = Path(__file__).parents[2] / "deploy"
GAUGES = Gauges({"high": 1, "normal": 2, "low": 0}, 7.5, {"large": "vram", "demo": "on_disk"}, True, 3, None)


def scraped(*happenings: Happening) -> dict[str, float]:
    """Samples after these, by `name{label=value,...}` with labels in order."""
    metrics = Metrics(lambda: GAUGES)
    for happening in happenings:
        metrics.observe(happening)
    return samples(metrics.text().decode())


def samples(text: str) -> dict[str, float]:
    """All samples of an exposition."""
    found = {}
    for family in text_string_to_metric_families(text):
        for name, labels, value, *_ in family.samples:
            if "le" in labels:
                labels = {**labels, "le": f"{float(labels['le']):g}"}
            inside = ",".join(f"{key}={labels[key]}" for key in sorted(labels))
            found[f"{name}{{{inside}}}" if inside else name] = value
    return found


def ended(**found: object) -> Ended:
    """The end of a job of two pictures."""
    one = job("a")
    one.state, one.seconds, one.peak_vram_bytes = State.SUCCEEDED, {"queue": 1.5, "denoise": 4.0}, 7 * GIB
    one.images = [JobImage("x.png", seed, 64, 64, "ab", 9) for seed in (1, 2)]
    for name, value in found.items():
        setattr(one, name, value)
    return Ended(one)


def test_a_job_is_counted_with_its_phases() -> None:
    """One job ended: its outcome, its pictures, its wait, its phases and its peak."""
    found = scraped(ended(), ended(state=State.FAILED, images=[], seconds={}, peak_vram_bytes=None))
    assert found["sd35_requests_total{face=native,model=demo,outcome=succeeded}"] == 1
    assert found["sd35_requests_total{face=native,model=demo,outcome=failed}"] == 1
    assert found["sd35_images_total{model=demo}"] == 2
    assert (found["sd35_queue_wait_seconds_sum"], found["sd35_queue_wait_seconds_count"]) == (1.5, 1)
    assert found["sd35_phase_seconds_sum{phase=denoise}"] == 4.0
    assert "sd35_phase_seconds_sum{phase=queue}" not in found
    assert found[f"sd35_job_peak_vram_bytes_bucket{{le={8.0 * GIB:g}}}"] == 1
    assert found[f"sd35_job_peak_vram_bytes_bucket{{le={6.0 * GIB:g}}}"] == 0


@pytest.mark.parametrize(
    ("happening", "name", "value"),
    [
        (Refused("openai", "queue_full"), "sd35_requests_total{face=openai,model=,outcome=queue_full}", 1),
        (Refused("native", "prompt_blocked", "celebrities"), "sd35_filter_blocks_total{list=celebrities}", 1),
        (Stepped(4), "sd35_steps_total", 4),
        (Drew("w:1", 3), "sd35_batch_size_sum", 3),
        (Drew("host:1", 1, 10, 80), "sd35_vram_bytes{kind=free,worker=host}", 10),
        (Judged(job(), "w", ("black", None, "black")), "sd35_abnormal_images_total{reason=black}", 2),
        (ModelLoaded("large", 12.0), "sd35_model_load_seconds_sum{model=large}", 12),
        (WorkerLost("w", "silent", "no sign"), "sd35_worker_restarts_total{reason=silent}", 1),
        (StoreTried("database", "locked"), "sd35_storage_errors_total{place=database}", 1),
        (StoreTried("database", None), "sd35_storage_errors_total{place=database}", 0),
        (WebhookTried("http://x", "404"), "sd35_webhook_failures_total", 1),
        (WebhookTried("http://x", None), "sd35_webhook_failures_total", 0),
    ],
)
def test_each_happening_is_counted(happening: Happening, name: str, value: float) -> None:
    """Under its name and labels."""
    assert scraped(happening)[name] == value


def test_gauges_are_read_when_scraped() -> None:
    """Queue, models and readiness as they are now."""
    found = scraped()
    assert found["sd35_queue_depth{priority=normal}"] == 2
    assert found["sd35_model_state{model=large,state=vram}"] == 1
    assert found["sd35_model_state{model=demo,state=vram}"] == 0
    assert (found["sd35_queue_longest_wait_seconds"], found["sd35_ready"]) == (7.5, 1)
    assert found["sd35_spooled_images"] == 3


def test_what_may_go_wrong_is_shown_before_it_does() -> None:
    """Counters that alerts watch begin at zero: a rise from nothing would not be seen."""
    found = scraped()
    assert found["sd35_abnormal_images_total{reason=black}"] == 0
    assert found["sd35_worker_restarts_total{reason=killed}"] == 0
    assert found["sd35_requests_total{face=openai,model=large,outcome=failed}"] == 0


def test_an_observer_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """The others are told, and the log says what failed."""
    seen: list[Happening] = []

    def broken(_: Happening) -> None:
        raise ZeroDivisionError

    Observers(broken, seen.append).tell(Stepped(1))
    assert seen == [Stepped(1)]
    assert "an observer failed over Stepped" in caplog.text


def test_metrics_of_a_server(start_server: ServerFactory, tmp_path: Path) -> None:
    """A drawn picture and a refusal show at /metrics, which asks for a key once there is one."""
    served = start_server()
    served.end(served.post(num_inference_steps=5, n=2)["id"])
    served.client.post("/api/v1/jobs", json={"prompt": "a fox", "width": 100})
    served.client.post("/v1/images/generations", json={"size": "64x64"})
    found = samples(served.client.get("/metrics").text)
    assert found["sd35_requests_total{face=native,model=demo,outcome=succeeded}"] == 1
    assert found["sd35_requests_total{face=native,model=,outcome=invalid_request}"] == 1
    assert found["sd35_requests_total{face=openai,model=,outcome=invalid_request}"] == 1
    assert (found["sd35_images_total{model=demo}"], found["sd35_steps_total"]) == (2, 10)
    assert found["sd35_model_load_seconds_count{model=demo}"] == 1
    assert found["process_resident_memory_bytes"] > 1e6
    keys = KeyStore(tmp_path / "data")
    _, reader = keys.add("prometheus", ("read",))
    _, drawer = keys.add("phone", ("generate",))
    keys.close()
    for path in ("/metrics", "/api/v1/alerts"):
        assert served.client.get(path).status_code == 401
        for key, status in ((reader, 200), (drawer, 403)):
            answer = served.client.get(path, headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == status, path


def _expressions() -> dict[str, str]:
    """All PromQL of dashboard and rules, by where it stands."""
    board = json.loads((DEPLOY / "grafana/sd35.json").read_text())
    found = {f"panel {panel['title']}": t["expr"] for panel in board["panels"] for t in panel["targets"]}
    rules = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())
    return {**found, **{rule["alert"]: rule["expr"] for rule in rules["groups"][0]["rules"]}}


def test_dashboard_and_rules_ask_for_metrics_that_exist() -> None:
    """Every name in them is one that the server shows."""
    everything = [
        ended(),
        Refused("native", "x", "list"),
        Drew("w:1", 1, 1, 2),
        ModelLoaded("large", 1.0),
    ]
    shown = {name.partition("{")[0] for name in scraped(*everything)}
    asked = {name for text in _expressions().values() for name in re.findall(r"\bsd35_\w+", text)}
    assert len(asked) > 15
    assert asked <= shown


@pytest.mark.server
def test_promtool_accepts_the_metrics() -> None:
    """Names, units and help are as Prometheus wants them."""
    metrics = Metrics(lambda: GAUGES)
    metrics.observe(ended())
    run = subprocess.run(
        ["promtool", "check", "metrics"], input=metrics.text(), capture_output=True, check=False
    )
    assert (run.returncode, run.stdout + run.stderr) == (0, b"")


@pytest.mark.server
@pytest.mark.parametrize(
    "words",
    [
        ("check", "rules", "alerts.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
)
def test_promtool_accepts_the_rules(words: tuple[str, ...]) -> None:
    """The rules are valid, and each fires for its trouble and for nothing else."""
    run = subprocess.run(
        ["promtool", *words], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.server
def test_promtool_accepts_the_dashboards_queries(tmp_path: Path) -> None:
    """Each panel's PromQL parses, with Grafana's variables filled in."""
    rules = [
        {
            "record": f"panel:{index}",
            "expr": text.replace("$__rate_interval", "5m").replace("$instance", ".*"),
        }
        for index, text in enumerate(_expressions().values())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    run = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
