"""Formats into one another: lossless where they can hold it, and said where they can't."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import sd35
from sd35.checkpoints.formats import detect
from sd35.checkpoints.manifest import beside, hash_file, hash_files, read_manifest
from sd35.checkpoints.original_parts import parts_held, read_part
from sd35.checkpoints.schemes import METADATA_KEY
from sd35.checkpoints.source import TensorSource
from sd35.checkpoints.verify import verify
from sd35.errors import CheckpointError, OutputError, RequestError
from sd35.fp8 import Scheme, quantize

PREFIX = "model.diffusion_model."
QKV = "joint_blocks.1.x_block.attn.qkv"


def open_file(path: Path) -> TensorSource:
    """The transformer of a single file."""
    return read_part(path, "transformer", parts_held(path)["transformer"])


def assert_same(path: Path, other: Path) -> None:
    """Two files restore every weight of the transformer to the same values."""
    with open_file(path) as a, open_file(other) as b:
        assert set(a.schemes) == set(b.schemes)
        assert set(a) == set(b)
        for name in a:
            if name.endswith("_scale"):
                continue
            if name.removesuffix(".weight") in a.schemes:
                assert torch.equal(restored(a, name), restored(b, name)), name
            else:
                assert torch.equal(a.read(name), b.read(name)), name


def restored(source: TensorSource, weight: str) -> Tensor:
    """An FP8 weight's values."""
    return source.read(weight).float() * source.read(f"{weight}_scale")


@pytest.fixture(scope="module")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo in ComfyUI's current format."""
    path = tmp_path_factory.mktemp("comfy") / "comfy.safetensors"
    report = sd35.convert("demo", path, "comfy", requantize=True)
    assert report.requantized == report.layers == 61
    return path


