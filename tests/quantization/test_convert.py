"""Folder in, FP8 folder out."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file

import sd35
from sd35.checkpoints.folder import open_folder
from sd35.checkpoints.manifest import hash_files, read_manifest
from sd35.errors import CheckpointError, OutputError, RequestError
from sd35.fp8 import Scheme, quantize
from sd35.quantization.ready import is_fp8, ready

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


def test_every_tensor_is_accounted_for(demo: Path, demo_fp8: Path) -> None:
    """FP8 where the recipe says so, restored within half a step; every other tensor untouched."""
    before, after = load_file(demo / TRANSFORMER), load_file(demo_fp8 / TRANSFORMER)
    fp8 = {name for name, tensor in after.items() if tensor.dtype == torch.float8_e4m3fn}
    assert set(after) == set(before) | {f"{name}_scale" for name in fp8}
    assert len(fp8) > 80
    for name, tensor in before.items():
        if name in fp8:
            expected = quantize(tensor)
            assert torch.equal(after[name].view(torch.uint8), expected.data.view(torch.uint8))
            assert torch.equal(after[f"{name}_scale"], expected.scale)
        else:
            assert torch.equal(after[name], tensor)


def test_transformer_is_at_most_55_percent(demo: Path, demo_fp8: Path) -> None:
    """Parameter bytes beside 16-bit, position table apart, scales included."""

    def parameter_bytes(folder: Path) -> int:
        with open_folder(folder).tensors("transformer") as reader:
            return sum(spec.num_bytes for name, spec in reader.specs.items() if name != "pos_embed.pos_embed")

    assert parameter_bytes(demo_fp8) <= 0.55 * parameter_bytes(demo)


def test_equal_input_gives_equal_bytes(demo: Path, tmp_path: Path) -> None:
    """Two runs write the same files to the last byte, the manifest included."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        sd35.quantize(demo, folder)
    digests = [{p.name: hashlib.sha256(p.read_bytes()).digest() for p in f.rglob("*.*")} for f in folders]
    assert digests[0] == digests[1]


def test_the_manifest_tells_the_origin(demo: Path, demo_fp8: Path) -> None:
    """Recipe, tool, hashes of the source and of what was written."""
    manifest = read_manifest(demo_fp8)
    assert manifest is not None
    assert manifest.tool == f"sd35-fp8 {sd35.__version__}"
    assert manifest.recipe == sd35.Recipe().as_dict()
    assert manifest.source == hash_files(demo)
    assert manifest.files == hash_files(demo_fp8)


def test_plain_diffusers_refuses_it_aloud(demo_fp8: Path) -> None:
    """Other loaders would drop the scales: our config entry makes them stop."""
    with pytest.raises(ValueError, match="sd35_fp8"):
        SD3Transformer2DModel.from_pretrained(demo_fp8 / "transformer")


def test_an_existing_place_is_never_overwritten(demo: Path, tmp_path: Path) -> None:
    """What is there stays as it was."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        sd35.quantize(demo, tmp_path / "there")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine"]


def test_a_full_disk_is_said_before_any_work(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little room is refused with both figures."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(OutputError, match="1 MB free and up to 39 MB"):
        sd35.quantize(demo, tmp_path / "fp8")


def test_fp8_is_not_quantized_again(demo_fp8: Path, tmp_path: Path) -> None:
    """An FP8 folder is refused as a source."""
    with pytest.raises(CheckpointError, match="FP8 already"):
        sd35.quantize(demo_fp8, tmp_path / "twice")


def test_nan_in_the_source_is_found(
    demo_copy: Path, tmp_path: Path, edit_tensors: Callable[..., None]
) -> None:
    """A damaged weight is named, and no folder is written."""
    name = "transformer_blocks.4.ff.net.2.weight"
    edit_tensors(demo_copy / TRANSFORMER, lambda tensors: tensors[name][3].fill_(float("nan")))
    with pytest.raises(CheckpointError, match=name):
        sd35.quantize(demo_copy, tmp_path / "fp8")
    assert not (tmp_path / "fp8").exists()


@pytest.mark.parametrize("name", ["pipeline.py", "evil.bin"])
def test_a_folder_with_code_is_not_converted(demo_copy: Path, tmp_path: Path, name: str) -> None:
    """Code and pickles beside the weights end it before anything is written."""
    (demo_copy / "vae" / name).write_text("x")
    with pytest.raises(CheckpointError, match=name):
        sd35.quantize(demo_copy, tmp_path / "fp8")
    assert not (tmp_path / "fp8").exists()


def test_strangers_stay_behind(demo_copy: Path, tmp_path: Path) -> None:
    """Only the kinds of file that a checkpoint needs are copied."""
    (demo_copy / "vae" / "picture.png").write_text("x")
    sd35.quantize(demo_copy, tmp_path / "fp8", sd35.Recipe.of(Scheme(), with_t5=True))
    kinds = {path.suffix for path in (tmp_path / "fp8").rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors"}
    config = json.loads((tmp_path / "fp8/text_encoder_3/config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "sd35_fp8"


def test_ready_makes_fp8_once(demo_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 16-bit folder is quantized when FP8 is first asked for, and found from then on."""
    place = ready(demo_copy, "fp8")
    assert is_fp8(place)
    assert not is_fp8(demo_copy)
    monkeypatch.setattr("sd35.quantization.ready.quantize", lambda *_: pytest.fail("quantized twice"))
    assert ready(demo_copy, "fp8") == place
    assert ready(place, "fp8") == place
    assert ready(demo_copy, "bf16") == demo_copy


def test_ready_takes_single_files(demo: Path, tmp_path: Path) -> None:
    """A 16-bit single file is quantized once, as its folder would be; an FP8 one is taken as it is."""
    path = tmp_path / "single.safetensors"
    sd35.convert(demo, path, "16bit-file")
    place = ready(path, "fp8", demo)
    assert ready(path, "fp8", demo) == place
    ours, folders = load_file(place / TRANSFORMER), load_file(ready(demo, "fp8") / TRANSFORMER)
    assert set(ours) == set(folders)
    assert all(torch.equal(ours[name].float(), folders[name].float()) for name in ours)
    sd35.convert(place, tmp_path / "fp8.safetensors", "rowwise")
    assert ready(tmp_path / "fp8.safetensors", "fp8", demo) == tmp_path / "fp8.safetensors"
    with pytest.raises(CheckpointError, match="16-bit folder or file"):
        ready(tmp_path / "fp8.safetensors", "bf16", demo)


def test_lost_bits_do_not_come_back(demo_fp8: Path) -> None:
    """bf16 of an FP8 folder is refused, and so is an unknown precision."""
    with pytest.raises(CheckpointError, match="16-bit folder"):
        ready(demo_fp8, "bf16")
    with pytest.raises(RequestError, match="precision"):
        ready(demo_fp8, "fp4")  # type: ignore[arg-type]
