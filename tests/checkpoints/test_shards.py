"""An index is a promise about shards, and is held to it."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sd35.checkpoints.reader import weight_files
from sd35.checkpoints.shards import parse_index
from sd35.errors import CheckpointError

Change = Callable[[dict[str, object]], object]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """Two sound shards and their index."""
    part = tmp_path / "root" / "part"
    part.mkdir(parents=True)
    save_file({"a": torch.zeros(4)}, part / "m-1.safetensors")
    save_file({"b": torch.zeros(2)}, part / "m-2.safetensors")
    content = {"metadata": {"total_size": 24}, "weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}
    (part / "m.safetensors.index.json").write_text(json.dumps(content))
    return part / "m.safetensors.index.json"


def refusal(index: Path, **weight_map: object) -> str:
    """Why the component is refused when its index says this in addition."""
    content = json.loads(index.read_text())
    content["weight_map"].update(weight_map)
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        weight_files(index.parent, "m")
    return str(caught.value)


def test_a_sound_index(index: Path) -> None:
    """Its shards, sorted; without metadata as well."""
    assert [path.name for path in weight_files(index.parent, "m")] == ["m-1.safetensors", "m-2.safetensors"]
    index.write_text(json.dumps({"weight_map": json.loads(index.read_text())["weight_map"]}))
    assert len(weight_files(index.parent, "m")) == 2


@pytest.mark.parametrize(
    "shard",
    [
        "../m-1.safetensors", "/etc/m.safetensors", "..\\m.safetensors", "m\0.safetensors", ".safetensors",
        "m.bin", "", "a/b.safetensors", "m\u202e.safetensors", "x" * 300 + ".safetensors",
    ],
)  # fmt: skip
def test_shards_lie_beside_the_index(index: Path, shard: str) -> None:
    """B17: traversal, absolute paths, backslashes, NUL, other kinds of name."""
    message = refusal(index, c=shard)
    assert "no safetensors file beside it" in message
    assert message.isprintable()


def test_shards_are_regular_files(index: Path, tmp_path: Path) -> None:
    """B17: a folder, a FIFO (which must not hang), a link to itself, a link out of the folder."""
    part = index.parent
    (part / "folder.safetensors").mkdir()
    os.mkfifo(part / "fifo.safetensors")
    (part / "loop.safetensors").symlink_to("loop.safetensors")
    (tmp_path / "out").write_bytes((part / "m-1.safetensors").read_bytes())
    (part / "out.safetensors").symlink_to(tmp_path / "out")
    (part / "gone.safetensors").symlink_to("nowhere")
    kinds = {
        "folder": "a folder",
        "fifo": "a FIFO",
        "loop": "leads nowhere",
        "out": "a link that leaves",
        "gone": "not there",
    }
    for name, words in kinds.items():
        assert words in refusal(index, c=f"{name}.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda index: index["weight_map"].update(a="m-2.safetensors"), "disagree on where these are: a"),
        (lambda index: index["weight_map"].update(c="m-1.safetensors"), "disagree on where these are: c"),
        (lambda index: index["metadata"].update(total_size=25), "promises 25 bytes"),
        (lambda index: index["metadata"].update(total_size=-1), "total size -1"),
        (lambda index: index["metadata"].update(total_size="24"), "total size"),
        (lambda index: index.update(metadata=[]), "metadata"),
        (lambda index: index.update(weight_map={}), "weight_map"),
        (lambda index: index.update(weight_map=[]), "weight_map"),
        (lambda index: index.update(weight_map={"a": {"b": "m"}}), "no safetensors file beside it"),
        (lambda index: index.update(auto_map={}), "unknown keys auto_map"),
        (lambda index: index["weight_map"].update({"\x1b": "m-1.safetensors"}), "no checkpoint holds"),
    ],
)
def test_what_an_index_may_not_say(index: Path, change: Change, words: str) -> None:
    """B18: wrong shards, wrong sizes, wrong kinds of value."""
    content = json.loads(index.read_text())
    change(content)
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=words):
        weight_files(index.parent, "m")


def test_a_tensor_in_two_shards(index: Path) -> None:
    """B18: whichever the index names, the other would be read by someone else."""
    save_file({"b": torch.zeros(2), "a": torch.ones(4)}, index.parent / "m-2.safetensors")
    with pytest.raises(CheckpointError, match="two hold a"):
        weight_files(index.parent, "m")


def test_index_bombs() -> None:
    """B18: too many tensors, too many shards."""
    with pytest.raises(ValueError, match="weight_map"):
        parse_index({"weight_map": {f"t{i}": "m.safetensors" for i in range(20_001)}})
    with pytest.raises(ValueError, match="101 shards"):
        parse_index({"weight_map": {f"t{i}": f"m{i}.safetensors" for i in range(101)}})
