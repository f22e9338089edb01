"""The native face, over real HTTP to a server with the null engine."""

import hashlib
import http.client
import io
import json
import re
import time
from urllib.parse import parse_qs, urlsplit

import pytest
from PIL import Image

from .conftest import Served, ServerFactory


def test_job_comes_to_its_picture(served: Served) -> None:
    """A job is acknowledged with its place, drawn, and its picture is what its hash says."""
    answer = served.client.post(
        "/api/v1/jobs", json={"prompt": "a fox", "width": 64, "height": 32, "seed": 7, "n": 2}
    )
    assert answer.status_code == 202
    accepted = answer.json()
    assert answer.headers["location"] == f"/api/v1/jobs/{accepted['id']}"
    job = served.end(accepted["id"])
    assert (job["state"], job["attempts"], job["error"]) == ("succeeded", 1, None)
    assert [image["seed"] for image in job["images"]] == [7, 8]
    content = served.client.get(job["images"][0]["url"]).content
    assert hashlib.sha256(content).hexdigest() == job["images"][0]["sha256"]
    image = Image.open(io.BytesIO(content))
    recipe = json.loads(image.text["sd35"])
    assert image.size == (64, 32)
    assert recipe["seed"] == 7
    assert "prompt" not in recipe


def test_gaps_are_filled_when_accepted(served: Served) -> None:
    """What was not said is the model's recommendation, and the seed is fixed before anything is drawn."""
    request = served.post()["request"]
    assert (request["num_inference_steps"], request["guidance_scale"]) == (28, 4.0)
    assert isinstance(request["seed"], int)


def test_unknown_field_is_refused(served: Served) -> None:
    """A misspelt field is named, not ignored."""
    answer = served.client.post("/api/v1/jobs", json={"prompt": "a fox", "widht": 64})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"
    assert "widht" in answer.json()["error"]["message"]


def test_request_that_does_not_fit_is_refused_in_words(served: Served) -> None:
    """The request's own checks answer at once, and a retry is not invited."""
    answer = served.client.post("/api/v1/jobs", json={"prompt": "a fox", "width": 100})
    assert answer.status_code == 400
    assert "multiple of 16" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"


def test_put_is_idempotent(served: Served) -> None:
    """The same name and body give the same job; the same name with another body is a conflict."""
    body = {"prompt": "a fox", "width": 64, "height": 64}
    first = served.client.put("/api/v1/jobs/mine-1", json=body).json()
    served.end(first["id"])
    again = served.client.put("/api/v1/jobs/mine-1", json=body).json()
    other = served.client.put("/api/v1/jobs/mine-1", json={**body, "prompt": "a cat"})
    assert (again["id"], again["attempts"]) == (first["id"], 1)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")


def test_list_pages_without_gap_or_repeat(served: Served) -> None:
    """Following `next` shows every job once, newest first."""
    made = [served.post(seed=seed)["id"] for seed in range(5)]
    for job_id in made:
        served.end(job_id)
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = served.client.get(
            f"/api/v1/jobs?limit=2&state=succeeded&cursor={cursor}".removesuffix("&cursor=")
        )
        seen += [job["id"] for job in page.json()["data"]]
        cursor = page.json()["next"]
    assert seen[:5] == made[::-1]
    assert len(seen) == len(set(seen))
    assert served.client.get("/api/v1/jobs?cursor=nonsense").status_code == 400


def test_events_are_replayed_from_the_last_one_seen(served: Served) -> None:
    """A cut stream goes on after `Last-Event-ID`, and the end is its last word."""
    job_id = served.post(num_inference_steps=4)["id"]
    events = list(served.events(job_id))
    ids = [int(event[0]) for event in events]
    assert ids == sorted(set(ids))
    assert events[-1][2]["state"] == "succeeded"
    done = [data["done"] for _, name, data in events if name == "progress"]
    assert (done, done[-1]) == (sorted(set(done)), 4)  # steps that follow at once need not all be told
    assert list(served.events(job_id, events[2][0])) == events[3:]


