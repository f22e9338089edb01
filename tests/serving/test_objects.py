"""The object store, against a real S3 server that is stopped, refused and brought back."""

import hashlib
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from sd35.errors import MissingError, NetworkError, OutputError, RequestError
from sd35.serving.folder import SignedUrls
from sd35.serving.objects import Bucket, ObjectStorage
from sd35.serving.spool import SpooledStorage
from sd35.serving.storage import retire

from .stores import S3Server

URLS = SignedUrls("http://here/files", b"s" * 32)


@pytest.mark.parametrize("endpoint", ["https://oss-cn-x.example", "https://pictures.oss-cn-x.example"])
def test_virtual_hosts_carry_the_bucket_once(endpoint: str) -> None:
    """An OSS address has the bucket in its host's name, whether the endpoint brought it or not."""
    bucket = Bucket(
        name="pictures", endpoint=endpoint, virtual_hosted=True, access_key_id="id", secret_access_key="no"
    )
    parts = urlsplit(ObjectStorage(bucket).url("2026/a.png", 60))
    assert (parts.hostname, parts.path) == ("pictures.oss-cn-x.example", "/2026/a.png")
    life_s = int(parse_qs(parts.query)["X-Amz-Expires"][0])
    assert 60 <= life_s <= 70  # up to a sixth more, for the grid


def test_an_address_stays_the_same_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes apart it is the same one, so that a browser finds its copy; then there is a later one."""
    storage = ObjectStorage(
        Bucket(name="p", endpoint="http://s3", access_key_id="id", secret_access_key="no")
    )
    addresses = []
    for now in (1_200_000_001.0, 1_200_000_599.0, 1_200_000_601.0):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        addresses.append(storage.url("a.png", 3600))
        time.sleep(1.1)  # what the library signs with is the real time, in seconds
    assert addresses[0] == addresses[1] != addresses[2]


def test_paths_carry_the_bucket_elsewhere() -> None:
    """Without virtual hosts the bucket and the prefix begin the path."""
    bucket = Bucket(
        name="pictures", prefix="shop", endpoint="http://s3", access_key_id="id", secret_access_key="no"
    )
    assert urlsplit(ObjectStorage(bucket).url("a.png", 60)).path == "/pictures/shop/a.png"


@pytest.mark.parametrize("endpoint", ["s3.example", "ftp://s3.example", "https://s3.example/bucket"])
def test_odd_endpoints_are_refused(endpoint: str) -> None:
    """What is not scheme and host is refused before anything is stored."""
    with pytest.raises(RequestError, match="endpoint"):
        Bucket(name="pictures", endpoint=endpoint)


def test_secrets_are_not_shown() -> None:
    """A bucket in a log line or a traceback does not bear its secret."""
    assert "s3cret" not in repr(Bucket(name="pictures", access_key_id="id", secret_access_key="s3cret"))


def test_a_store_that_is_not_there_is_a_network_error() -> None:
    """Nobody listens: NetworkError within the bucket's patience."""
    bucket = Bucket(
        name="b", endpoint="http://127.0.0.1:9", access_key_id="id", secret_access_key="no", patience_s=1
    )
    with pytest.raises(NetworkError, match="b at http"):
        ObjectStorage(bucket).put("a.png", b"1")


