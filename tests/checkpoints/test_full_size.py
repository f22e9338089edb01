"""Whole checkpoints of Large and Medium, true in every name and shape, in sparse files that hold no data."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from real_configs import CLIP_G_CONFIG, LARGE_TRANSFORMER, REAL_CONFIGS

from sd35.checkpoints.audit import FolderAudit
from sd35.checkpoints.folder import open_folder
from sd35.checkpoints.layout import (
    CLIP_G,
    CLIP_L,
    LARGE,
    MEDIUM,
    T5_XXL,
    VAE,
    Layout,
    clip_layout,
    t5_layout,
    transformer_layout,
    vae_layout,
)
from sd35.checkpoints.parts import PARTS
from sd35.checkpoints.verify import verify

CONFIGS = {**REAL_CONFIGS, "text_encoder_2": CLIP_G_CONFIG}
LAYOUTS = {
    "text_encoder": clip_layout(CLIP_L),
    "text_encoder_2": clip_layout(CLIP_G),
    "text_encoder_3": t5_layout(T5_XXL),
    "vae": vae_layout(VAE),
}
NAMES = {torch.bfloat16: "BF16", torch.float32: "F32"}


def write_sparse(path: Path, layout: Layout) -> None:
    """A safetensors file with a true header and data that takes no room on the disk."""
    header, offset = {}, 0
    for name, spec in layout.items():
        span = [offset, offset + spec.num_bytes]
        header[name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": span}
        offset = span[1]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + offset)


def write_tokenizer(folder: Path, part: str) -> None:
    """As many ids as the real one has, and its padding."""
    ids = 32_100 if part == "tokenizer_3" else 49_408
    if part == "tokenizer_3":
        vocabulary: object = [[name, 0.0] for name in ("<pad>", "</s>", "<unk>", *("x" * (ids - 3)))]
    else:
        vocabulary = {
            **{str(i): i for i in range(ids - 2)},
            "<|startoftext|>": ids - 2,
            "<|endoftext|>": ids - 1,
        }
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    padding = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!", "tokenizer_3": "<pad>"}[part]
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": padding}))


@pytest.fixture(params=["large", "medium"])
def whole(request: pytest.FixtureRequest, demo: Path, tmp_path: Path) -> tuple[str, Path]:
    """A variant's name and its folder."""
    large = request.param == "large"
    layouts = {**LAYOUTS, "transformer": transformer_layout(LARGE if large else MEDIUM)}
    configs = {**CONFIGS, "transformer": LARGE_TRANSFORMER} if large else CONFIGS
    (tmp_path / "model_index.json").write_bytes((demo / "model_index.json").read_bytes())
    for name, part in PARTS.items():
        (tmp_path / name).mkdir()
        if name.startswith("tokenizer"):
            write_tokenizer(tmp_path / name, name)
            continue
        (tmp_path / name / part.config).write_text(json.dumps(configs[name]))
        if part.weights:
            write_sparse(tmp_path / name / f"{part.weights}.safetensors", layouts[name])
    return request.param, tmp_path


def said(folder: Path) -> str:
    """The findings on the folder's structure, a line each."""
    return "\n".join(map(str, FolderAudit(folder).run()))


def test_a_whole_checkpoint_is_sound(whole: tuple[str, Path]) -> None:
    """Recognised by its shapes, nothing to find; the bytes of the transformer are the published ones."""
    name, folder = whole
    audit = FolderAudit(folder)
    assert audit.run() == []
    assert audit.known is not None
    assert str(audit.known.variant) == name
    with open_folder(folder).tensors("transformer") as reader:
        assert (
            sum(spec.num_bytes for spec in reader.specs.values())
            == {"large": 16_292_561_536, "medium": 4_939_327_872}[name]
        )


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("vae/config.json", {"scaling_factor": 0.18215}, "gives scaling_factor as 0.18215"),
        ("vae/config.json", {"shift_factor": None}, "gives shift_factor"),
        ("scheduler/scheduler_config.json", {"shift": 1.0}, "gives shift as 1.0, and SD3.5 has 3.0"),
        ("transformer/config.json", {"pos_embed_max_size": 100}, "transformer/config.json describes"),
        ("transformer/config.json", {"num_layers": 3}, "transformer/config.json describes"),
        ("text_encoder/config.json", {"vocab_size": 1024}, "text_encoder/config.json describes"),
        ("text_encoder/config.json", {"eos_token_id": 49406}, "gives eos_token_id as 49406, and it is 49407"),
    ],
)
def test_real_variants_have_their_known_values(
    whole: tuple[str, Path],
    edit_json: Callable[..., None],
    file: str,
    changes: dict[str, object],
    words: str,
) -> None:
    """What differs from the published repository is found, though it would load."""
    edit_json(whole[1] / file, **changes)
    assert words in said(whole[1])


def test_swapped_text_encoders(whole: tuple[str, Path]) -> None:
    """CLIP-L and CLIP-G in each other's place: the widths still add up, and it is found."""
    folder = whole[1]
    (folder / "text_encoder").rename(folder / "kept")
    (folder / "text_encoder_2").rename(folder / "text_encoder")
    (folder / "kept").rename(folder / "text_encoder_2")
    found = said(folder)
    assert "text_encoder/model.safetensors lacks" in found or "text_encoder/model.safetensors holds" in found
    assert "text_encoder/config.json" in found


def test_a_short_tokenizer(whole: tuple[str, Path]) -> None:
    """Another CLIP's vocabulary beside the real encoder."""
    path = whole[1] / "tokenizer" / "tokenizer.json"
    path.write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1023}}}))
    found = said(whole[1])
    assert "tokenizer has 1024 ids, and its text encoder has 49408" in found
    assert "tokenizer has no <|endoftext|>, and its text encoder knows it as 49407" in found


def test_files_without_data_are_no_weights(whole: tuple[str, Path], tmp_path: Path) -> None:
    """What makes these tests cheap is damage to verify: a VAE of zeros only."""
    path = whole[1] / "vae" / "diffusion_pytorch_model.safetensors"
    assert "zero bytes" in str(verify(path).findings[0])


def test_a_special_token_under_another_id(whole: tuple[str, Path]) -> None:
    """T5's pieces in another order: as many ids, no error while drawing, and another text."""
    path = whole[1] / "tokenizer_3" / "tokenizer.json"
    content = json.loads(path.read_text())
    pieces = content["model"]["vocab"]
    pieces[0], pieces[1] = pieces[1], pieces[0]
    path.write_text(json.dumps(content))
    assert "tokenizer_3 gives </s> the id 0, and its text encoder knows it as 1" in said(whole[1])
