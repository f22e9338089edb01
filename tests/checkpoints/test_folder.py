"""A checkpoint folder is complete, or refused with the part that is wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sd35.checkpoints.folder import open_folder
from sd35.checkpoints.parts import PARTS
from sd35.errors import CheckpointError, MissingError


def test_the_demo_has_all_parts(demo: Path) -> None:
    """Every part of SD3.5 is in the bundled folder."""
    assert set(open_folder(demo).parts) == set(PARTS)


def test_no_such_path(tmp_path: Path) -> None:
    """A path that isn't there is missing, not damaged."""
    with pytest.raises(MissingError):
        open_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("part", sorted(PARTS))
def test_a_missing_part_is_named(demo_copy: Path, part: str) -> None:
    """Whichever folder is gone, the error names it."""
    shutil.rmtree(demo_copy / part)
    with pytest.raises(CheckpointError, match=part):
        open_folder(demo_copy)


@pytest.mark.parametrize("part", ["transformer", "text_encoder_3", "vae"])
def test_missing_weights_are_named(demo_copy: Path, part: str) -> None:
    """A part without its weights is refused before anything is loaded."""
    next((demo_copy / part).glob("*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=part):
        open_folder(demo_copy)


def test_t5_may_be_absent(demo_copy: Path, edit_json: Callable[..., None]) -> None:
    """[null, null] leaves T5 and its tokenizer out, as in diffusers."""
    edit_json(demo_copy / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    assert set(PARTS) - set(open_folder(demo_copy).parts) == {"text_encoder_3", "tokenizer_3"}


@pytest.mark.parametrize(
    "entry", [["diffusers", "UNet2DConditionModel"], [None, None], "SD3Transformer2DModel"]
)
def test_other_classes_are_refused(demo_copy: Path, edit_json: Callable[..., None], entry: object) -> None:
    """Only the classes of SD3.5 may be named."""
    edit_json(demo_copy / "model_index.json", transformer=entry)
    with pytest.raises(CheckpointError, match="SD3Transformer2DModel"):
        open_folder(demo_copy)


def test_another_pipeline(demo_copy: Path, edit_json: Callable[..., None]) -> None:
    """A folder of another model says which."""
    edit_json(demo_copy / "model_index.json", _class_name="FluxPipeline")
    with pytest.raises(CheckpointError, match="FluxPipeline"):
        open_folder(demo_copy)


@pytest.mark.parametrize("text", ["", "[]", "{", "\ud83e".encode("utf-8", "surrogatepass").decode("latin-1")])
def test_broken_json(demo_copy: Path, text: str) -> None:
    """What is no JSON object is refused with its path."""
    (demo_copy / "vae" / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_folder(demo_copy)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """A file in place of a folder is refused in words."""
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a file"):
        open_folder(tmp_path / "x.safetensors")
