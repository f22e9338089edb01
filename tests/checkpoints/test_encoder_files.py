"""Text encoders in files of their own: told apart by contents, read as a folder's, refused as strangers."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import ImageChops
from safetensors.torch import load_file, save_file
from torch import Tensor

import sd35
from sd35.checkpoints.formats import open_checkpoint
from sd35.checkpoints.manifest import beside
from sd35.checkpoints.original_parts import PROJECTION_KEY
from sd35.checkpoints.single_file import SingleFile
from sd35.checkpoints.verify import verify
from sd35.cli.main import main
from sd35.errors import CheckpointError, MissingError, RequestError
from sd35.fp8 import quantize

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
WO = "encoder.block.1.layer.1.DenseReluDense.wo"


@pytest.fixture(scope="module")
def bare(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Components that are configs and tokenizers alone, beside a transformer-only file: what people hold."""
    folder = tmp_path_factory.mktemp("bare") / "components"
    shutil.copytree(demo, folder, ignore=shutil.ignore_patterns("*.safetensors", "sd35.json"))
    shutil.copytree(demo / "vae", folder / "vae", dirs_exist_ok=True)
    sd35.convert("demo", folder.parent / "model.safetensors", "16bit-file")
    return folder


@pytest.fixture
def files(demo: Path, tmp_path: Path) -> list[Path]:
    """The demo's encoders as ComfyUI keeps such files, under names that tell nothing."""
    extras = {"logit_scale": torch.tensor(4.6), "text_model.embeddings.position_ids": torch.arange(77)[None]}
    for number, part in enumerate(ENCODERS):
        tensors = load_file(demo / part / "model.safetensors")
        metadata = {PROJECTION_KEY: "as in the file"} if part == "text_encoder" else None
        save_file(tensors | (extras if number < 2 else {}), tmp_path / f"{number}.safetensors", metadata)
    return [tmp_path / f"{number}.safetensors" for number in (2, 0, 1)]


def opened(bare: Path, files: list[Path]) -> SingleFile:
    """The transformer-only file with these encoders."""
    checkpoint = open_checkpoint(bare.parent / "model.safetensors", bare, files)
    assert isinstance(checkpoint, SingleFile)
    return checkpoint


