"""Records of generations: what they tell, who may see them, and how they are taken away."""

import csv
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from sd35.cli.main import main
from sd35.errors import RequestError
from sd35.serving import records
from sd35.serving.jobs import JobImage, State
from sd35.serving.keys import KeyStore
from sd35.serving.records import Which
from sd35.serving.store import Store

from .conftest import Served, ServerFactory
from .test_fair_queue import job


@pytest.fixture
def store(url: str) -> Any:
    """Seven jobs of two keys, a second apart; the last one failed, the first is abnormal."""
    store = Store(url)
    for index in range(7):
        one = job("a" if index % 2 else "b")
        one.created_at = 1000.0 + index
        one.id, one.abnormal = f"job_{index}", "black" if index == 0 else None
        store.accept(one).result()
        one.state = State.FAILED if index == 6 else State.SUCCEEDED
        store.end_attempt(one, one.state.value, 2000.0).result()
    yield store
    store.close()


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (Which(), "6543210"),
        (Which(since=1002, until=1005), "432"),
        (Which(key_id="a"), "531"),
        (Which(state=State.FAILED), "6"),
        (Which(abnormal=True), "0"),
        (Which(abnormal=False, key_id="b"), "642"),
        (Which(model="other"), ""),
    ],
)
def test_filters(store: Store, monkeypatch: pytest.MonkeyPatch, which: Which, expected: str) -> None:
    """Each filter keeps what it names, newest first, over pages that are smaller than the whole."""
    monkeypatch.setattr(records, "PAGE", 2)
    assert "".join(record["id"][-1] for record in records.every(store, which)) == expected


