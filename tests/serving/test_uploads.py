"""Pictures that clients send to begin with: what is kept of them, and for how long."""

import asyncio
import base64
import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sd35.errors import MissingError
from sd35.pictures_in.source_picture import SourcePicture
from sd35.serving.native import BASE64_PIECE, from_base64
from sd35.serving.problems import Problem, ServiceError
from sd35.serving.store import Store
from sd35.serving.uploads import Upload, Uploads, read_upload

from .conftest import Served, ServerFactory

RED = Image.new("RGB", (90, 60), (200, 30, 20))
SOURCE = SourcePicture(90, 60, RED.tobytes())


def sent(image: Image.Image = RED, kind: str = "PNG") -> bytes:
    """A client's file, with something in it that has no business here."""
    info, buffer = PngInfo(), io.BytesIO()
    info.add_text("comment", "FOREIGN BYTES")
    image.save(buffer, kind, **({"pnginfo": info} if kind == "PNG" else {}))
    return buffer.getvalue() + b"FOREIGN TAIL"


def in_base64(data: bytes) -> str:
    """As JSON carries it."""
    return base64.b64encode(data).decode()


def test_only_pixels_are_kept(tmp_path: Path) -> None:
    """What is kept has the upload's pixels and is named by them; nothing else of the file is in it."""
    upload = asyncio.run(Uploads(tmp_path / "uploads").accept(sent()))
    assert upload == Upload(SOURCE.sha256, 90, 60)
    (path,) = (tmp_path / "uploads").iterdir()
    assert path.name == f"{SOURCE.sha256}.png"
    assert b"FOREIGN" not in path.read_bytes()
    assert read_upload(path) == SOURCE


def test_base64_is_read_in_pieces() -> None:
    """A file of several pieces comes out whole; one that ends (=) in the middle and goes on is refused."""
    data = bytes(range(256)) * 5000
    text = in_base64(data + b"!")
    assert len(text) > 2 * BASE64_PIECE
    assert from_base64(text) == from_base64(f"data:image/png;base64,{text}") == data + b"!"
    ended = text[: BASE64_PIECE - 4] + "QQ==" + text[BASE64_PIECE:]
    for wrong in (ended, text + "A", text[:-1] + "*", text[:BASE64_PIECE] + "Ä"):
        with pytest.raises(ServiceError, match="not base64"):
            from_base64(wrong)


def test_the_same_picture_is_kept_once(tmp_path: Path) -> None:
    """Two files of the same pixels are one upload; it goes when it is old and nobody needs it."""
    uploads = Uploads(tmp_path)
    upload = asyncio.run(uploads.accept(sent()))
    assert asyncio.run(uploads.accept(sent(kind="PNG") + b"!")) == upload
    (path,) = tmp_path.iterdir()
    accepted = path.stat().st_mtime
    assert uploads.sweep(list, accepted + 3000) == []
    assert uploads.sweep(lambda: [upload.name], accepted + 4000) == []
    assert uploads.sweep(list, accepted + 4000) == [upload.name]
    assert not path.exists()


def test_accepted_again_while_retention_asks(tmp_path: Path) -> None:
    """An old upload that a client sends again just before it would be removed stays."""
    uploads = Uploads(tmp_path)
    upload = asyncio.run(uploads.accept(sent()))
    path = tmp_path / f"{upload.name}.png"
    now = path.stat().st_mtime
    os.utime(path, (now - 7200, now - 7200))

    def asked() -> list[str]:
        asyncio.run(Uploads(tmp_path).accept(sent()))
        return []

    assert uploads.sweep(asked, now) == []
    assert path.exists()


def test_refusals_are_problems(tmp_path: Path) -> None:
    """What is no picture is invalid_image; a folder that can't be written is storage_failed."""
    with pytest.raises(ServiceError) as refused:
        asyncio.run(Uploads(tmp_path).accept(b"GIF89a"))
    assert refused.value.problem is Problem.INVALID_IMAGE
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ServiceError) as failed:
        asyncio.run(Uploads(tmp_path / "file").accept(sent()))
    assert failed.value.problem is Problem.STORAGE_FAILED


