"""Killed, interrupted or out of disk: no output, and --resume ends where an undisturbed run does."""

import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import sd35
from sd35.checkpoints import unfinished
from sd35.checkpoints.manifest import hash_files
from sd35.errors import OutputError
from sd35.fp8 import Scheme
from sd35.quantization import lazily

# A run that ends by SIGKILL, as a process does that the system has no memory for.
_KILLED = """
import os, signal, sys
import sd35
from sd35.checkpoints import unfinished
from sd35.quantization import lazily
unfinished.STEP, left, quantize = 1, 30, lazily.quantize_tensor
def counted(*arguments):
    global left
    left -= 1
    return quantize(*arguments) if left else os.kill(os.getpid(), signal.SIGKILL)
lazily.quantize_tensor = counted
sd35.quantize(sys.argv[1], sys.argv[2])
"""


@pytest.fixture(autouse=True)
def _every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps so small that each tensor is one."""
    monkeypatch.setattr(unfinished, "STEP", 1)


@pytest.fixture
def quantized(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], list[int]]:
    """Count the tensors that are quantized from here on, and interrupt at the n-th."""
    quantize = lazily.quantize_tensor

    def start(stop_at: int | None = None) -> list[int]:
        done: list[int] = []

        def counted(*arguments: Any) -> object:
            if len(done) + 1 == stop_at:
                raise KeyboardInterrupt
            done.append(1)
            return quantize(*arguments)

        monkeypatch.setattr(lazily, "quantize_tensor", counted)
        return done

    return start


@contextmanager
def room_for_files_of(size: int) -> Iterator[None]:
    """No file may grow beyond this: what a full disk does, without filling one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def same_bytes(a: Path, b: Path) -> bool:
    """Equal files, the manifests included."""
    return hash_files(a) == hash_files(b) and (a / "sd35.json").read_bytes() == (b / "sd35.json").read_bytes()


@pytest.mark.parametrize("at", [1, 2, 50])
def test_resumed_is_the_same(
    demo: Path, demo_fp8: Path, tmp_path: Path, quantized: Callable[..., list[int]], at: int
) -> None:
    """Files and manifest are those of an undisturbed run, and what was done is not done again."""
    out = tmp_path / "out"
    quantized(stop_at=at)
    with pytest.raises(KeyboardInterrupt):
        sd35.quantize(demo, out)
    assert not out.exists()
    done = quantized()
    report = sd35.quantize(demo, out, resume=True)
    assert same_bytes(out, demo_fp8)
    assert report.layers - at <= len(done) <= report.layers - at + 2  # a scale alone is taken anew
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_killed_for_good(demo: Path, demo_fp8: Path, tmp_path: Path) -> None:
    """SIGKILL leaves no output and no lock; interrupted again while it resumes, it still ends the same."""
    run = subprocess.run([sys.executable, "-c", _KILLED, demo, tmp_path / "out"], check=False)
    assert run.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]
    sd35.quantize(demo, tmp_path / "out", resume=True)
    assert same_bytes(tmp_path / "out", demo_fp8)


def test_another_recipe_starts_anew(
    demo: Path, demo_fp8: Path, tmp_path: Path, quantized: Callable[..., list[int]]
) -> None:
    """E5M2's half-made folder is no beginning of E4M3's."""
    quantized(stop_at=50)
    with pytest.raises(KeyboardInterrupt):
        sd35.quantize(demo, tmp_path / "out", sd35.Recipe.of(Scheme("e5m2")))
    quantized()
    sd35.quantize(demo, tmp_path / "out", resume=True)
    assert same_bytes(tmp_path / "out", demo_fp8)


def test_a_changed_source_starts_anew(
    demo_copy: Path, tmp_path: Path, quantized: Callable[..., list[int]], edit_tensors: Callable[..., None]
) -> None:
    """What was made of the source as it was is not mixed with what it is now."""
    quantized(stop_at=50)
    with pytest.raises(KeyboardInterrupt):
        sd35.quantize(demo_copy, tmp_path / "out")
    weights = demo_copy / "transformer/diffusion_pytorch_model.safetensors"
    edit_tensors(weights, lambda tensors: tensors["context_embedder.bias"].add_(1))
    quantized()
    sd35.quantize(demo_copy, tmp_path / "out", resume=True)
    sd35.quantize(demo_copy, tmp_path / "undisturbed")
    assert same_bytes(tmp_path / "out", tmp_path / "undisturbed")


@pytest.mark.parametrize("size", [1_000, 1_000_000, 10_000_000])
def test_out_of_disk(demo: Path, demo_fp8: Path, tmp_path: Path, size: int) -> None:
    """At a config, a copied file or the transformer: one sentence, no output, and it goes on from there."""
    with room_for_files_of(size), pytest.raises(OutputError, match="--resume"):
        sd35.quantize(demo, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    sd35.quantize(demo, tmp_path / "out", resume=True)
    assert same_bytes(tmp_path / "out", demo_fp8)


def test_a_single_file_is_resumed(demo: Path, tmp_path: Path, quantized: Callable[..., list[int]]) -> None:
    """Converting into one file goes on as well, and with the same bytes."""
    arguments = {"target": "comfy", "requantize": True}
    sd35.convert(demo, tmp_path / "a.safetensors", **arguments)
    quantized(stop_at=20)
    with pytest.raises(KeyboardInterrupt):
        sd35.convert(demo, tmp_path / "b.safetensors", **arguments)
    assert not (tmp_path / "b.safetensors").exists()
    done = quantized()
    report = sd35.convert(demo, tmp_path / "b.safetensors", **arguments, resume=True)
    assert 0 < len(done) <= report.layers - 18
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
