"""A checkpoint as a folder in the layout of diffusers' `StableDiffusion3Pipeline`.

`model_index.json` names the parts and their classes; each part is a subfolder. The table in `parts.py` is an
allow-list: a folder that names another class is refused before any library sees it, and so is one that holds
code or pickles (`tree.py`) or whose configs say what SD3.5's never do (`gates.py`). T5 may be absent, as
in the original ("text_encoder_3": [null, null]); the pipeline then feeds zeros in its place.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd35.checkpoints.findings import bad_file, printable, shown_path
from sd35.checkpoints.gates import check_config, check_no_code, refuse_foreign_quantization
from sd35.checkpoints.parts import PARTS, Part
from sd35.checkpoints.reader import TensorReader, weight_files
from sd35.checkpoints.source import TensorSource
from sd35.checkpoints.strict_json import read_json
from sd35.checkpoints.torchao_files import is_torchao, read_torchao
from sd35.checkpoints.tree import check_tree
from sd35.errors import CheckpointError, MissingError

PIPELINE_CLASS = "StableDiffusion3Pipeline"
_LIBRARIES = ("diffusers", "transformers")
_EMPTY_PARTS = ("image_encoder", "feature_extractor")  # IP-Adapter's, which no SD3.5 checkpoint fills


@dataclass(frozen=True)
class CheckpointFolder:
    """An opened folder: every part that it needs is there."""

    path: Path
    parts: tuple[str, ...]

    def config(self, part: str) -> dict[str, Any]:
        """The part's configuration, past the gate; CheckpointError with the key that is wrong."""
        path = self.path / part / PARTS[part].config
        config = read_json(path)
        refuse_foreign_quantization(path, config)
        check_config(path, part, config)
        return config

    def files(self, part: str) -> list[Path]:
        """The part's weight files; empty for one without weights."""
        stem = PARTS[part].weights
        return weight_files(self.path / part, stem) if stem else []

    def tensors(self, part: str) -> TensorSource:
        """The part's tensors: 16-bit, or FP8 as sd35 or torchao write it."""
        reader = TensorReader(self.files(part))
        try:
            return read_torchao(reader) if is_torchao(reader.metadata) else TensorSource.of(reader)
        except BaseException:
            reader.close()
            raise

    def folder(self, part: str) -> Path:
        """Where the part's own files lie."""
        return self.path / part


def open_folder(path: Path, without_weights: Collection[str] = ()) -> CheckpointFolder:
    """Open a checkpoint folder; MissingError if it isn't there, CheckpointError if a part is wrong.

    `without_weights` are parts whose weights are not looked for: they come from elsewhere.
    """
    if not path.exists():
        raise MissingError(
            f"There is no checkpoint at {path}: give the path of a folder, or the name 'demo'."
        )
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file, and a folder in diffusers' layout is needed here.")
    check_tree(path)
    parts = read_model_index(path)
    folder = CheckpointFolder(path, parts)
    for name in parts:
        folder.config(name)
        if name not in without_weights:
            folder.files(name)
    return folder


def read_model_index(path: Path) -> tuple[str, ...]:
    """The parts that the folder's model_index.json names; CheckpointError for anything but SD3.5."""
    file = path / "model_index.json"
    if not file.exists() and (snapshots := sorted((path / "snapshots").glob("*/model_index.json"))):
        reason = "is a repository in the hub's cache, which holds checkpoints by commit"
        raise bad_file(path, reason, f"give {shown_path(snapshots[-1].parent)}")
    index = read_json(file)
    check_no_code(file, index)
    class_name = index.get("_class_name")
    if class_name != PIPELINE_CLASS:
        raise CheckpointError(
            f"{file} is for {printable(repr(class_name))}, not for {PIPELINE_CLASS!r}: "
            "this is a checkpoint of something else."
        )
    unknown = sorted(index.keys() - PARTS.keys() - {"_class_name", "_diffusers_version", "_name_or_path"})
    for key in unknown:
        if key not in _EMPTY_PARTS or index[key] not in ([None, None], None):
            raise bad_file(
                file, f"names the part {printable(key)}, which SD3.5 does not have", "get the original"
            )
    return tuple(name for name, part in PARTS.items() if _is_present(path, name, part, index.get(name)))


def _is_present(path: Path, name: str, part: Part, entry: object) -> bool:
    library, class_name = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
    if entry in (None, [None, None]) and part.optional:
        return False
    if class_name not in part.classes or library not in _LIBRARIES:
        raise CheckpointError(
            f"{path}/model_index.json gives {name} as {printable(repr(entry))}, and SD3.5 needs "
            f"{part.classes[0]}: refused."
        )
    if not (path / name).is_dir():
        raise CheckpointError(
            f"{path} has no folder {name}: the checkpoint is incomplete, so fetch it again."
        )
    return True