def test_an_upload_that_is_gone_is_said(tmp_path: Path) -> None:
    """A worker that does not find the picture says so in words."""
    with pytest.raises(MissingError, match="send the request again"):
        read_upload(tmp_path / "gone.png")


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_a_job_begins_with_a_picture(served: Served, prefix: str) -> None:
    """The job names the upload and the strength, has the picture's shape, and its recipe tells both."""
    body = {"prompt": "a fox", "image": prefix + in_base64(sent()), "strength": 0.5}
    accepted = served.client.post("/api/v1/jobs", json={**body, "num_inference_steps": 10})
    assert accepted.status_code == 202, accepted.text
    asked = accepted.json()["request"]
    assert (asked["image"], asked["strength"]) == (SOURCE.sha256, 0.5)
    assert (asked["width"], asked["height"]) == (320, 208)  # 3:2 at about 256 x 256
    job = served.end(accepted.json()["id"])
    assert (job["state"], job["progress"]) == ("succeeded", {"done": 5, "of": 5})
    picture = Image.open(io.BytesIO(served.client.get(job["images"][0]["url"]).content))
    recipe = json.loads(picture.text["sd35"])
    assert (recipe["image_sha256"], recipe["strength"]) == (SOURCE.sha256, 0.5)


def test_without_a_picture_nothing_is_said_of_one(served: Served) -> None:
    """A job from text alone has no strength, in its request as in its recipe."""
    accepted = served.post()
    assert (accepted["request"]["image"], accepted["request"]["strength"]) == (None, None)
    job = served.end(accepted["id"])
    picture = Image.open(io.BytesIO(served.client.get(job["images"][0]["url"]).content))
    assert not {"image_sha256", "strength"} & set(json.loads(picture.text["sd35"]))


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"image": in_base64(b"GIF89a")}, "invalid_image", "image"),
        ({"image": "not base64!"}, "invalid_image", "image"),
        ({"image": ""}, "invalid_image", "image"),
        ({"strength": 0.5}, "invalid_request", "strength"),
        ({"image": in_base64(sent()), "strength": 0}, "invalid_request", "strength"),
        ({"image": in_base64(sent()), "strength": 1.5}, "invalid_request", "strength"),
        ({"image": in_base64(sent()), "width": 100}, "invalid_request", None),
        ({"prompt": "x" * 1_000_000}, "invalid_request", None),
    ],
)
def test_bad_pictures_are_refused(
    served: Served, body: dict[str, object], code: str, param: str | None
) -> None:
    """What can't be begun with is 400 with the field's name, and no retry is invited."""
    answer = served.client.post("/api/v1/jobs", json={"prompt": "a fox", **body})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error.get("param")) == (400, code, param)
    assert answer.headers["x-should-retry"] == "false"
    assert len(error["message"]) < 300


def test_put_with_a_picture_is_idempotent(served: Served) -> None:
    """The same picture under the same name is the same job; another picture is a conflict."""
    body = {"prompt": "a fox", "image": in_base64(sent())}
    first = served.client.put("/api/v1/jobs/drawn-from", json=body).json()
    assert served.client.put("/api/v1/jobs/drawn-from", json=body).json()["id"] == first["id"]
    other = in_base64(sent(Image.new("RGB", (90, 60), "blue")))
    assert served.client.put("/api/v1/jobs/drawn-from", json={**body, "image": other}).status_code == 409


def test_an_acknowledged_upload_survives_its_server(start_server: ServerFactory, tmp_path: Path) -> None:
    """kill -9 right after the 202: the next start has the picture and finishes the job."""
    first = start_server(rough=True)
    slow = first.post(prompt="slow")["id"]
    waiting = first.post(image=in_base64(sent()), strength=0.3)["id"]
    first.kill()
    served = start_server(rough=True)
    served.client.delete(f"/api/v1/jobs/{slow}")
    assert read_upload(tmp_path / "data" / "uploads" / f"{SOURCE.sha256}.png") == SOURCE
    assert served.end(waiting)["state"] == "succeeded"


def test_erasing_the_pictures_lets_the_upload_go(start_server: ServerFactory, tmp_path: Path) -> None:
    """With a job's last picture its source is named no more, so retention will remove it."""
    served = start_server()
    job = served.end(served.post(image=in_base64(sent()))["id"])
    served.client.delete(f"/api/v1/jobs/{job['id']}/images").raise_for_status()
    assert served.job(job["id"])["request"]["image"] is None
    served.stop()
    store = Store(f"sqlite:///{tmp_path / 'data' / 'jobs.sqlite3'}")
    assert store.uploads_named() == set()
    store.close()


def test_the_record_names_the_source(served: Served) -> None:
    """Whoever reads the records sees what a picture began with, and how much of it might go."""
    job = served.end(served.post(image=in_base64(sent()), strength=0.25)["id"])
    records = served.client.get("/api/v1/records").json()["data"]
    (record,) = [one for one in records if one["id"] == job["id"]]
    assert (record["image_sha256"], record["strength"]) == (SOURCE.sha256, 0.25)
