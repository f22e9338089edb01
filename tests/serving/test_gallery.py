"""Finding and erasing pictures, over HTTP to servers with the null engine."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sd35.serving.keys import KeyStore, Quotas

from .conftest import Served, ServerFactory


def listed(served: Served, **query: str | bool | int) -> list[dict[str, object]]:
    """One page of jobs."""
    return served.client.get("/api/v1/jobs", params=query).raise_for_status().json()["data"]


def new_key(folder: Path, quotas: Quotas | None = None) -> dict[str, str]:
    """The header of a key made for this data folder."""
    keys = KeyStore(folder)
    header = {"Authorization": f"Bearer {keys.add('someone', quotas=quotas)[1]}"}
    keys.close()
    return header


def test_search_looks_into_prompts(served: Served) -> None:
    """Words are found whatever their capitals, and signs that SQL knows mean themselves."""
    heron = served.end(served.post(prompt="A Grey HERON at dawn")["id"])
    percent = served.end(served.post(prompt="100% wool")["id"])
    assert [job["id"] for job in listed(served, q="heron")] == [heron["id"]]
    assert [job["id"] for job in listed(served, q="100%")] == [percent["id"]]
    assert listed(served, q="%heron") == []


def test_a_picture_is_found_by_its_hash(served: Served) -> None:
    """The SHA-256 of a file leads to the job that drew it; another one to nothing; nonsense is refused."""
    job = served.end(served.post(n=2, seed=5)["id"])
    second = job["images"][1]["sha256"]
    assert [found["id"] for found in listed(served, sha256=second)] == [job["id"]]
    assert listed(served, sha256="0" * 64) == []
    assert served.client.get("/api/v1/jobs?sha256=xyz").status_code == 400


def test_one_picture_is_erased(served: Served) -> None:
    """The file is gone, the other one and the words stay."""
    job = served.end(served.post(prompt="two herons", n=2, seed=7)["id"])
    first, second = job["images"]
    answer = served.client.delete(f"/api/v1/jobs/{job['id']}/images/7").raise_for_status().json()
    assert [image["seed"] for image in answer["images"]] == [8]
    assert answer["request"]["prompt"] == "two herons"
    assert served.client.get(first["url"]).status_code == 404
    content = served.client.get(second["url"]).content
    assert hashlib.sha256(content).hexdigest() == second["sha256"]
    assert served.client.delete(f"/api/v1/jobs/{job['id']}/images/7").status_code == 404


def test_pictures_erased_at_once_stay_erased(start_server: ServerFactory) -> None:
    """Of erasings that come together none brings back what another took, also after a restart."""
    served = start_server(max_images=8)
    job = served.end(served.post(n=8, seed=0)["id"])
    addresses = [f"/api/v1/jobs/{job['id']}/images/{seed}" for seed in range(8)]
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(served.client.delete, addresses))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert served.job(job["id"])["images"] == []
    served.kill()
    assert start_server().job(job["id"])["images"] == []


def test_the_words_go_with_the_last_picture(start_server: ServerFactory, tmp_path: Path) -> None:
    """Neither answers nor events nor the database tell the prompt any more, also after a restart."""
    served = start_server()
    job = served.end(served.post(prompt="a secret heron", previews=2)["id"])
    served.client.delete(f"/api/v1/jobs/{job['id']}/images").raise_for_status()
    assert served.job(job["id"])["request"]["prompt"] == ""
    assert list(served.events(job["id"])) == []
    assert listed(served, with_images=True) == []
    assert [one["id"] for one in listed(served)] == [job["id"]]
    served.stop()
    again = start_server()
    assert again.job(job["id"])["images"] == []
    assert again.job(job["id"])["request"]["prompt"] == ""
    assert not list((tmp_path / "data" / "pictures").glob("*.png"))


def test_quotas_count_what_was_erased(start_server: ServerFactory, tmp_path: Path) -> None:
    """Erasing gives nothing back: the pictures were drawn."""
    served = start_server()
    served.client.headers.update(new_key(tmp_path / "data", Quotas(images_per_day=3)))
    job = served.end(served.post(n=3)["id"])
    served.client.delete(f"/api/v1/jobs/{job['id']}/images").raise_for_status()
    refused = served.client.post("/api/v1/jobs", json={"prompt": "a fox"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")


def test_a_job_that_goes_on_is_not_erased(rough: Served) -> None:
    """It is to be cancelled first; then there is nothing left of its words either."""
    job = rough.post(prompt="slow heron")
    refused = rough.client.delete(f"/api/v1/jobs/{job['id']}/images")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "job_not_over")
    rough.client.delete(f"/api/v1/jobs/{job['id']}").raise_for_status()
    rough.client.delete(f"/api/v1/jobs/{job['id']}/images").raise_for_status()
    assert rough.job(job["id"])["request"]["prompt"] == ""


def test_a_waiting_job_tells_when(rough: Served) -> None:
    """Once the server knows its rate, a job that waits has an ETA that grows along the queue."""
    rough.end(rough.post(prompt="brief heron")["id"])
    jobs = [rough.post(prompt="slow heron") for _ in range(3)]
    etas = [rough.job(job["id"])["eta_s"] for job in jobs]
    for job in jobs:
        rough.client.delete(f"/api/v1/jobs/{job['id']}")
    assert 0 < etas[1] < etas[2]
    assert abs(etas[2] / etas[1] - 2) < 1e-6


def test_strangers_erase_nothing(start_server: ServerFactory, tmp_path: Path) -> None:
    """Another key's job is as good as not there."""
    served = start_server()
    owner, stranger = (new_key(tmp_path / "data") for _ in range(2))
    served.client.headers.update(owner)
    job = served.end(served.post()["id"])
    assert served.client.delete(f"/api/v1/jobs/{job['id']}/images", headers=stranger).status_code == 404
    assert len(served.job(job["id"])["images"]) == 1
