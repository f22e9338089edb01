"""The folder: whole files or none, addresses that can't be forged, and what retention takes."""

import errno
import os
import time
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from sd35.errors import AccessError, MissingError, OutputError, RequestError
from sd35.serving.folder import FolderStorage, SignedUrls, read_secret
from sd35.serving.storage import Listed, StoredFile, retire, too_many

URLS = SignedUrls("http://127.0.0.1:8000/files/", b"s" * 32)


@pytest.fixture
def folder(tmp_path: Path) -> FolderStorage:
    """An empty folder of pictures."""
    return FolderStorage(tmp_path / "pictures", URLS)


def test_what_is_put_is_there(folder: FolderStorage) -> None:
    """Bytes come back, and the receipt bears their size and SHA-256."""
    receipt = folder.put("2026/11/a-1.png", b"picture")
    sha256 = "2cea274d0bedc39ec4ab6ba9e59ec889e3ed6fb56a1cf088a64d9b383378dc97"  # of sha256sum
    assert receipt == StoredFile("2026/11/a-1.png", 7, sha256)
    assert folder.open("2026/11/a-1.png") == b"picture"
    assert [file.name for file in folder.files()] == ["2026/11/a-1.png"]


def test_a_second_put_replaces_the_first(folder: FolderStorage) -> None:
    """A job that is run again may store its picture again."""
    folder.put("a.png", b"one")
    folder.put("a.png", b"two!")
    assert folder.open("a.png") == b"two!"
    assert len(list(folder.files())) == 1


def test_what_is_deleted_is_gone(folder: FolderStorage) -> None:
    """Deleting works, and works again; opening then says that nothing is there."""
    folder.put("a.png", b"one")
    folder.delete("a.png")
    folder.delete("a.png")
    with pytest.raises(MissingError, match=r"a\.png"):
        folder.open("a.png")


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../a", "a/../../b", "a//b", ".hidden", "a/.b", "a\0b", "a b", "ä", "a" * 300, "a/"],
)
def test_names_can_not_leave_the_folder(folder: FolderStorage, name: str) -> None:
    """Anything but a relative path of plain characters is refused by every method."""
    for use in (lambda: folder.put(name, b""), lambda: folder.open(name), lambda: folder.delete(name)):
        with pytest.raises(RequestError):
            use()
    with pytest.raises(RequestError):
        folder.url(name, 1)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_trace(
    folder: FolderStorage, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """ENOSPC ends in OutputError; the earlier file stays whole; with room again the next put works."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder.put("a.png", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync", full) if call == "fsync" else (Path, "replace", full)))
        with pytest.raises(OutputError, match="No space left"):
            folder.put("a.png", b"new")
    assert [path.name for path in folder.root.rglob("*")] == ["a.png"]
    assert folder.open("a.png") == b"old"
    folder.put("a.png", b"new")
    assert folder.open("a.png") == b"new"


def test_what_a_killed_writer_left_is_swept(folder: FolderStorage) -> None:
    """An old temporary file goes when the folder is opened; a fresh one may have a writer and stays."""
    old, fresh = folder.root / ".a.png-old", folder.root / ".a.png-new"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    again = FolderStorage(folder.root, URLS)
    assert not old.exists()
    assert fresh.exists()
    assert list(again.files()) == []


def _parts(url: str) -> tuple[str, str, str]:
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    return unquote(parts.path.removeprefix("/files/")), query["expires"][0], query["signature"][0]


def test_addresses_are_checked(folder: FolderStorage) -> None:
    """An address passes as it was made; another name, a later end or another secret does not."""
    name, expires, signature = _parts(folder.url("2026/a.png", 60))
    assert name == "2026/a.png"
    URLS.check(name, expires, signature)
    later = str(int(expires) + 1)
    for wrong in (
        ("2026/b.png", expires, signature),
        (name, later, signature),
        (name, expires, signature[:-1] + "x"),
        (name, expires, "é"),
        (name, "soon", signature),
        (name, "²", signature),
        (name, "", signature),
    ):
        with pytest.raises(AccessError, match="not given out"):
            URLS.check(*wrong)
    with pytest.raises(AccessError):
        SignedUrls("http://127.0.0.1:8000/files", b"t" * 32).check(name, expires, signature)


def test_addresses_expire(folder: FolderStorage) -> None:
    """After its time an address is refused, and says so."""
    with pytest.raises(AccessError, match="expired"):
        URLS.check(*_parts(folder.url("a.png", -2)))


def test_addresses_end_on_a_grid(folder: FolderStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """They live as long as was asked, up to ten minutes more, and are the same ones in between."""
    addresses = []
    for now in (1_200_000_001.0, 1_200_000_599.0, 1_200_000_601.0):
        monkeypatch.setattr("time.time", lambda now=now: now)
        addresses.append(folder.url("a.png", 3600))
    assert addresses[0] == addresses[1] != addresses[2]
    assert [int(_parts(address)[1]) for address in addresses] == [1_200_004_200] * 2 + [1_200_004_800]


def test_the_secret_is_made_once_and_kept_private(tmp_path: Path) -> None:
    """Two readers get the same 32 bytes, which nobody else may read; a damaged file is named."""
    secret = read_secret(tmp_path)
    assert len(secret) == 32
    assert read_secret(tmp_path) == secret
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o077 == 0
    file.write_bytes(b"")
    with pytest.raises(OutputError, match="damaged"):
        read_secret(tmp_path)


def test_retention_takes_the_old_and_then_the_oldest() -> None:
    """Age decides first; then the oldest go until the rest fits."""
    files = [Listed(f"{age}", 10, 1000.0 - age) for age in (50, 10, 30, 40, 20)]
    names = [f.name for f in too_many(files, now=1000.0, keep_s=45, keep_bytes=None)]
    assert names == ["50"]
    assert [f.name for f in too_many(files, now=1000.0, keep_s=None, keep_bytes=25)] == ["50", "40", "30"]
    assert [f.name for f in too_many(files, now=1000.0, keep_s=45, keep_bytes=35)] == ["50", "40"]
    assert too_many(files, now=1000.0, keep_s=None, keep_bytes=None) == []


def test_retiring_deletes(folder: FolderStorage) -> None:
    """What retention ends is gone from the storage, the rest stays."""
    folder.put("old.png", b"1")
    folder.put("new.png", b"2")
    now = time.time()
    os.utime(folder.root / "old.png", (now - 100, now - 100))
    assert retire(folder, now=now, keep_s=50) == ["old.png"]
    assert [file.name for file in folder.files()] == ["new.png"]
