"""Keys, prompt filter and signed addresses, met by clients of a running server."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sd35.errors import RequestError
from sd35.serving.keys import KeyStore, Quotas
from sd35.serving.neighbours import open_storage, signed_urls
from sd35.serving.settings import ServerSettings

from .conftest import Served, ServerFactory

JOB = {"prompt": "a fox", "width": 64, "height": 64}
POLICY = """
lists:
  animals:
    terms: [badger]
keys:
  default: [animals]
"""


def asked(served: Served, key: str | None, **body: object) -> tuple[int, str]:
    """Status and code of a job's POST."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    answer = served.client.post("/api/v1/jobs", json={**JOB, **body}, headers=headers)
    return answer.status_code, (answer.json().get("error") or {}).get("code", "")


def test_once_there_is_a_key_every_route_asks_for_one(start_server: ServerFactory, tmp_path: Path) -> None:
    """Anyone before; then 401 without, 403 with one that may only look, 202 with one that may draw."""
    served = start_server()
    assert asked(served, None)[0] == 202
    keys = KeyStore(tmp_path / "data")
    (_, drawing), (_, looking) = keys.add("drawing"), keys.add("looking", ["read"])
    assert asked(served, None) == (401, "unauthorized")
    assert asked(served, drawing[:-1] + "x") == (401, "unauthorized")
    assert asked(served, looking) == (403, "forbidden")
    assert asked(served, drawing)[0] == 202
    assert served.client.get("/v1/models").status_code == 401
    assert served.client.get("/v1/models", headers={"Authorization": f"Bearer {looking}"}).status_code == 200
    assert served.client.get("/livez").status_code == 200


def test_quotas_hold_for_requests_that_come_together(start_server: ServerFactory, tmp_path: Path) -> None:
    """Twenty at once get no more than one after the other would."""
    served = start_server()
    keys = KeyStore(tmp_path / "data")
    header = {"Authorization": f"Bearer {keys.add('three', quotas=Quotas(images_per_day=3))[1]}"}
    keys.close()

    def ask(_: int) -> int:
        return served.client.post("/api/v1/jobs", json={"prompt": "a fox"}, headers=header).status_code

    with ThreadPoolExecutor(20) as clients:
        assert sorted(clients.map(ask, range(20))) == [202] * 3 + [429] * 17


def test_quotas_of_a_day_hold(start_server: ServerFactory, tmp_path: Path) -> None:
    """A job that would go beyond the key's pictures is refused, and says by how much; others go on."""
    served, keys = start_server(), KeyStore(tmp_path / "data")
    (_, three), (_, free) = keys.add("three", quotas=Quotas(images_per_day=3)), keys.add("free")
    assert asked(served, three, n=2)[0] == 202
    assert asked(served, three, n=2) == (429, "quota_exceeded")
    assert asked(served, three, n=1)[0] == 202
    assert asked(served, three, n=1) == (429, "quota_exceeded")
    assert asked(served, free, n=4)[0] == 202


def test_the_filter_stands_before_the_queue(start_server: ServerFactory, tmp_path: Path) -> None:
    """A forbidden word, disguised or in the negative prompt, is refused with the list's name."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY, encoding="utf-8")
    served = start_server(policy=policy)
    assert asked(served, None)[0] == 202
    assert asked(served, None, prompt="a B-a-d-g-e-r") == (400, "prompt_blocked")
    assert asked(served, None, negative_prompt="badger") == (400, "prompt_blocked")


def test_pictures_have_signed_addresses(start_server: ServerFactory) -> None:
    """The address in the job works; the same without or with another signature does not."""
    served = start_server()
    url = served.end(served.post()["id"])["images"][0]["url"]
    assert served.client.get(url).content.startswith(b"\x89PNG")
    assert served.client.get(url.partition("?")[0]).status_code == 403
    assert served.client.get(url[:-1] + ("0" if url[-1] != "0" else "1")).status_code == 403


def test_a_bucket_that_is_none_is_refused(tmp_path: Path) -> None:
    """`--bucket` says which form it wants."""
    settings = ServerSettings(bucket="pictures")
    with pytest.raises(RequestError, match="s3://NAME"):
        open_storage(settings, tmp_path, signed_urls(tmp_path))
