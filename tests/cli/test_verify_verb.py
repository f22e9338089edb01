"""`sd35 verify` as people and programs call it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sd35.cli.main import main


def test_sound(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0, the variant, and what the bytes were compared with: the bundled folder has its hashes."""
    assert main(["verify", "demo"]) == 0
    out = capsys.readouterr().out
    assert "compared with   sd35.json (18 of 18 files)" in out
    assert "demo, " in out
    assert out.endswith("sound\n")


def test_not_sound(demo_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 3; every finding with its file, reason and remedy, as text and as objects."""
    path = demo_copy / "vae/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert main(["verify", str(demo_copy)]) == 3
    captured = capsys.readouterr()
    assert "wrong   vae/diffusion_pytorch_model.safetensors is cut off at" in captured.out
    assert "is not sound: 1 finding." in captured.err
    assert main(["verify", str(demo_copy), "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert report["sound"] is False
    assert report["damaged"] == ["vae/diffusion_pytorch_model.safetensors"]
    assert report["findings"][0].keys() == {"file", "reason", "remedy"}


def test_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 4 for a path that is not there."""
    assert main(["verify", "/nowhere"]) == 4
    assert "/nowhere" in capsys.readouterr().err


def test_fix_mends_what_is_damaged_and_no_more(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flipped bit, a missing file: --fix brings these two again from the origin; the rest stays."""
    folder = tmp_path / "fetched"
    assert main(["fetch", str(demo), "--via", "folder", "-o", str(folder)]) == 0
    weights, config = folder / "vae/diffusion_pytorch_model.safetensors", folder / "vae/config.json"
    good, untouched = weights.read_bytes(), (folder / "transformer/config.json").stat().st_mtime_ns
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    config.unlink()
    assert main(["verify", str(folder)]) == 3
    capsys.readouterr()
    assert main(["verify", str(folder), "--fix", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sound"] is True
    assert weights.read_bytes() == good
    assert config.is_file()
    assert (folder / "transformer/config.json").stat().st_mtime_ns == untouched


def test_record(demo_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sound folder without a manifest gets one, git's own files apart; it is never overwritten."""
    (demo_copy / ".git").mkdir()
    (demo_copy / ".git" / "index").write_bytes(b"changes with every command")
    config = demo_copy / "scheduler/scheduler_config.json"
    assert main(["verify", str(demo_copy), "--record"]) == 0
    assert f"recorded   18 files in {demo_copy / 'sd35.json'}" in capsys.readouterr().out
    assert main(["verify", str(demo_copy)]) == 0
    assert main(["verify", str(demo_copy), "--record"]) == 2
    assert "is there already, and is never overwritten" in capsys.readouterr().err
    config.write_bytes(config.read_bytes() + b"\n")
    assert main(["verify", str(demo_copy)]) == 3
    (demo_copy / "sd35.json").unlink()
    config.write_text("{")
    assert main(["verify", str(demo_copy), "--record"]) == 3
    assert not (demo_copy / "sd35.json").exists()


def test_fix_of_a_single_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A single file is mended from the origin that its folder's manifest has."""
    source, folder = tmp_path / "source", tmp_path / "fetched"
    source.mkdir()
    assert main(["convert", "demo", str(source / "x.safetensors"), "--format", "16bit-file"]) == 0
    assert main(["fetch", str(source), "--file", "x.safetensors", "-o", str(folder)]) == 0
    path = folder / "x.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert main(["verify", str(path)]) == 3
    assert main(["verify", str(path), "--fix"]) == 0
    assert path.read_bytes() == good


def test_fix_without_an_origin_says_so(demo_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that no fetch made can't be mended, and the sentence says what to do instead."""
    (demo_copy / "vae/config.json").unlink()
    assert main(["verify", str(demo_copy), "--fix"]) == 3
    assert "fetch it anew" in capsys.readouterr().err


def test_a_single_file_is_held_to_the_table(
    tmp_path: Path, edit_tensors: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A file with the original names is compared tensor by tensor, fused and swapped ones too."""
    path = tmp_path / "demo.safetensors"
    assert main(["convert", "demo", str(path), "--format", "16bit-file"]) == 0
    assert main(["verify", str(path)]) == 0
    assert "demo, " in capsys.readouterr().out

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.diffusion_model.context_embedder.bias"]
        fused = "model.diffusion_model.joint_blocks.2.x_block.mlp.fc1.weight"
        tensors[fused] = tensors[fused][:-16].contiguous()

    edit_tensors(path, damage)
    assert main(["verify", str(path)]) == 3
    out = capsys.readouterr().out
    assert "lacks 1 tensors: context_embedder.bias" in out
    assert "transformer_blocks.2.ff.net.0.proj.weight of shape [1008, 256]" in out
