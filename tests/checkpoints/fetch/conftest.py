"""A small repository in diffusers' layout, with much in it that must stay behind, and a hub that has it."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_hub import SHARD, WEIGHTS, LoopbackHub

from sd35.checkpoints.fetch import transfer


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of its own, nothing of the user's hub settings, and no pauses."""
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE",
                 "TRANSFORMERS_OFFLINE"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("SD35_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(transfer, "PAUSE", 0.001)
    monkeypatch.setattr("os.fsync", lambda _: None)  # flushing twenty small files costs more than all else


@pytest.fixture(scope="session")
def wanted() -> dict[str, bytes]:
    """What a checkpoint needs: path -> content."""
    noise = random.Random(3)
    files = {
        "model_index.json": b'{"_class_name": "StableDiffusion3Pipeline"}\n',
        "LICENSE.md": b"Be kind.\n",
    }
    for name in ("text_encoder", "text_encoder_2"):
        files[f"{name}/config.json"] = json.dumps({"name": name}).encode()
        files[f"{name}/model.safetensors"] = noise.randbytes(20_000)
    files["text_encoder_3/config.json"] = b"{}"
    files["text_encoder_3/model.safetensors.index.json"] = b'{"weight_map": {}}'
    files[SHARD] = noise.randbytes(60_000)
    files["text_encoder_3/model-00002-of-00002.safetensors"] = noise.randbytes(50_000)
    for name in ("tokenizer", "tokenizer_2"):
        files[f"{name}/tokenizer_config.json"] = b"{}"
        files[f"{name}/merges.txt"] = noise.randbytes(3_000).hex().encode()
        files[f"{name}/vocab.json"] = b'{"a": 0}'
    files["tokenizer_3/tokenizer_config.json"] = b"{}"
    files["tokenizer_3/spiece.model"] = noise.randbytes(9_000)
    files["scheduler/scheduler_config.json"] = b'{"shift": 3.0}'
    files["vae/config.json"] = b"{}"
    files["vae/diffusion_pytorch_model.safetensors"] = noise.randbytes(30_000)
    files["transformer/config.json"] = b"{}"
    files[WEIGHTS] = noise.randbytes(400_000)
    return files


@pytest.fixture(scope="session")
def repository(wanted: dict[str, bytes]) -> dict[str, bytes]:
    """The same, with what must stay behind."""
    left = ("README.md", ".gitattributes", "pipeline.py", "demo.png", "single.safetensors",
            "transformer/model.py", "transformer/diffusion_pytorch_model.fp16.safetensors",
            "transformer/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin",
            "text_encoder/model.fp16.safetensors", "text_encoder/flax_model.msgpack",
            "text_encoder_3/model.safetensors.index.fp16.json",
            "text_encoder_3/model.fp16.safetensors.index.json",
            "text_encoders/t5.safetensors", "image_encoder/model.safetensors", "vae/setup.py")  # fmt: skip
    return {**wanted, **{path: path.encode() * 7 for path in left}}


@pytest.fixture
def hub(repository: dict[str, bytes]) -> Iterator[LoopbackHub]:
    """A hub that has the repository as `maker/model`."""
    with LoopbackHub(dict(repository)) as server:
        yield server