def test_jobs_of_one_moment_are_all_shown(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page may end between two jobs that were made at the same time."""
    monkeypatch.setattr(records, "PAGE", 2)
    for index in range(5):
        one = job("twin")
        one.id, one.created_at = f"twin_{index}", 5000.0
        store.accept(one).result()
    found = [record["id"] for record in records.every(store, Which(key_id="twin"))]
    assert found == [f"twin_{index}" for index in (4, 3, 2, 1, 0)]


def test_record_tells_the_whole_story() -> None:
    """Who, what, how long each phase took, and what came of it."""
    one = job("key")
    one.seconds = {"queue": 1.5, "denoise": 2.5}
    one.images = [JobImage("a.png", 7, 64, 32, "ab", 9)]
    one.state, one.peak_vram_bytes, one.token = State.SUCCEEDED, 2**30, 2
    record = records.record_of(one)
    assert (record["key_id"], record["prompt"], record["state"]) == ("key", "a fox", "succeeded")
    assert (record["queue_s"], record["denoise_s"], record["load_s"]) == (1.5, 2.5, None)
    assert (record["peak_vram_bytes"], record["attempts"]) == (2**30, 2)
    assert record["images"] == [{"name": "a.png", "seed": 7, "sha256": "ab"}]


def test_three_formats_say_the_same(store: Store) -> None:
    """JSON, JSON lines and CSV hold the same rows; no record is a valid file of each as well."""
    rows = list(records.every(store, Which()))
    text = {form: "".join(records.written(iter(rows), form)) for form in records.FORMATS}
    assert json.loads(text["json"]) == rows
    assert [json.loads(line) for line in text["jsonl"].splitlines()] == rows
    table = list(csv.DictReader(io.StringIO(text["csv"])))
    assert [row["id"] for row in table] == [row["id"] for row in rows]
    assert [float(row["megapixel_steps"]) for row in table] == [row["megapixel_steps"] for row in rows]
    assert json.loads("".join(records.written([], "json"))) == []
    assert "".join(records.written([], "csv")).startswith("id,client_id,")


def test_csv_disarms_formulas() -> None:
    """A prompt that a spreadsheet would run comes out as text; a line break stays inside its cell."""
    evil = records.record_of(job())
    evil["prompt"], evil["negative_prompt"] = '=HYPERLINK("http://x")', "two\nlines"
    row = next(csv.DictReader(io.StringIO("".join(records.written([evil], "csv")))))
    assert row["prompt"] == '\'=HYPERLINK("http://x")'
    assert row["negative_prompt"] == "two\nlines"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12.5", 12.5),
        ("1970-01-02", 86400.0),
        ("1970-01-01T02:00+01:00", 3600.0),
        ("1970-01-01T00:01Z", 60.0),
    ],
)
def test_moments(text: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are understood as people and programs write them, in UTC wherever the server stands."""
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    time.tzset()
    try:
        assert records.moment(text) == seconds
    finally:
        monkeypatch.undo()
        time.tzset()


def test_nonsense_moment_is_refused() -> None:
    """With the ways to write one."""
    with pytest.raises(RequestError, match="'yesterday' is no time: write 2026-11-01"):
        records.moment("yesterday")


def test_older_database_gets_the_new_columns(url: str) -> None:
    """A database from before these columns opens, and its rows have nothing there."""
    first = Store(url)
    one = first.accept(job("a")).result()
    first.close()
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for column in ("face", "worker", "abnormal", "diagnosis"):
            connection.execute(sa.text(f"ALTER TABLE jobs DROP COLUMN {column}"))
    engine.dispose()
    again = Store(url)
    found = again.get(one.id)
    again.close()
    assert found == one


def test_records_over_http(served: Served) -> None:
    """A drawn picture's record has its phases, its hash and the worker; pages follow one another."""
    made = [served.end(served.post(seed=seed)["id"]) for seed in range(3)]
    served.client.post("/v1/images/generations", json={"prompt": "a cat", "size": "64x64"}).raise_for_status()
    page = served.client.get("/api/v1/records?limit=2&state=succeeded").json()
    following = served.client.get(f"/api/v1/records?limit=2&cursor={page['next']}").json()
    rows = page["data"] + following["data"]
    assert [row["id"] for row in rows[1:]] == [one["id"] for one in made[::-1]]
    assert [row["face"] for row in rows] == ["openai", "native", "native", "native"]
    row = rows[1]
    assert row["images"][0]["sha256"] == made[2]["images"][0]["sha256"]
    assert row["worker"].endswith(f":{served.worker_pid()}")
    assert (row["precision"], row["checkpoint_sha256"]) == ("null", "null")
    assert min(row["queue_s"], row["save_s"]) >= 0
    lines = served.client.get("/api/v1/records/export?format=jsonl&until=2100-01-01").text.splitlines()
    assert [json.loads(line)["id"] for line in lines][: len(rows)] == [one["id"] for one in rows]
    assert served.client.get("/api/v1/records?since=yesterday").status_code == 400


def test_a_key_sees_its_own_records(start_server: ServerFactory, tmp_path: Path) -> None:
    """Others' rows are not shown, and asking for them is refused; an admin sees all."""
    keys = KeyStore(tmp_path / "data")
    (mine, one), (_, other) = keys.add("one"), keys.add("other")
    _, admin = keys.add("admin", ("admin",))
    keys.close()
    served = start_server()
    for secret in (one, other):
        served.client.headers["Authorization"] = f"Bearer {secret}"
        served.end(served.post()["id"])
    rows = served.client.get("/api/v1/records").json()["data"]
    assert len(rows) == 1
    assert rows[0]["key_id"] != mine.key_id
    assert served.client.get(f"/api/v1/records?key_id={mine.key_id}").status_code == 403
    assert len(served.client.get("/api/v1/records/export").text.splitlines()) == 1
    served.client.headers["Authorization"] = f"Bearer {admin}"
    assert len(served.client.get("/api/v1/records").json()["data"]) == 2
    served.client.headers["Authorization"] = "Bearer nonsense"
    assert served.client.get("/api/v1/records").status_code == 401


def test_export_verb(store: Store, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`sd35 records export` writes what was asked for, while the database is in use."""
    where = ["--database", url] if url.startswith("postgresql") else ["--data-dir", str(tmp_path)]
    assert main(["records", "export", "--state", "failed", *where]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == "job_6"
    file = tmp_path / "records.csv"
    assert main(["records", "export", "--format", "csv", "--abnormal", "-o", str(file), *where]) == 0
    assert [row["id"] for row in csv.DictReader(io.StringIO(file.read_text()))] == ["job_0"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--state", "lost"], 2, "'lost' is no state: choose one of queued"),
        (["--since", "soon"], 2, "'soon' is no time"),
        (["--data-dir", "/nowhere"], 4, "There are no records in /nowhere"),
        (["-o", "/nowhere/x.csv"], 4, "can't be written (No such file or directory)"),
    ],
)
def test_export_verb_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    """One sentence, and the exit code of its kind."""
    Store(f"sqlite:///{tmp_path / 'jobs.sqlite3'}").close()
    assert main(["records", "export", "--data-dir", str(tmp_path), *words]) == code
    assert said in capsys.readouterr().err
