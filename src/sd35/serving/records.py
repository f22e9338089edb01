"""Records: one row for each generation, to look things up and to take away.

A job's row in the database is its record; this file asks for rows and gives them a flat shape, the same in
JSON and in CSV. Exports are read in pages, so that a year of them needs no more memory than a day. In CSV a
text that a spreadsheet would take for a formula gets an apostrophe before it: prompts are written by
strangers. https://owasp.org/www-community/attacks/CSV_Injection
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa

from sd35.errors import RequestError
from sd35.serving.happenings import Diagnosed, Happening
from sd35.serving.jobs import Job, Spec, State
from sd35.serving.store import Store, job_of
from sd35.serving.tables import jobs

PHASES = ("queue", "load", "encode", "denoise", "decode", "save")
FORMATS = ("jsonl", "json", "csv")
Format = Literal["jsonl", "json", "csv"]
PAGE = 500
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

Before = tuple[float, str]  # created_at and id of the last row seen


@dataclass(frozen=True, kw_only=True)
class Which:
    """Which records; None means any. Times are seconds since 1970: from `since` on, to before `until`."""

    since: float | None = None
    until: float | None = None
    key_id: str | None = None
    model: str | None = None
    state: State | None = None
    abnormal: bool | None = None


def page(store: Store, which: Which, before: Before | None, limit: int) -> list[Job]:
    """Jobs, newest first, from below `before` on."""
    found = sa.select(jobs).where(*_conditions(which))
    if before is not None:
        at, job_id = before
        found = found.where((jobs.c.created_at < at) | ((jobs.c.created_at == at) & (jobs.c.id < job_id)))
    ordered = found.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
    return [job_of(row) for row in store.rows(ordered)]


def every(store: Store, which: Which) -> Iterator[dict[str, Any]]:
    """All records, newest first."""
    before: Before | None = None
    while found := page(store, which, before, PAGE):
        yield from map(record_of, found)
        before = (found[-1].created_at, found[-1].id)


def record_of(job: Job) -> dict[str, Any]:
    """A job as a flat row; seconds of a phase that it never came to are None."""
    spec, error = job.spec, job.error
    return {
        "id": job.id,
        "client_id": job.client_id,
        "key_id": job.key_id,
        "face": job.face,
        "state": job.state.value,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "priority": job.priority.value,
        "model": spec.model,
        "checkpoint_sha256": job.checkpoint_sha256,
        "precision": job.precision,
        "worker": job.worker,
        "prompt": spec.prompt,
        "negative_prompt": spec.negative_prompt,
        "width": spec.width,
        "height": spec.height,
        "num_inference_steps": spec.num_inference_steps,
        "guidance_scale": spec.guidance_scale,
        "seed": spec.seed,
        "n": spec.n,
        "output_format": spec.output_format,
        "image_sha256": spec.image,
        "strength": spec.strength,
        "megapixel_steps": spec.cost,
        **{f"{phase}_s": job.seconds.get(phase) for phase in PHASES},
        "peak_vram_bytes": job.peak_vram_bytes,
        "attempts": job.token,
        "deaths": job.deaths,
        "error_code": None if error is None else error.code,
        "error_message": None if error is None else error.message,
        "abnormal": job.abnormal,
        "diagnosis": job.diagnosis,
        "images": [{"name": image.name, "seed": image.seed, "sha256": image.sha256} for image in job.images],
    }


_BLANK = Spec(
    prompt="", negative_prompt="", model="", width=0, height=0, num_inference_steps=0, guidance_scale=0.0,
    seed=0, n=0,
)  # fmt: skip
COLUMNS = tuple(record_of(Job(spec=_BLANK)))


def written(records: Iterable[dict[str, Any]], form: Format) -> Iterator[str]:
    """The text of an export, piece by piece."""
    if form == "csv":
        yield from _csv(records)
    elif form == "jsonl":
        yield from (_json(record) + "\n" for record in records)
    else:
        separator = "["
        for record in records:
            yield separator + "\n" + _json(record)
            separator = ","
        yield "[]\n" if separator == "[" else "\n]\n"


def keep_diagnosis(store: Store, happening: Happening) -> None:
    """Observe: what a second opinion found out about a job goes into its record."""
    if isinstance(happening, Diagnosed):
        job_id, text = happening.job.id, happening.text
        store.write(
            lambda connection: connection.execute(
                sa.update(jobs).where(jobs.c.id == job_id).values(diagnosis=text)
            )
        )


def moment(text: str) -> float:
    """Seconds since 1970 of `1793491200`, `2026-11-01` or `2026-11-01T08:30+01:00` (UTC, if none is said)."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise RequestError(
            f"{text!r} is no time: write 2026-11-01, 2026-11-01T08:30Z or seconds since 1970."
        ) from error
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _conditions(which: Which) -> list[sa.ColumnElement[bool]]:
    equal = {
        jobs.c.key_id: which.key_id,
        jobs.c.model: which.model,
        jobs.c.state: which.state and which.state.value,
    }
    conditions = [column == value for column, value in equal.items() if value is not None]
    if which.since is not None:
        conditions.append(jobs.c.created_at >= which.since)
    if which.until is not None:
        conditions.append(jobs.c.created_at < which.until)
    if which.abnormal is not None:
        conditions.append(jobs.c.abnormal.is_not(None) if which.abnormal else jobs.c.abnormal.is_(None))
    return conditions


def _json(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False)


def _csv(records: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Pictures become two columns, names and hashes, a space between several."""
    buffer = io.StringIO()
    columns = [name for name in COLUMNS if name != "images"]
    writer = csv.writer(buffer)
    writer.writerow([*columns, "images", "images_sha256"])
    for record in records:
        yield _taken(buffer)
        names = " ".join(image["name"] for image in record["images"])
        hashes = " ".join(image["sha256"] for image in record["images"])
        writer.writerow([*(_cell(record[name]) for name in columns), names, hashes])
    yield _taken(buffer)


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _taken(buffer: io.StringIO) -> str:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text
