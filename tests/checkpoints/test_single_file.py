"""Single files: what they hold, what they lack, and where that comes from."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import sd35
from sd35.checkpoints.formats import detect, open_checkpoint
from sd35.checkpoints.original_parts import PROJECTION_KEY
from sd35.checkpoints.single_file import SingleFile, open_single_file
from sd35.errors import CheckpointError, MissingError, RequestError

PROJECTION = "text_encoders.clip_l.transformer.text_projection.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo as one 16-bit file with its text encoders."""
    path = tmp_path_factory.mktemp("single") / "whole.safetensors"
    sd35.convert("demo", path, "16bit-file", with_encoders=True)
    return path


@pytest.fixture
def edited(whole: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the file with its tensors changed, its header kept or not."""

    def edit(change: Callable[[dict[str, Tensor]], object], *, keep_header: bool = True) -> Path:
        tensors = load_file(whole)
        change(tensors)
        with safe_open(whole, "pt") as file:
            metadata = file.metadata() if keep_header else None
        save_file(tensors, tmp_path / "edited.safetensors", metadata)
        return tmp_path / "edited.safetensors"

    return edit


def drop(*prefixes: str) -> Callable[[dict[str, Tensor]], object]:
    """Take out all tensors whose names begin so."""
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(prefixes)]


def read_all(checkpoint: SingleFile, part: str) -> dict[str, Tensor]:
    """All tensors of a part."""
    with checkpoint.tensors(part) as source:
        return {name: source.read(name) for name in source}


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"])
def test_each_part_is_the_folders(whole: Path, demo: Path, part: str) -> None:
    """What went into the file comes out of it, every tensor of every part."""
    expected = load_file(next((demo / part).glob("*.safetensors")))
    found = read_all(open_single_file(whole, demo), part)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_is_absent_comes_from_the_components(edited: Callable[..., Path], demo: Path) -> None:
    """A file without VAE and encoders takes them from the folder, and its own transformer from itself."""
    path = edited(drop("first_stage_model.", "text_encoders."))
    opened = open_single_file(path, demo)
    assert opened.files("transformer") == [path]
    assert opened.files("vae") == [demo / "vae/diffusion_pytorch_model.safetensors"]
    assert opened.files("text_encoder_2") == [demo / "text_encoder_2/model.safetensors"]


def test_components_need_no_weights_that_the_file_has(whole: Path, demo: Path, tmp_path: Path) -> None:
    """A folder of configs and tokenizers is enough for a file that holds everything else."""
    bare = tmp_path / "bare"
    shutil.copytree(demo, bare, ignore=shutil.ignore_patterns("*.safetensors", "*.tmp"))
    assert set(open_single_file(whole, bare).held) == {
        "transformer",
        "vae",
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
    }


def test_components_are_looked_for_here_alone(
    edited: Callable[..., Path], demo_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the file, then under the variant's name; else the parts that lack are named."""
    path = edited(drop("text_encoders."))
    assert open_single_file(path).components.path.name == "checkpoint"  # the demo's own
    inside = demo_copy / "x.safetensors"
    shutil.copy(path, inside)
    assert open_single_file(inside).components.path == demo_copy
    monkeypatch.setattr("sd35.checkpoints.single_file.variant_of", lambda *_: None)
    with pytest.raises(MissingError, match=r"text_encoder, text_encoder_2, text_encoder_3.*--components"):
        open_single_file(path)


def test_t5_without_a_tokenizer_is_not_left_out(
    whole: Path, demo_copy: Path, edit_json: Callable[..., None]
) -> None:
    """An encoder in the file that the components know nothing of is an error, not ignored."""
    edit_json(demo_copy / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    with pytest.raises(MissingError, match="text_encoder_3"):
        open_single_file(whole, demo_copy)


def test_components_of_another_model(whole: Path, demo_copy: Path, edit_json: Callable[..., None]) -> None:
    """Encoders of another width than the transformer reads are refused before anything is loaded."""
    edit_json(demo_copy / "transformer/config.json", joint_attention_dim=4096)
    with pytest.raises(CheckpointError, match="joint_attention_dim is 4096"):
        open_single_file(whole, demo_copy)


def test_a_bare_transformer(edited: Callable[..., Path], demo: Path) -> None:
    """ComfyUI's `diffusion_models` files have no prefix."""

    def strip(tensors: dict[str, Tensor]) -> None:
        drop("first_stage_model.", "text_encoders.")(tensors)
        for name in list(tensors):
            tensors[name.removeprefix("model.diffusion_model.")] = tensors.pop(name)

    opened = open_single_file(edited(strip), demo)
    assert opened.config("transformer")["num_layers"] == 6
    assert dict(opened.held) == {"transformer": ""}


def test_clip_l_pools_without_a_projection(edited: Callable[..., Path], demo: Path) -> None:
    """Strangers' files: no reader of the layout uses CLIP-L's projection, whatever it says."""
    for change in (lambda _: None, drop(PROJECTION)):
        found = read_all(open_single_file(edited(change, keep_header=False), demo), "text_encoder")
        assert torch.equal(found["text_projection.weight"], torch.eye(96).bfloat16())


def test_our_files_say_that_the_projection_is_meant(whole: Path) -> None:
    """The header of a file that we write with encoders has the word."""
    with safe_open(whole, "pt") as file:
        assert PROJECTION_KEY in file.metadata()


def test_comfyuis_extras_are_known(edited: Callable[..., Path], demo: Path) -> None:
    """What ComfyUI saves beside the weights is no stranger."""
    extras = {
        "text_encoders.clip_l.logit_scale": torch.tensor(4.6),
        "text_encoders.clip_l.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    }
    path = edited(lambda tensors: tensors.update(extras))
    assert "text_model.embeddings.position_ids" not in read_all(open_single_file(path, demo), "text_encoder")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: t.update({"model_ema.decay": torch.ones(1)}), r"model_ema\.decay"),
        (lambda t: t.update({"model.diffusion_model.stranger": torch.ones(1)}), "stranger"),
        (drop("model.diffusion_model."), "no SD3.5 transformer"),
        (drop("model.diffusion_model.joint_blocks.3."), "without a gap"),
        (drop("model.diffusion_model.joint_blocks.0.context_block.attn.ln"), None),
        (drop("model.diffusion_model.joint_blocks.0.x_block.attn.ln_k"), "q/k norms"),
    ],
)
def test_strangers_are_refused(
    edited: Callable[..., Path], demo: Path, change: Callable[..., None], word: str | None
) -> None:
    """Tensors of no part, gaps, and other models' files are refused by name, at the latest by loading."""
    path = edited(change)
    if word is None:
        with pytest.raises(CheckpointError, match="lacks the tensor"):
            sd35.load(path, "bf16", components=demo)
        return
    with pytest.raises(CheckpointError, match=word):
        open_single_file(path, demo)


def test_a_folder_has_its_own_components(demo: Path) -> None:
    """Components beside a whole folder are a misunderstanding."""
    with pytest.raises(RequestError, match="whole checkpoint"):
        open_checkpoint(demo, demo)


def test_formats_by_content(whole: Path, demo: Path, demo_fp8: Path, tmp_path: Path) -> None:
    """Folders and files are told apart by what is in them."""
    assert [detect(path) for path in (demo, demo_fp8, whole)] == ["folder", "folder", "16-bit file"]
    with pytest.raises(MissingError):
        detect(tmp_path / "nowhere")
