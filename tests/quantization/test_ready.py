"""What sd35 makes for itself under SD35_HOME, and what of it takes no second room."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sd35
from sd35.checkpoints.placing import Job, fresh_folder
from sd35.checkpoints.verify import verify
from sd35.config import RuntimeConfig
from sd35.errors import CheckpointError
from sd35.quantization import ready as ready_module
from sd35.quantization.ready import load, load_in_16_bits, ready
from sd35.runtime.linear import Fp8Linear
from sd35.runtime.pipeline import Pipeline

VAE, T5 = "vae/diffusion_pytorch_model.safetensors", "text_encoder_3/model.safetensors"
CONFIG = "text_encoder_3/config.json"


@pytest.fixture
def home(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that holds a fetched checkpoint, the demo under another name."""
    monkeypatch.setenv("SD35_HOME", str(tmp_path / "home"))
    shutil.copytree(demo, tmp_path / "home" / "checkpoints" / "mine")
    return tmp_path / "home"


def test_our_own_folders_share_what_is_equal(home: Path) -> None:
    """The derived folder of a fetched one links encoders and VAE, and owns what it may write into."""
    source, place = home / "checkpoints" / "mine", ready("mine", "fp8")
    assert place.is_relative_to(home / "derived")
    assert (place / VAE).samefile(source / VAE)
    assert (place / T5).samefile(source / T5)
    assert not (place / CONFIG).samefile(source / CONFIG)
    assert verify(place).sound
    shutil.rmtree(source)
    assert verify(place).sound


def test_whoever_comes_second_waits(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another process makes the FP8 folder, the next one waits; it goes on if the other gives up."""
    looked = threading.Event()
    monkeypatch.setattr("sd35.quantization.ready.time.sleep", lambda _: looked.set())
    first = ready("mine", "fp8")
    shutil.rmtree(first)
    with ThreadPoolExecutor() as pool:
        try:
            with fresh_folder(first, 0, Job({})):
                second = pool.submit(ready, "mine", "fp8")
                assert looked.wait(60)
                assert not second.done()
                raise CheckpointError("given up")
        except CheckpointError:
            pass
        assert second.result(60) == first
    assert verify(first).sound


def test_whoever_finds_it_made_is_content(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder may come between the look for it and the work on it."""
    real = ready_module.quantize

    def made_meanwhile(*arguments: Any, **choices: Any) -> None:
        real(*arguments, **choices)
        real(*arguments, **choices)

    monkeypatch.setattr(ready_module, "quantize", made_meanwhile)
    assert verify(ready("mine", "fp8")).sound


def test_damage_to_the_shared_file_is_found_in_both(home: Path) -> None:
    """What is written into one is in the other; both manifests tell."""
    source, place = home / "checkpoints" / "mine", ready("mine", "fp8")
    content = bytearray((source / VAE).read_bytes())
    content[-9] ^= 1
    (source / VAE).write_bytes(content)
    assert verify(source).damaged == verify(place).damaged == [VAE]


def test_folders_of_others_are_copied(demo: Path, home: Path, tmp_path: Path) -> None:
    """A source outside of the home, one linked into it, and a place that a person chose."""
    shutil.copytree(demo, tmp_path / "theirs")
    (home / "checkpoints" / "linked").symlink_to(tmp_path / "theirs")
    assert not (ready("linked", "fp8") / VAE).samefile(tmp_path / "theirs" / VAE)
    sd35.quantize("mine", tmp_path / "out")
    assert not (tmp_path / "out" / VAE).samefile(home / "checkpoints" / "mine" / VAE)


def test_linked_weights_need_no_room(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room is looked for without them."""
    asked: list[int] = []
    monkeypatch.setattr("sd35.checkpoints.placing._check_room", lambda _, needed: asked.append(needed))
    sd35.quantize("mine", tmp_path / "copied")
    sd35.quantize("mine", tmp_path / "linked", link_below=Path("/"))
    source = home / "checkpoints" / "mine"
    shared = [path for path in source.rglob("*.safetensors") if path.parent.name != "transformer"]
    assert asked[0] - asked[1] == sum(path.stat().st_size for path in shared)
    assert all((tmp_path / "linked" / path.relative_to(source)).samefile(path) for path in shared)


REQUEST = sd35.GenerationRequest("a red apple", width=64, height=64, num_inference_steps=2, seed=1)
CPU = RuntimeConfig(device="cpu")


def test_second_opinion_of_16_bit_files_is_their_own() -> None:
    """Nothing of FP8 is in it: the pixels are those of the bf16 pipeline."""
    opinion, plain = load_in_16_bits("demo", CPU), load("demo", "bf16", CPU)
    drawn = [pipeline.generate(REQUEST).images[0].image.tobytes() for pipeline in (opinion, plain)]
    assert drawn[0] == drawn[1]


def test_second_opinion_of_fp8_files_multiplies_nothing_in_fp8(
    demo_fp8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their weights are restored, no product takes FP8 values; the picture is the same but for rounding."""
    config = RuntimeConfig(device="cpu", activations="fp8")
    in_fp8 = _pixels(load(demo_fp8, "fp8", config))
    monkeypatch.setattr(Fp8Linear, "_product", _never)
    restored = _pixels(load_in_16_bits(demo_fp8, config))
    difference = np.abs(restored - in_fp8).mean()
    assert 0 < difference < 5, "of 255"
    with pytest.raises(AssertionError, match="an FP8 product"):
        _pixels(load(demo_fp8, "fp8", config))


def _pixels(pipeline: Pipeline) -> "np.ndarray[Any, np.dtype[np.float64]]":
    return np.asarray(pipeline.generate(REQUEST).images[0].image).astype(np.float64)


def _never(*_: object) -> None:
    raise AssertionError("an FP8 product")