def test_what_comfy_reads(comfy: Path, demo: Path) -> None:
    """One float32 scale a tensor, only beside FP8; both transports of hints; q, k, v quantized as one."""
    tensors = load_file(comfy)
    scaled = {name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")}
    assert {n.removesuffix(".weight") for n, t in tensors.items() if t.dtype == torch.float8_e4m3fn} == scaled
    assert {name.removesuffix(".comfy_quant") for name in tensors if "comfy_quant" in name} == scaled
    assert all(tensors[f"{layer}.weight_scale"].shape == () for layer in scaled)
    assert all(tensors[f"{layer}.weight_scale"].dtype == torch.float32 for layer in scaled)
    with safe_open(comfy, "pt") as file:
        hints = json.loads(file.metadata()[METADATA_KEY])["layers"]
    assert set(hints) == scaled
    assert {hint["format"] for hint in hints.values()} == {"float8_e4m3fn"}
    for layer, hint in hints.items():
        assert json.loads(bytes(tensors[f"{layer}.comfy_quant"].tolist())) == hint
        assert hint.get("full_precision_matrix_mult", False) == ("adaLN" in layer)
    source = load_file(next((demo / "transformer").glob("*.safetensors")))
    whole = torch.cat([source[f"transformer_blocks.1.attn.to_{x}.weight"] for x in "qkv"])
    expected = quantize(whole, "e4m3fn", "tensorwise")
    assert torch.equal(tensors[f"{PREFIX}{QKV}.weight"].float(), expected.data.float())
    assert torch.equal(tensors[f"{PREFIX}{QKV}.weight_scale"], expected.scale)


@pytest.mark.parametrize("target", ["comfy", "comfy-legacy", "rowwise"])
def test_one_scale_a_tensor_goes_anywhere(comfy: Path, tmp_path: Path, target: str) -> None:
    """From ComfyUI's format into each other one, by way of two, no value changes."""
    way, end = tmp_path / "way.safetensors", tmp_path / "end.safetensors"
    assert sd35.convert(comfy, way, target).requantized == 0  # type: ignore[arg-type]
    assert detect(way) == target
    assert_same(way, comfy)
    assert sd35.convert(way, end, "rowwise").requantized == 0
    assert_same(end, comfy)


def test_legacy_and_back(comfy: Path, tmp_path: Path) -> None:
    """B names scales and marker as the older ComfyUI does, and comes back as C to the last byte but hints."""
    legacy, back = tmp_path / "b.safetensors", tmp_path / "c.safetensors"
    notes = sd35.convert(comfy, legacy, "comfy-legacy").notes
    tensors = load_file(legacy)
    assert tensors[f"{PREFIX}scaled_fp8"].dtype == torch.float8_e4m3fn
    assert tensors[f"{PREFIX}scaled_fp8"].numel() == 2  # AdaLN products are in 16 bit, so all are
    assert notes == ["the format has one switch for all layers, so all products are taken in 16 bit"]
    assert not any(name.endswith(("weight_scale", "comfy_quant")) for name in tensors)
    sd35.convert(legacy, back, "comfy")
    before, after = load_file(comfy), load_file(back)
    assert set(before) == set(after)
    for name in before:
        if not name.endswith("comfy_quant"):
            assert torch.equal(before[name].float(), after[name].float()), name


def test_our_folder_as_rowwise(demo_fp8: Path, tmp_path: Path) -> None:
    """The default folder goes into G losslessly, [N] scales and all; ComfyUI's loader is warned off."""
    path = tmp_path / "g.safetensors"
    assert sd35.convert(demo_fp8, path, "rowwise").requantized == 0
    with open_file(path) as g, sd35_folder(demo_fp8) as folder:
        assert g.schemes == folder.schemes
        assert all(torch.equal(g.read(n).float(), folder.read(n).float()) for n in folder)
    assert load_file(path)[f"{PREFIX}{QKV}.weight_scale"].shape == (768,)
    with safe_open(path, "pt") as file:
        hints = json.loads(file.metadata()[METADATA_KEY])["layers"]
    assert {hint["format"] for hint in hints.values()} == {"float8_e4m3fn_rowwise"}


def sd35_folder(path: Path) -> TensorSource:
    """A folder's transformer."""
    from sd35.checkpoints.folder import open_folder

    return open_folder(path).tensors("transformer")


def test_folders_from_files(comfy: Path, tmp_path: Path) -> None:
    """A folder made of a file restores to the same values, and its manifest names the file."""
    sd35.convert(comfy, tmp_path / "folder", "folder")
    with open_file(comfy) as file, sd35_folder(tmp_path / "folder") as folder:
        assert folder.schemes == file.schemes
        assert all(torch.equal(file.read(name).float(), folder.read(name).float()) for name in file)
    manifest = read_manifest(tmp_path / "folder")
    assert manifest is not None
    assert manifest.files == hash_files(tmp_path / "folder")
    assert list(manifest.source) == [comfy.name]
    config = json.loads((tmp_path / "folder/transformer/config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "sd35_fp8"
    assert config["num_layers"] == 6


def test_sixteen_bit_there_and_back(demo: Path, tmp_path: Path) -> None:
    """A 16-bit folder through a single file is the same folder, tensor by tensor."""
    sd35.convert(demo, tmp_path / "x.safetensors", "16bit-file", with_encoders=True)
    sd35.convert(tmp_path / "x.safetensors", tmp_path / "back", "folder")
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        before, after = (load_file(next((f / part).glob("*.safetensors"))) for f in (demo, tmp_path / "back"))
        assert set(before) == set(after)
        assert all(torch.equal(before[name], after[name]) for name in before)
    # what was inferred is what was there
    theirs = json.loads((demo / "transformer/config.json").read_text())
    for key, value in json.loads((tmp_path / "back/transformer/config.json").read_text()).items():
        assert theirs[key] == value, key


def test_fp8_restored(demo_fp8: Path, tmp_path: Path) -> None:
    """16bit: each value is q * scale, rounded once to bf16, and nothing says FP8 any more."""
    sd35.convert(demo_fp8, tmp_path / "folder", "16bit")
    sd35.convert(demo_fp8, tmp_path / "file.safetensors", "16bit-file")
    with (
        sd35_folder(demo_fp8) as fp8,
        sd35_folder(tmp_path / "folder") as folder,
        open_file(tmp_path / "file.safetensors") as file,
    ):
        assert not folder.schemes
        assert not file.schemes
        for layer in fp8.schemes:
            expected = restored(fp8, f"{layer}.weight").bfloat16()
            assert torch.equal(folder.read(f"{layer}.weight"), expected)
            assert torch.equal(file.read(f"{layer}.weight"), expected)
    assert "quantization_config" not in json.loads((tmp_path / "folder/transformer/config.json").read_text())


@pytest.mark.parametrize(
    ("scheme", "target", "reason"),
    [
        (None, "comfy", r"61 layers have 16-bit weights.*16bit-file"),
        (Scheme(), "comfy", r"61 layers have one scale a row.*rowwise or folder"),
        (Scheme("e4m3fn", "tensorwise"), "comfy", r"14 layers have q, k and v with scales of their own"),
        (Scheme("e4m3fn", "blockwise"), "rowwise", r"61 layers have one scale a block"),
        (Scheme("e5m2"), "rowwise", r"61 layers have E5M2"),
    ],
)
def test_what_would_be_lost_is_said(tmp_path: Path, scheme: Scheme | None, target: str, reason: str) -> None:
    """One sentence counts what would be rounded anew; nothing is written until that is accepted."""
    source = tmp_path / "source"
    sd35.quantize("demo", source, sd35.Recipe.of(scheme)) if scheme else None
    where, path = source if scheme else "demo", tmp_path / "out.safetensors"
    with pytest.raises(RequestError, match=rf"{reason}") as refusal:
        sd35.convert(where, path, target)  # type: ignore[arg-type]
    assert "--requantize" in str(refusal.value)
    assert not path.exists()


def test_requantized_values_come_from_restored_ones(demo_fp8: Path, tmp_path: Path) -> None:
    """With the word, a layer is restored in float32 and quantized once, q, k and v together."""
    path = tmp_path / "c.safetensors"
    assert sd35.convert(demo_fp8, path, "comfy", requantize=True).requantized == 61
    with sd35_folder(demo_fp8) as folder:
        parts = [restored(folder, f"transformer_blocks.1.attn.to_{x}.weight") for x in "qkv"]
    expected = quantize(torch.cat(parts), "e4m3fn", "tensorwise")
    assert torch.equal(load_file(path)[f"{PREFIX}{QKV}.weight"].float(), expected.data.float())


def test_static_activation_scales(comfy: Path, tmp_path: Path) -> None:
    """ComfyUI's formats keep them, under each one's name; the others say that they left them out."""
    tensors = load_file(comfy)
    tensors[f"{PREFIX}{QKV}.input_scale"] = torch.tensor(0.25)
    with safe_open(comfy, "pt") as file:
        save_file(tensors, tmp_path / "x.safetensors", file.metadata())
    for target, name in (("comfy", "input_scale"), ("comfy-legacy", "scale_input")):
        path = tmp_path / f"{target}.safetensors"
        sd35.convert(tmp_path / "x.safetensors", path, target)  # type: ignore[arg-type]
        assert load_file(path)[f"{PREFIX}{QKV}.{name}"] == 0.25
    for target, place in (("rowwise", "g.safetensors"), ("folder", "folder")):
        notes = sd35.convert(tmp_path / "x.safetensors", tmp_path / place, target).notes  # type: ignore[arg-type]
        assert "static activation scales were left out" in notes[0]


def test_t5_in_fp8_goes_along(tmp_path: Path) -> None:
    """A quantized T5 keeps its FP8 in a file with encoders, with a legacy marker of its own."""
    sd35.quantize("demo", tmp_path / "fp8", sd35.Recipe.of(Scheme("e4m3fn", "tensorwise"), with_t5=True))
    path = tmp_path / "b.safetensors"
    sd35.convert(tmp_path / "fp8", path, "comfy-legacy", requantize=True, with_encoders=True)
    t5 = "text_encoders.t5xxl.transformer."
    assert load_file(path)[f"{t5}scaled_fp8"].numel() == 2
    with read_part(path, "text_encoder_3", t5) as source:
        assert len(source.schemes) == 14
        assert source.specs["shared.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("target", ["rowwise", "comfy-legacy", "16bit-file"])
def test_a_single_file_has_its_manifest(comfy: Path, tmp_path: Path, target: str) -> None:
    """Beside it: its hash, its source's, the tool and the choices; one flipped byte of data is then found."""
    path = tmp_path / "made.safetensors"
    sd35.convert(comfy, path, target)  # type: ignore[arg-type]
    manifest = read_manifest(path)
    assert manifest is not None
    assert manifest.files == {path.name: hash_file(path)}
    assert manifest.source == {comfy.name: hash_file(comfy)}
    assert manifest.recipe is not None
    assert manifest.recipe["target"] == target
    assert sorted(tmp_path.iterdir()) == [path, beside(path)]
    report = verify(path)
    assert (report.sound, report.compared, report.records) == (True, 1, [beside(path).name])
    content = bytearray(path.read_bytes())
    content[-9] ^= 1  # the lowest bit of a weight: nothing but the hash can tell
    path.write_bytes(content)
    (finding,) = verify(path).findings
    assert finding.file == path.name
    assert f"is not what {beside(path).name} records" in finding.reason


@pytest.mark.parametrize("place", ["there.safetensors", "file.bin"])
def test_places_that_do_not_do(comfy: Path, tmp_path: Path, place: str) -> None:
    """An existing file stays what it is, and a single file is called .safetensors, and a folder is not."""
    (tmp_path / "there.safetensors").write_text("mine")
    with pytest.raises((OutputError, RequestError), match=r"exists already|has to end in"):
        sd35.convert(comfy, tmp_path / place, "rowwise")
    assert (tmp_path / "there.safetensors").read_text() == "mine"
    with pytest.raises(RequestError, match=r"folder is a folder: .* must not end in \.safetensors"):
        sd35.convert(comfy, tmp_path / "x.safetensors", "folder")
    with pytest.raises(RequestError, match="no format"):
        sd35.convert(comfy, tmp_path / "x", "gguf")  # type: ignore[arg-type]


def test_a_damaged_source_leaves_nothing(
    demo_copy: Path, tmp_path: Path, edit_tensors: Callable[..., None]
) -> None:
    """NaN in the middle of the last layers stops the writing, and neither file nor remains are left."""
    path = demo_copy / "transformer/diffusion_pytorch_model.safetensors"
    edit_tensors(path, lambda tensors: tensors["transformer_blocks.5.ff.net.2.weight"][3].fill_(float("nan")))
    with pytest.raises(CheckpointError, match="NaN"):
        sd35.convert(demo_copy, tmp_path / "out" / "x.safetensors", "comfy", requantize=True)
    assert list((tmp_path / "out").iterdir()) == []
