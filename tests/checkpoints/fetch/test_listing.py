"""Which files are fetched, and by which names their contents are known."""

import hashlib

import pytest
from loopback_hub import SHARD, WEIGHTS, blob_id, pointer_to

from sd35.checkpoints.fetch.listing import Checksum, RemoteFile, pointer, select
from sd35.errors import CheckpointError, MissingError, RequestError


def listed(paths: object) -> list[RemoteFile]:
    """A listing of these paths."""
    return [RemoteFile(path, 1, blob="0" * 40) for path in paths]  # type: ignore[attr-defined]


def chosen(paths: object, *names: str) -> set[str]:
    """The paths that are selected from a listing."""
    return {file.path for file in select(listed(paths), names, "maker/model")}


def test_the_folder_and_nothing_else(repository: dict[str, bytes], wanted: dict[str, bytes]) -> None:
    """Of 16-bit twins, pickles, code, pictures, the other layout and foreign parts, none comes along."""
    assert len(repository) == len(wanted) + 16
    assert chosen(repository) == set(wanted)


def test_single_files(repository: dict[str, bytes]) -> None:
    """Only the named file and the licence."""
    assert chosen(repository, "single.safetensors") == {"single.safetensors", "LICENSE.md"}


def test_whole_file_before_shards(wanted: dict[str, bytes]) -> None:
    """Where a part is there twice, the whole file comes and its shards stay, index and all."""
    paths = chosen([*wanted, "text_encoder_3/model.safetensors"])
    assert "text_encoder_3/model.safetensors" in paths
    assert not paths & {SHARD, "text_encoder_3/model.safetensors.index.json"}


@pytest.mark.parametrize("name", ["model.ckpt", "pipeline.py", "transformer/diffusion_pytorch_model.bin"])
def test_pickles_and_code_are_never_fetched(repository: dict[str, bytes], name: str) -> None:
    """Not even when they are asked for by name."""
    with pytest.raises(RequestError, match="never code or pickles"):
        chosen([*repository, name], name)


def test_a_part_in_pickles_only(wanted: dict[str, bytes]) -> None:
    """The part is named before anything is downloaded."""
    paths = [path for path in wanted if path != WEIGHTS] + ["transformer/diffusion_pytorch_model.bin"]
    with pytest.raises(CheckpointError, match=r"no transformer/diffusion_pytorch_model\.safetensors"):
        chosen(paths)


def test_a_part_without_config(wanted: dict[str, bytes]) -> None:
    """So is a missing config."""
    with pytest.raises(CheckpointError, match=r"no vae/config\.json"):
        chosen(path for path in wanted if path != "vae/config.json")


def test_t5_may_be_absent(wanted: dict[str, bytes]) -> None:
    """A checkpoint without its third text encoder is complete."""
    paths = [path for path in wanted if "_3/" not in path]
    assert chosen(paths) == set(paths)


def test_no_folder_and_no_name(repository: dict[str, bytes]) -> None:
    """A repository of single files asks for a name, and tells which there are."""
    with pytest.raises(MissingError, match=r"--file; it has single\.safetensors"):
        chosen(["single.safetensors", "README.md"])
    with pytest.raises(MissingError, match=r"no file nothing\.safetensors; it has"):
        chosen(repository, "nothing.safetensors")


@pytest.mark.parametrize(
    "path", ["../x.safetensors", "/x.safetensors", "a//x.safetensors", "a\\x.safetensors", "\x1b.safetensors"]
)
def test_paths_stay_inside(wanted: dict[str, bytes], path: str) -> None:
    """A listing can't name a place outside the folder, nor one that a terminal would act upon."""
    with pytest.raises(MissingError):
        chosen([*wanted, path], path)


def test_names_of_contents() -> None:
    """SHA-256 (FIPS 180-2) and git's SHA-1 (`git hash-object` of `hello` and a line end), in pieces."""
    sha256, blob = hashlib.sha256(b"hello\n").hexdigest(), "ce013625030ba8dba906f756967f9e9ca394464a"
    assert blob_id(b"hello\n") == blob

    def is_right(*promised: str | None) -> bool:
        checksum = Checksum(RemoteFile("x", 6, *promised))
        checksum.update(b"hel")
        checksum.update(b"lo\n")
        assert checksum.sha256 == sha256
        return checksum.is_right

    for promised in ((sha256, None), (None, blob), (sha256, blob), (None, None)):
        assert is_right(*promised)
    for promised in (("0" * 64, None), (None, "0" * 40), (sha256, "0" * 40), ("0" * 64, blob)):
        assert not is_right(*promised)


def test_pointers() -> None:
    """A pointer names its file's hash and size; weights that begin like one are not one."""
    found = pointer("x", pointer_to(b"abc"))
    assert found == RemoteFile("x", 3, sha256=hashlib.sha256(b"abc").hexdigest())
    assert pointer("x", pointer_to(b"abc") + b"more") is None
    assert pointer("x", b"") is None
