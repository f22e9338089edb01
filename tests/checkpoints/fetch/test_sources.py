"""What people write for SOURCE."""

from pathlib import Path

import pytest

from sd35.checkpoints.fetch.sources import recorded, understand
from sd35.checkpoints.manifest import Origin
from sd35.errors import CheckpointError, RequestError

MEDIUM = "stabilityai/stable-diffusion-3.5-medium"


@pytest.mark.parametrize(
    ("text", "place", "name", "variant"),
    [
        ("large", "stabilityai/stable-diffusion-3.5-large", "large", "large"),
        ("large-turbo", "stabilityai/stable-diffusion-3.5-large-turbo", "large-turbo", "large-turbo"),
        (MEDIUM, MEDIUM, "medium", "medium"),
        ("maker/model", "maker/model", "maker--model", None),
    ],
)  # fmt: skip
def test_hub_ids(text: str, place: str, name: str, variant: str | None) -> None:
    """Short names and ids mean the hub; a known repository gets its short name and its variant."""
    source = understand(text)
    assert (source.kind, source.place, source.name, source.variant) == ("hub", place, name, variant)
    assert source.endpoint == "https://huggingface.co"
    assert source.files == ()


def test_large_fp8_is_one_file() -> None:
    """The FP8 repository holds single files, and one of them is meant unless another is named."""
    assert understand("large-fp8").files == ("sd3.5_large_fp8_scaled.safetensors",)
    assert understand("large-fp8", files=("text_encoders/clip_g.safetensors",)).files == (
        "text_encoders/clip_g.safetensors",
    )


def test_endpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag goes before HF_ENDPOINT, and a closing slash means nothing."""
    monkeypatch.setenv("HF_ENDPOINT", "https://hf-mirror.com/")
    assert understand("large").endpoint == "https://hf-mirror.com"
    assert understand("large", endpoint="http://hub.lan:8090/").endpoint == "http://hub.lan:8090"
    for wrong in ("hub.lan", "file:///x", "https://", "https://me:secret@hub.lan"):
        with pytest.raises(RequestError, match="no endpoint"):
            understand("large", endpoint=wrong)


@pytest.mark.parametrize(
    ("text", "via", "place", "name"),
    [
        ("https://host/a/model.git", None, "https://host/a/model.git", "model"),
        ("https://me:secret@host/a/model", "git", "https://host/a/model", "model"),
        ("git@host:a/model.git", None, "git@host:a/model.git", "model"),
        ("large", "git", "https://huggingface.co/stabilityai/stable-diffusion-3.5-large", "large"),
    ],
)
def test_git_addresses(text: str, via: str | None, place: str, name: str) -> None:
    """What is shown and recorded has no credentials in it."""
    source = understand(text, via)
    assert (source.kind, source.place, source.name) == ("git", place, name)


@pytest.mark.parametrize("text", ["ext::sh -c touch% x", "--upload-pack=touch x", "fd::17", "https://host/"])
def test_addresses_that_run_programs(text: str) -> None:
    """git would take them; we do not."""
    with pytest.raises(RequestError):
        understand(text, "git")


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is written with / or ./ in front; a folder that is called like a hub id changes nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maker" / "model").mkdir(parents=True)
    assert understand("maker/model").kind == "hub"
    source = understand("./maker/model")
    assert (source.kind, source.place, source.name) == ("folder", str(tmp_path / "maker/model"), "model")


@pytest.mark.parametrize(
    "text", ["C:\\models\\sd", "D:/models/sd", ".\\sd", "..\\sd", "\\\\host\\share\\sd", "~/sd"]
)
def test_folders_as_windows_writes_them(text: str) -> None:
    """A drive, a share or a backslash means a folder too; the form decides, on every system."""
    assert understand(text).kind == "folder"


@pytest.mark.parametrize("text", ["nonsense", "", "a/b/c", "../..x/y\n", "maker/..", "demo"])
def test_no_source(text: str) -> None:
    """Anything else is refused with the forms there are."""
    with pytest.raises(RequestError, match="is no source: give one of"):
        understand(text, "hub")


def test_a_strangers_manifest_gets_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token goes to the hub and to the endpoint that the person set, never where a manifest says."""
    assert recorded(Origin("hub", "a/b", "0" * 40, "https://huggingface.co")).has_token
    assert not recorded(Origin("hub", "a/b", "0" * 40, "https://evil.example")).has_token
    monkeypatch.setenv("HF_ENDPOINT", "https://hf-mirror.com")
    assert recorded(Origin("hub", "a/b", "0" * 40, "https://hf-mirror.com")).has_token
    for origin in (Origin("git", "ext::sh -c id"), Origin("ftp", "a/b"), Origin("hub", "a/b", None, "x")):
        with pytest.raises(CheckpointError, match="origin is no source"):
            recorded(origin)
