"""`sd35 verify` as people and programs call it."""

import json
from pathlib import Path

import pytest

from sd35.cli.main import main


def test_sound(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0, the variant, and what the bytes were compared with."""
    assert main(["verify", "demo"]) == 0
    out = capsys.readouterr().out
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