def scaled(path: Path, *, legacy: bool) -> None:
    """Turn T5's matrices into scaled FP8, as ComfyUI spells it now or did before."""
    tensors = load_file(path)
    for name in [name for name in tensors if "DenseReluDense" in name or "SelfAttention." in name]:
        if name.endswith("relative_attention_bias.weight"):
            continue
        layer = name.removesuffix(".weight")
        fp8 = quantize(tensors[name], granularity="tensorwise")
        tensors[name], scale = fp8.data, fp8.scale
        tensors[f"{layer}.scale_weight" if legacy else f"{layer}.weight_scale"] = scale.reshape(())
    if legacy:
        tensors["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    save_file(tensors, path)


def test_each_is_recognised_and_read(bare: Path, files: list[Path], demo: Path) -> None:
    """By contents, in any order; every tensor is that of our own folder, and the extras are left out."""
    checkpoint = opened(bare, files)
    assert {part: file.path.name for part, file in checkpoint.encoders.items()} == {
        "text_encoder": "0.safetensors",
        "text_encoder_2": "1.safetensors",
        "text_encoder_3": "2.safetensors",
    }
    for part in ENCODERS:
        expected = load_file(demo / part / "model.safetensors")
        with checkpoint.tensors(part) as source:
            assert set(source) == set(expected)
            assert all(torch.equal(source.read(name), expected[name]) for name in expected)
        assert checkpoint.files(part) == [checkpoint.encoders[part].path]


def test_the_same_picture(bare: Path, files: list[Path], fox: sd35.GenerationRequest, tmp_path: Path) -> None:
    """Transformer, encoders and configs from four places draw what the folder draws, in FP8 too."""
    config = sd35.RuntimeConfig(device="cpu", compute_dtype="fp32")
    for precision in ("bf16", "fp8"):
        ours = sd35.load("demo", precision, config).generate(fox).images[0].image  # type: ignore[arg-type]
        pipeline = sd35.load(
            bare.parent / "model.safetensors",
            precision,  # type: ignore[arg-type]
            config,
            components=bare,
            encoder_files=files,
        )
        assert ImageChops.difference(pipeline.generate(fox).images[0].image, ours).getbbox() is None


def test_clip_l_without_its_projection(bare: Path, files: list[Path], demo: Path) -> None:
    """As in ComfyUI's file: the pooled text is taken as it is; CLIP-G's projection is never made up."""
    for path in files[1:]:
        tensors = load_file(path)
        del tensors["text_projection.weight"]
        save_file(tensors, path)
    checkpoint = opened(bare, [*files[:2], demo / "text_encoder_2" / "model.safetensors"])
    with checkpoint.tensors("text_encoder") as source:
        assert torch.equal(source.read("text_projection.weight"), torch.eye(96, dtype=torch.bfloat16))
    assert verify(files[1]).sound
    with pytest.raises(CheckpointError, match="holds no text encoder that this checkpoint has"):
        opened(bare, files)


@pytest.mark.parametrize("legacy", [True, False])
def test_scaled_t5(bare: Path, files: list[Path], demo: Path, legacy: bool) -> None:
    """t5xxl_fp8_e4m3fn_scaled: the scales are used, verify finds it sound, and misses one that is lost."""
    scaled(files[0], legacy=legacy)
    weight = load_file(demo / "text_encoder_3" / "model.safetensors")[f"{WO}.weight"].float()
    with opened(bare, files).tensors("text_encoder_3") as source:
        restored = source.read(f"{WO}.weight").float() * source.read(f"{WO}.weight_scale")
        assert torch.nn.functional.mse_loss(restored, weight) < 1e-3 * weight.square().mean()
        assert len(source.schemes) == 14
    assert verify(files[0]).sound
    tensors = load_file(files[0])
    del tensors[f"{WO}.scale_weight" if legacy else f"{WO}.weight_scale"]
    save_file(tensors, files[0])
    assert not verify(files[0]).sound
    with (
        pytest.raises(CheckpointError, match=r"no scale|lacks its scale"),
        opened(bare, files).tensors("text_encoder_3"),
    ):
        pass


def test_plain_fp8_t5(bare: Path, files: list[Path]) -> None:
    """t5xxl_fp8_e4m3fn: a cast without scales is read as the numbers that it holds."""
    tensors = load_file(files[0])
    cast = {name: t.to(torch.float8_e4m3fn) if t.ndim == 2 else t for name, t in tensors.items()}
    save_file(cast, files[0])
    with opened(bare, files).tensors("text_encoder_3") as source:
        assert torch.equal(source.read(f"{WO}.weight").float(), cast[f"{WO}.weight"].float())
        assert source.read("shared.weight").dtype == torch.bfloat16


def narrower(tensors: dict[str, Tensor]) -> None:
    """An encoder of another width."""
    for name in [name for name, tensor in tensors.items() if tensor.ndim]:
        tensors[name] = tensors[name][..., : tensors[name].shape[-1] // 2].contiguous()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (narrower, "holds no text encoder that this checkpoint has"),
        (lambda tensors: tensors.clear() or tensors.update(x=torch.zeros(1)), "holds no text encoder"),
    ],
)
def test_strangers(
    bare: Path, files: list[Path], edit_tensors: Callable[..., None], change: object, words: str
) -> None:
    """An encoder of another model, and a file of something else, are refused by name."""
    edit_tensors(files[1], change)
    with pytest.raises(CheckpointError, match=rf"0\.safetensors {words}"):
        opened(bare, files)


def test_what_can_not_be(bare: Path, files: list[Path], demo: Path, tmp_path: Path) -> None:
    """The same encoder twice, a transformer, no file, none for one that is lacking, or beside a folder."""
    with pytest.raises(CheckpointError, match="are both the text_encoder: name one of them"):
        opened(bare, [files[1], demo / "text_encoder" / "model.safetensors"])
    with pytest.raises(CheckpointError, match="holds transformer, vae: give files of text encoders"):
        opened(bare, [bare.parent / "model.safetensors"])
    with pytest.raises(MissingError, match=r"is a folder: .* which has model\.safetensors"):
        opened(bare, [demo / "text_encoder"])
    with pytest.raises(MissingError, match="There is no file"):
        opened(bare, [tmp_path / "nowhere.safetensors"])
    with pytest.raises(CheckpointError, match=r"name the encoder's own file with --text-encoders"):
        opened(bare, files[:2])
    with pytest.raises(RequestError, match="for single files alone"):
        open_checkpoint(demo, None, files)


def test_the_verbs(
    bare: Path, files: list[Path], demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """generate, convert and verify take such files; a convert that would not use them says so."""
    model, names = str(bare.parent / "model.safetensors"), [str(file) for file in files]
    beside_it = ["--components", str(bare), "--text-encoders", *names]
    out = tmp_path / "whole.safetensors"
    assert main(["convert", model, str(out), "--format", "16bit-file", *beside_it]) == 2
    assert "add --with-encoders" in capsys.readouterr().err
    assert main(["convert", model, str(out), "--format", "16bit-file", "--with-encoders", *beside_it]) == 0
    whole = tmp_path / "demo.safetensors"
    sd35.convert(demo, whole, "16bit-file", with_encoders=True)
    assert whole.read_bytes() == out.read_bytes()
    assert beside(out).is_file()
    picture = ["-o", str(tmp_path / "x.png"), "--steps", "1", "--device", "cpu", "--precision", "bf16"]
    assert main(["generate", "a fox", "--checkpoint", model, *picture, *beside_it]) == 0
    for name in names:
        assert main(["verify", name]) == 0
