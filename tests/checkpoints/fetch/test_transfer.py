"""Every fault that a server can have, once: the right bytes in the end, or a sentence and nothing kept."""

import itertools
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from loopback_hub import SHARD, WEIGHTS, LoopbackHub, contents

from sd35.checkpoints.fetch import hub as hub_module
from sd35.checkpoints.fetch.fetch import fetch
from sd35.checkpoints.manifest import read_manifest
from sd35.errors import CheckpointError, NetworkError, OutputError, Sd35Error

ALWAYS = itertools.repeat


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where to fetch to."""
    return tmp_path / "model"


def begin_and_fail(hub: LoopbackHub, folder: Path, path: str = WEIGHTS) -> int:
    """A first run that gets half of a file; the bytes that lie there now."""
    hub.faults[path] = itertools.chain(["cut"], ALWAYS("403"))
    with pytest.raises(NetworkError):
        fetch("maker/model", folder, endpoint=hub.endpoint, jobs=1)
    hub.faults.clear()
    return part_of(folder, path).stat().st_size


def part_of(folder: Path, path: str) -> Path:
    """Where the bytes of an unfinished file lie."""
    return folder / ".fetch" / f"{path.replace('/', '%2F')}.part"


def test_a_cut_file_goes_on_where_it_stopped(
    hub: LoopbackHub, folder: Path, wanted: dict[str, bytes]
) -> None:
    """Three cut answers cost no byte twice."""
    hub.faults[WEIGHTS] = iter(["cut", "cut", "cut"])
    fetch("maker/model", folder, endpoint=hub.endpoint)
    assert contents(folder) == wanted
    starts = [headers.get("Range") for headers in hub.downloads(WEIGHTS)]
    assert starts == [None, "bytes=200000-", "bytes=300000-", "bytes=350000-"]
    assert hub.sent == sum(len(content) for content in wanted.values())


@pytest.mark.parametrize("fault", ["503", "500", "429", "408", "drop", "html", "stall", "longer"])
def test_passing_trouble(
    hub: LoopbackHub, folder: Path, wanted: dict[str, bytes], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two bad answers are followed by a good one, and nothing of them stays."""
    if fault == "stall":
        monkeypatch.setattr(hub_module, "TIMEOUT", httpx2.Timeout(0.2))
    hub.faults[WEIGHTS] = iter([fault, fault])
    fetch("maker/model", folder, endpoint=hub.endpoint)
    assert contents(folder) == wanted


def test_tries_are_bounded(hub: LoopbackHub, folder: Path) -> None:
    """A server that never answers well is asked five times, then the person is told; the rest is kept."""
    hub.faults[WEIGHTS] = ALWAYS("503")
    with pytest.raises(NetworkError, match=r"5 tries in a row.*HTTP 503.*same command again"):
        fetch("maker/model", folder, endpoint=hub.endpoint, jobs=1)
    assert len(hub.downloads(WEIGHTS)) == 5
    assert not (folder / "model_index.json").exists()
    assert read_manifest(folder) is None


def test_a_proxys_page_is_no_file(hub: LoopbackHub, folder: Path) -> None:
    """An HTML page with status 200 is called what it is."""
    hub.faults[WEIGHTS] = ALWAYS("html")
    with pytest.raises(NetworkError, match="offers 26 bytes of text/html where 400000 were listed"):
        fetch("maker/model", folder, endpoint=hub.endpoint)


def test_wrong_content_of_the_right_size(hub: LoopbackHub, folder: Path) -> None:
    """It is asked for once more, then refused, and no byte of it is left."""
    hub.faults[WEIGHTS] = ALWAYS("wrong")
    with pytest.raises(CheckpointError, match="right size and the wrong content"):
        fetch("maker/model", folder, endpoint=hub.endpoint)
    assert len(hub.downloads(WEIGHTS)) == 2
    assert not (folder / WEIGHTS).exists()
    assert part_of(folder, WEIGHTS).stat().st_size == 0


@pytest.mark.parametrize("path", [WEIGHTS, "tokenizer/merges.txt"])
def test_one_clean_retry(hub: LoopbackHub, folder: Path, wanted: dict[str, bytes], path: str) -> None:
    """Wrong content once (by SHA-256 or by git's SHA-1) is made good by the second try."""
    hub.faults[path] = iter(["wrong"])
    fetch("maker/model", folder, endpoint=hub.endpoint)
    assert contents(folder) == wanted


@pytest.mark.parametrize("fault", ["ignore-range", "other-etag", "416"])
def test_an_answer_that_does_not_continue(
    hub: LoopbackHub, folder: Path, wanted: dict[str, bytes], fault: str
) -> None:
    """Range ignored, another ETag, an unsatisfiable range: the file starts again from its first byte."""
    held = begin_and_fail(hub, folder)
    hub.faults[WEIGHTS] = iter([fault])
    already = len(hub.downloads(WEIGHTS))
    fetch("maker/model", folder, endpoint=hub.endpoint)
    assert contents(folder) == wanted
    ranges = [headers.get("Range") for headers in hub.downloads(WEIGHTS)[already:]]
    assert ranges == [f"bytes={held}-"] + ([] if fault == "ignore-range" else [None])


def test_the_next_run_goes_on(hub: LoopbackHub, folder: Path, wanted: dict[str, bytes]) -> None:
    """Whole files are not asked for again, and the cut one from its middle; no corner is left."""
    small = "tokenizer/merges.txt"  # one file at a time, the largest first: this one comes after the weights
    held = begin_and_fail(hub, folder, small)
    assert (folder / WEIGHTS).is_file()
    hub.requests.clear()
    fetch("maker/model", folder, endpoint=hub.endpoint)
    assert contents(folder) == wanted
    assert [headers["Range"] for headers in hub.downloads(f"/{small}")] == [f"bytes={held}-"]
    assert not hub.downloads(WEIGHTS)
    assert not (folder / ".fetch").exists()


