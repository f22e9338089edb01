"""What is found out before the first byte: commits, lists, access; and what each refusal is called."""

import itertools
from pathlib import Path

import pytest
from loopback_hub import WEIGHTS, LoopbackHub, contents

from sd35.checkpoints.fetch.fetch import fetch
from sd35.errors import MissingError, NetworkError, RequestError, Sd35Error

ALWAYS = itertools.repeat


def refused(hub: LoopbackHub, folder: Path, **options: str) -> str:
    """The sentence with which a fetch ends; nothing is left of it, and no byte of a file was sent."""
    with pytest.raises(Sd35Error) as caught:
        fetch("maker/model", folder, endpoint=hub.endpoint, **options)  # type: ignore[arg-type]
    assert not folder.exists()
    assert hub.sent == 0
    return f"{type(caught.value).__name__}: {caught.value}"


def test_branches_are_pinned(hub: LoopbackHub, tmp_path: Path, wanted: dict[str, bytes]) -> None:
    """The branch is asked for once; all else names the commit, which the manifest records."""
    hub.branches["fp16/try"] = hub.commit
    report = fetch("maker/model", tmp_path / "m", endpoint=hub.endpoint, revision="fp16/try")
    assert contents(tmp_path / "m") == wanted
    assert report.manifest.origin is not None
    assert report.manifest.origin.commit == hub.commit
    about_branches = [path for _, path, _ in hub.requests if hub.commit not in path]
    assert about_branches == ["/api/models/maker/model/revision/fp16/try"]


def test_gated_without_a_token(hub: LoopbackHub, tmp_path: Path) -> None:
    """The page to visit and the variable to set."""
    hub.gated = True
    words = refused(hub, tmp_path / "m")
    assert words.startswith("NetworkError: maker/model is gated and there is no token")
    assert f"{hub.endpoint}/maker/model" in words
    assert f"{hub.endpoint}/settings/tokens" in words
    assert "HF_TOKEN" in words


def test_gated_for_this_token(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token without access is told from none."""
    hub.gated, hub.token = True, "hf_good"
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    words = refused(hub, tmp_path / "m")
    assert "no access to maker/model: accept its licence at" in words
    assert "hf_other" not in words


def test_the_token_file(hub: LoopbackHub, tmp_path: Path, wanted: dict[str, bytes]) -> None:
    """What `hf auth login` wrote is used."""
    hub.gated, hub.token = True, "hf_good"
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("hf_good\n")
    fetch("maker/model", tmp_path / "m", endpoint=hub.endpoint)
    assert contents(tmp_path / "m") == wanted


def test_a_token_that_is_none(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line break in HF_TOKEN is refused, not sent as a header of its own; the token is not shown."""
    monkeypatch.setenv("HF_TOKEN", "hf_a\nX-Evil: 1")
    words = refused(hub, tmp_path / "m")
    assert "HF_TOKEN" in words
    assert "hf_a" not in words


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("401 RepoNotFound", "MissingError: .* has no maker/model: check the name, or set HF_TOKEN"),
        ("404", "MissingError: .* has no maker/model: check the name"),
        ("404 RevisionNotFound", "MissingError: .* has no revision main"),
        ("403", "NetworkError: maker/model is gated"),
        ("451", "NetworkError: .* answered HTTP 451"),
        ("503", r"NetworkError: .* can't be reached \(HTTP 503\)"),
        ("drop", "NetworkError: .* can't be reached"),
        ("html", "NetworkError: .* answered with text/html, which is no hub's answer"),
        ("loop", "NetworkError: .* redirects in a circle"),
    ],
)
def test_refusals(hub: LoopbackHub, tmp_path: Path, fault: str, words: str) -> None:
    """Each in its own words."""
    import re

    hub.faults["revision"] = ALWAYS(fault)
    assert re.match(words, refused(hub, tmp_path / "m"))


def test_a_small_trouble_at_the_start(hub: LoopbackHub, tmp_path: Path, wanted: dict[str, bytes]) -> None:
    """Commit and list are asked for again, too."""
    hub.faults["revision"] = iter(["502"])
    hub.faults["tree"] = iter(["drop", None, "429"])
    fetch("maker/model", tmp_path / "m", endpoint=hub.endpoint)
    assert contents(tmp_path / "m") == wanted


def test_no_server(tmp_path: Path) -> None:
    """Nobody at the other end is one sentence."""
    with LoopbackHub({}) as gone:
        endpoint = gone.endpoint
    with pytest.raises(NetworkError, match=r"can't be reached .*check the network and --endpoint"):
        fetch("maker/model", tmp_path / "m", endpoint=endpoint)


def test_no_revision(hub: LoopbackHub, tmp_path: Path) -> None:
    """A branch that is not there."""
    assert "has no revision nowhere" in refused(hub, tmp_path / "m", revision="nowhere")


def test_offline(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE: not one request; what is complete is used, also by its commit."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in refused(hub, tmp_path / "m")
    assert not hub.requests
    monkeypatch.delenv("HF_HUB_OFFLINE")
    fetch("maker/model", tmp_path / "m", endpoint=hub.endpoint)
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "yes")
    for revision in (None, hub.commit):
        assert fetch("maker/model", tmp_path / "m", endpoint=hub.endpoint, revision=revision).brought == 0
    assert not hub.requests


def test_lists_that_are_none(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry without hash or size is refused by name."""
    monkeypatch.setattr(hub, "entry", lambda path: {"type": "file", "path": path})
    assert "list of files can't be understood" in refused(hub, tmp_path / "m")


def test_room_is_looked_for_first(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is too small is found before the first byte."""
    from shutil import _ntuple_diskusage

    monkeypatch.setattr("shutil.disk_usage", lambda _: _ntuple_diskusage(10**9, 10**9, 1000))
    words = refused(hub, tmp_path / "m")
    assert words.startswith("OutputError")
    assert "0.00 GB free" in words


def test_jobs(tmp_path: Path) -> None:
    """No files at once, or too many, is a wrong number."""
    for jobs in (0, 33):
        with pytest.raises(RequestError, match="1 to 32"):
            fetch("maker/model", tmp_path / "m", jobs=jobs)


def test_a_file_that_is_not_there(hub: LoopbackHub, tmp_path: Path) -> None:
    """Listed and not served: the file is named."""
    hub.faults[WEIGHTS] = ALWAYS("404 EntryNotFound")
    with pytest.raises(MissingError, match=f"no file {WEIGHTS}"):
        fetch("maker/model", tmp_path / "m", endpoint=hub.endpoint)