@pytest.mark.server
def test_what_is_put_is_there(s3: S3Server) -> None:
    """Bytes, receipt, listing and presigned address agree; the server's own disk has the bytes."""
    storage = ObjectStorage(s3.bucket(prefix="shop"))
    data = bytes(range(256)) * 48_000  # 12 MB: more than one part
    receipt = storage.put("2026/11/a.png", data)
    assert (receipt.size, receipt.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert storage.open("2026/11/a.png") == data
    assert (s3.root / "pictures/shop/2026/11/a.png").read_bytes() == data
    assert [(file.name, file.size) for file in storage.files()] == [("2026/11/a.png", len(data))]
    answer = httpx2.get(storage.url("2026/11/a.png", 60))
    assert (answer.content, answer.headers["content-type"]) == (data, "image/png")
    assert "immutable" in answer.headers["cache-control"]


@pytest.mark.server
def test_a_changed_address_is_refused(s3: S3Server) -> None:
    """A presigned address opens its own file alone."""
    storage = ObjectStorage(s3.bucket())
    storage.put("a.png", b"1")
    storage.put("b.png", b"2")
    assert httpx2.get(storage.url("a.png", 60).replace("a.png", "b.png")).status_code == 403


@pytest.mark.server
def test_a_second_put_replaces_the_first(s3: S3Server) -> None:
    """The same name again is the newer picture, as in a folder."""
    storage = ObjectStorage(s3.bucket())
    storage.put("a.png", b"one")
    storage.put("a.png", b"two!")
    assert storage.open("a.png") == b"two!"


@pytest.mark.server
def test_what_is_deleted_is_gone(s3: S3Server) -> None:
    """Deleting works, and works again; retention deletes through the same door."""
    storage = ObjectStorage(s3.bucket())
    for name in ("a.png", "b.png"):
        storage.put(name, b"1")
    storage.delete("a.png")
    storage.delete("a.png")
    with pytest.raises(MissingError, match=r"a\.png"):
        storage.open("a.png")
    (listed,) = storage.files()
    assert retire(storage, now=listed.modified + 100, keep_s=50) == ["b.png"]
    assert list(storage.files()) == []


@pytest.mark.server
def test_a_refused_bucket_says_what_to_mend(s3: S3Server) -> None:
    """A wrong key and a missing bucket are two different sentences, neither of them about the network."""
    with pytest.raises(OutputError, match="access is denied"):
        ObjectStorage(s3.bucket(access_key_id="another-key")).put("a.png", b"1")
    with pytest.raises(OutputError, match="does not exist"):
        ObjectStorage(s3.bucket("nowhere")).put("a.png", b"1")


@pytest.mark.server
def test_a_server_stopped_in_the_middle_loses_nothing(s3: S3Server, tmp_path: Path) -> None:
    """Four writers store 200 pictures; the server dies in their middle and comes back: all are in it."""
    storage = SpooledStorage(ObjectStorage(s3.bucket()), tmp_path / "spool", URLS, first_pause_s=0.1)
    pictures = {f"{n // 50}/{n}.png": bytes([n]) * 50_000 for n in range(200)}
    stopped = threading.Event()

    def write(part: int) -> None:
        for number, (name, data) in enumerate(pictures.items()):
            if number % 4 == part:
                if number >= 160:
                    stopped.wait(30)  # the last fifth surely meets a dead server
                storage.put(name, data)

    writers = [threading.Thread(target=write, args=(part,)) for part in range(4)]
    for writer in writers:
        writer.start()
    while not (s3.root / "pictures/1").exists():
        threading.Event().wait(0.002)
    s3.stop()
    stopped.set()
    for writer in writers:
        writer.join()
    assert storage.waiting >= 40
    assert all(storage.open(name) == pictures[name] for name in list(pictures)[160:])
    s3.start()
    assert storage.wait_until_empty(30)
    storage.close()
    stored = ObjectStorage(s3.bucket())
    assert {name: stored.open(name) for name in pictures} == pictures


@pytest.mark.server
def test_a_mended_bucket_is_used_without_a_restart(s3: S3Server, tmp_path: Path) -> None:
    """Pictures for a bucket that is missing wait, and reach it once it is made."""
    storage = SpooledStorage(ObjectStorage(s3.bucket("late")), tmp_path / "spool", URLS, first_pause_s=0.1)
    storage.put("a.png", b"1")
    assert "does not exist" in (storage.trouble or "")
    s3.stop()  # it remembers for minutes which buckets there are
    (s3.root / "late").mkdir()
    s3.start()
    assert storage.wait_until_empty(30)
    assert (s3.root / "late/a.png").read_bytes() == b"1"
    storage.close()