def test_damaged_part_is_noticed(hub: LoopbackHub, folder: Path, wanted: dict[str, bytes]) -> None:
    """A flipped bit in what lies there already costs a second download, not a wrong file."""
    begin_and_fail(hub, folder)
    part = part_of(folder, WEIGHTS)
    part.write_bytes(bytes([part.read_bytes()[0] ^ 1]) + part.read_bytes()[1:])
    fetch("maker/model", folder, endpoint=hub.endpoint)
    assert contents(folder) == wanted


def test_bytes_of_a_changed_file_are_not_used(
    hub: LoopbackHub, folder: Path, wanted: dict[str, bytes]
) -> None:
    """If the file is another one now, its old beginning is thrown away before anything is asked for."""
    begin_and_fail(hub, folder)
    hub.files[WEIGHTS] = wanted[WEIGHTS][::-1]
    hub.requests.clear()
    fetch("maker/model", folder, endpoint=hub.endpoint, revision="main")
    assert (folder / WEIGHTS).read_bytes() == wanted[WEIGHTS][::-1]
    assert [headers.get("Range") for headers in hub.downloads(WEIGHTS)] == [None]


def test_commit_that_changes_under_our_hands(hub: LoopbackHub, folder: Path) -> None:
    """An answer for another commit than the listed one is refused."""
    hub.faults[WEIGHTS] = ALWAYS("other-commit")
    with pytest.raises(CheckpointError, match="answered for commit ffff"):
        fetch("maker/model", folder, endpoint=hub.endpoint)
    assert not (folder / WEIGHTS).exists()


def test_content_that_changes_behind_a_redirect(
    hub: LoopbackHub, folder: Path, repository: dict[str, bytes]
) -> None:
    """The hub's own header names another content than its listing did: refused before a byte is kept."""
    with LoopbackHub(dict(repository), "cdn/bucket") as cdn:
        hub.cdn = cdn
        hub.listed[WEIGHTS] = bytes(400_000)
        with pytest.raises(CheckpointError, match="another transformer/diffusion"):
            fetch("maker/model", folder, endpoint=hub.endpoint)
    assert not (folder / WEIGHTS).exists()
    assert part_of(folder, WEIGHTS).stat().st_size == 0


def test_redirect_elsewhere_without_the_token(
    hub: LoopbackHub,
    folder: Path,
    repository: dict[str, bytes],
    wanted: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bytes come from another host, which never sees the token, also on the second leg of a cut file."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.gated, hub.token = True, "hf_secret"
    with LoopbackHub(dict(repository), "cdn/bucket") as cdn:
        hub.cdn = cdn
        cdn.faults[WEIGHTS] = iter(["cut"])
        fetch("maker/model", folder, endpoint=hub.endpoint)
    assert contents(folder) == wanted
    assert [headers.get("Range") for headers in cdn.downloads(WEIGHTS)] == [None, "bytes=200000-"]
    assert all("Authorization" not in headers for _, _, headers in cdn.requests)
    assert all(headers["Authorization"] == "Bearer hf_secret" for _, _, headers in hub.requests)


def test_redirects_in_a_circle(hub: LoopbackHub, folder: Path) -> None:
    """A file that redirects to itself ends in a sentence."""
    hub.faults[WEIGHTS] = ALWAYS("loop")
    with pytest.raises(NetworkError, match="redirects in a circle"):
        fetch("maker/model", folder, endpoint=hub.endpoint)


@pytest.mark.parametrize("jobs", [1, 3])
def test_so_many_files_at_once(hub: LoopbackHub, folder: Path, wanted: dict[str, bytes], jobs: int) -> None:
    """`jobs` files are on their way together, never more."""
    under_way: set[int] = set()
    most = 0
    lock = threading.Lock()
    passes = hub.gate.passes
    together = threading.Barrier(jobs)

    def watch(turn: int) -> bool:
        nonlocal most
        me = threading.get_ident()
        with lock:
            first = me not in under_way and most < jobs
            under_way.add(me)
            most = max(most, len(under_way))
        if first:
            together.wait(timeout=10)
        return passes(turn)

    hub.gate.passes = watch  # type: ignore[method-assign]
    done = hub.sent
    fetch("maker/model", folder, endpoint=hub.endpoint, jobs=jobs)
    assert contents(folder) == wanted
    assert most == jobs
    assert hub.sent > done


def test_the_first_failure_stops_the_others(hub: LoopbackHub, folder: Path) -> None:
    """A refused file ends the fetch although another is still held back."""
    hub.gate.let(3)
    hub.faults[SHARD] = ALWAYS("404 EntryNotFound")
    opener = threading.Thread(target=lambda: (hub.gate.drained.wait(10), hub.gate.let(None)))
    opener.start()
    with pytest.raises(Sd35Error, match=f"no file {SHARD}"):
        fetch("maker/model", folder, endpoint=hub.endpoint, jobs=2)
    opener.join()
    assert not (folder / "model_index.json").exists()


@pytest.fixture
def small_disk() -> Iterator[int]:
    """No file may grow beyond so many bytes: the kernel says no in the middle of a write."""
    limit = 150_000
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_says_no(hub: LoopbackHub, folder: Path, small_disk: int) -> None:
    """A failing write is one sentence; what came before is kept under no final name."""
    with pytest.raises(OutputError, match="free the disk"):
        fetch("maker/model", folder, endpoint=hub.endpoint)
    assert not (folder / WEIGHTS).exists()
    assert not (folder / "model_index.json").exists()
