"""Reader and writer: names to tensors and back."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sd35.checkpoints import reader as reader_module
from sd35.checkpoints.lazy import Lazy, given
from sd35.checkpoints.reader import TensorReader, TensorSpec, weight_files
from sd35.checkpoints.writer import write_safetensors
from sd35.errors import CheckpointError

TENSORS = {
    "a": torch.randn(3, 5),
    "b": torch.randn(7).bfloat16(),
    "c": torch.randn(4, 4).to(torch.float8_e4m3fn),
    "d": torch.tensor(2.0),
    "empty": torch.zeros(0, 3),
}
LAZY = {name: given(tensor) for name, tensor in TENSORS.items()}
SPECS = {name: TensorSpec(tensor.dtype, tensor.shape) for name, tensor in TENSORS.items()}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal dtype, shape and bytes."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.float(), b.float())


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    """safetensors itself loads our file and finds every tensor as it was."""
    path = tmp_path / "x.safetensors"
    write_safetensors(path, LAZY, {"format": "pt"})
    loaded = load_file(path)
    assert set(loaded) == set(TENSORS)
    assert all(same(loaded[name], TENSORS[name]) for name in TENSORS)


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    """Names, dtypes, shapes, values and metadata of a file of safetensors' own."""
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path, metadata={"k": "v"})
    with TensorReader([path]) as reader:
        assert reader.metadata == {"k": "v"}
        assert reader.specs == SPECS
        assert all(same(reader.read(name), TENSORS[name]) for name in reader)
        assert reader.num_bytes == sum(tensor.nbytes for tensor in TENSORS.values())


def test_broken_promises_are_bugs(tmp_path: Path) -> None:
    """A value that is not what its spec promised never passes, and there is no file."""
    with pytest.raises(ValueError, match="promised"):
        write_safetensors(tmp_path / "x", {"a": Lazy(SPECS["a"], TENSORS["a"].double)}, {})
    assert not (tmp_path / "x").exists()


def test_shards_are_one_mapping(tmp_path: Path) -> None:
    """Two shards and an index read as one set of tensors."""
    names = list(TENSORS)
    weight_map = {name: f"m-{1 + (name > 'b')}.safetensors" for name in names}
    for shard in set(weight_map.values()):
        save_file({n: TENSORS[n] for n in names if weight_map[n] == shard}, tmp_path / shard)
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with TensorReader(weight_files(tmp_path, "m")) as reader:
        assert reader.specs == SPECS


@pytest.mark.parametrize(
    "shard", ["../m.safetensors", "/etc/m.safetensors", "C:m.safetensors", "m.bin", "gone.safetensors", 3]
)
def test_index_may_only_name_shards_beside_it(tmp_path: Path, shard: object) -> None:
    """Traversal (though the file exists), other kinds of file and missing shards are refused."""
    save_file(TENSORS, tmp_path / "m.safetensors")
    save_file(TENSORS, tmp_path / "m.bin")
    folder = tmp_path / "part"
    folder.mkdir()
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(CheckpointError, match=r"shard|weight_map"):
        weight_files(folder, "m")


def test_no_weights_and_no_pickles(tmp_path: Path) -> None:
    """A pickle beside is no replacement for missing weights."""
    (tmp_path / "m.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="pickle"):
        weight_files(tmp_path, "m")


def mapped_bytes(path: Path) -> int:
    """Bytes of the file that count as this process's memory now."""
    blocks = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    resident = (re.search(r"^Rss: +(\d+) kB", block, re.MULTILINE) for block in blocks if str(path) in block)
    return sum(int(match[1]) * 1024 for match in resident if match)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what is mapped")
def test_a_streamed_file_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read tensor by tensor, no more of the file stays mapped than a step and a tensor; values stay valid."""
    monkeypatch.setattr(reader_module, "RENEWAL", 2 << 20)
    path = tmp_path / "x.safetensors"
    save_file({f"t{number:02}": torch.full((1 << 18,), float(number)) for number in range(16)}, path)
    with TensorReader([path]) as reader:
        reader.stream()
        first = reader.read("t00")
        most = 0
        for name in reader:
            assert reader.read(name).sum() == int(name[1:]) << 18
            most = max(most, mapped_bytes(path))
        assert 0 < most <= 6 << 20  # `first` keeps its own mapping
        assert first.sum() == 0


def test_damaged_file(tmp_path: Path) -> None:
    """A truncated file is refused with its name."""
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        TensorReader([path])


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    """The same name twice is refused, not resolved."""
    for name in ("x", "y"):
        save_file({"a": TENSORS["a"]}, tmp_path / name)
    with pytest.raises(CheckpointError, match="another shard"):
        TensorReader([tmp_path / "x", tmp_path / "y"])