def test_unknown_job_and_route_and_method(served: Served) -> None:
    """Each has its code in the one shape of errors."""
    for method, path, status, code in (
        ("GET", "/api/v1/jobs/job_none", 404, "not_found"),
        ("GET", "/api/v1/nothing", 404, "not_found"),
        ("PATCH", "/api/v1/jobs", 405, "method_not_allowed"),
        ("GET", "/files/.hidden", 403, "forbidden"),
        ("GET", "/files/a.png?expires=1&signature=0", 403, "forbidden"),
    ):
        answer = served.client.request(method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_head_works_where_get_does(served: Served) -> None:
    """HEAD has GET's status and headers, and no body."""
    for path in ("/livez", "/readyz", "/api/v1/models", "/api/v1/jobs", "/v1/models"):
        head, get = served.client.head(path), served.client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]


def test_a_picture_is_fetched_once(served: Served) -> None:
    """Its address stays the same, a copy lasts as long as the address, and whoever has one is told so."""
    job_id = served.end(served.post()["id"])["id"]
    addresses = set()
    for _ in range(3):
        addresses.add(served.job(job_id)["images"][0]["url"])
        time.sleep(0.7)  # with seconds in it, an address would have changed
    assert len(addresses) <= 2  # a grid of ten minutes may have been crossed
    address = addresses.pop()
    first = served.client.get(address)
    image = served.job(job_id)["images"][0]
    assert first.headers["etag"] == f'"{image["sha256"]}"'
    lasts = re.fullmatch(r"private, max-age=(\d+), immutable", first.headers["cache-control"])
    assert lasts is not None
    ends = int(parse_qs(urlsplit(address).query)["expires"][0])
    assert abs(time.time() + int(lasts[1]) - ends) < 10
    again = served.client.get(address, headers={"If-None-Match": f'"other", {first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert served.client.get(address, headers={"If-None-Match": '"other"'}).content == first.content


def test_foreign_host_name_is_refused(served: Served) -> None:
    """A page that points its own name at this server gets nothing."""
    assert served.client.get("/api/v1/models", headers={"Host": "evil.example"}).status_code == 400


def test_long_body_is_refused(served: Served) -> None:
    """A body beyond the limit is not read."""
    answer = served.client.post("/v1/images/generations", content=b"x" * 300_000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_long_body_is_refused_where_pictures_may_come(served: Served) -> None:
    """A job's body may hold a picture, and ends where that does."""
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", "/api/v1/jobs")
    connection.putheader("Content-Length", "30000000")
    connection.endheaders()
    answer = connection.getresponse()
    assert (answer.status, b"request_too_large" in answer.read()) == (413, True)
    connection.close()


@pytest.mark.parametrize("path", ["/v1/images/generations", "/sdapi/v1/txt2img"])
def test_long_body_of_untold_length_is_refused(served: Served, path: str) -> None:
    """One that comes in pieces is refused as soon as it is too long, for that reason."""
    pieces = iter([b'{"prompt":"', *[b"a" * 1000] * 400, b'"}'])
    answer = served.client.post(path, content=pieces, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert "longer than" in answer.text


@pytest.mark.parametrize("values", ["1," * 300_000 + "1", "[" * 300_000, '{"a":' * 300_000])
def test_a_body_of_small_values_is_refused(served: Served, values: str) -> None:
    """Room for a picture is none for a million values, which would keep everyone waiting."""
    body = f'{{"prompt":"a fox","x":[{values}]}}'
    answer = served.client.post("/api/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, "values" in answer.json()["error"]["message"]) == (413, True)


@pytest.mark.parametrize("half", ["\\ud83d", "\\u0000"])
@pytest.mark.parametrize("face", ["/api/v1/jobs", "/v1/images/generations", "/sdapi/v1/txt2img"])
def test_half_a_character_is_refused(served: Served, face: str, half: str) -> None:
    """Such a prompt could be stored and never shown again: the list of jobs would fail for ever."""
    for body in (f'{{"prompt":"a fox {half}"}}', f'{{"prompt":"a fox","negative_prompt":"{half}"}}'):
        answer = served.client.post(face, content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, "no text" in answer.text) == (400, True)
    assert served.client.get("/api/v1/jobs").status_code == 200


@pytest.mark.parametrize("last", ["9" * 5000, "x", "-1"])
def test_a_foreign_event_id_is_refused(served: Served, last: str) -> None:
    """However long it is."""
    address = f"/api/v1/jobs/{served.post()['id']}/events"
    answer = served.client.get(address, headers={"Last-Event-ID": last})
    assert (answer.status_code, "Last-Event-ID" in answer.text) == (400, True)


def test_capabilities_tell_what_may_be_asked(served: Served) -> None:
    """A client can build its form from them."""
    found = served.client.get("/api/v1/capabilities").json()
    assert [model["id"] for model in found["models"]] == ["demo"]
    assert found["output_formats"] == ["png", "jpeg", "webp"]
    assert (found["image"]["formats"], found["strength"]) == (["png", "jpeg", "webp"], 0.6)
    assert found["image"]["max_bytes"] == 16 << 20


def test_cancel_stops_within_a_step(rough: Served) -> None:
    """A running job ends at once, and the worker goes on with the next one."""
    slow = rough.post(prompt="slow")["id"]
    rough.until(slow, lambda name, data: name == "progress" and data["done"] >= 2)
    assert rough.client.delete(f"/api/v1/jobs/{slow}").json()["state"] == "cancelled"
    pid = rough.worker_pid()
    assert rough.end(rough.post()["id"])["state"] == "succeeded"
    assert rough.worker_pid() == pid
    assert rough.job(slow)["progress"]["done"] < 100


def test_cancelled_in_the_queue_is_never_drawn(rough: Served) -> None:
    """A waiting job that is cancelled has no attempt."""
    slow, waiting = rough.post(prompt="slow")["id"], rough.post()["id"]
    assert rough.client.delete(f"/api/v1/jobs/{waiting}").json()["state"] == "cancelled"
    rough.client.delete(f"/api/v1/jobs/{slow}")
    assert rough.end(rough.post()["id"])["state"] == "succeeded"
    assert rough.job(waiting)["attempts"] == 0


def test_full_queue_says_when_to_come_again(start_server: ServerFactory) -> None:
    """Beyond the bound: 429 with Retry-After, and not ready."""
    served = start_server(rough=True, max_queued=1)
    slow = served.post(prompt="slow")["id"]
    served.until(slow, lambda name, data: name == "progress")
    served.post()
    answer = served.client.post("/api/v1/jobs", json={"prompt": "a fox"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    assert int(answer.headers["retry-after"]) >= 1
    assert served.client.get("/readyz").status_code == 503


def test_deadline_ends_a_job(rough: Served) -> None:
    """A job that is not done in time expires, wherever it is."""
    job = rough.end(rough.post(prompt="slow", deadline_s=0.3)["id"])
    assert (job["state"], job["error"]["code"]) == ("expired", "deadline_passed")


def test_higher_priority_goes_first(rough: Served) -> None:
    """Of two waiting jobs the later one with the higher priority is drawn before."""
    slow = rough.post(prompt="slow")["id"]
    rough.until(slow, lambda name, data: name == "progress")
    low, high = rough.post(priority="low")["id"], rough.post(priority="high")["id"]
    assert (rough.job(high)["queue_position"], rough.job(low)["queue_position"]) == (0, 1)
    rough.client.delete(f"/api/v1/jobs/{slow}")
    assert rough.end(high)["started_at"] < rough.end(low)["started_at"]
