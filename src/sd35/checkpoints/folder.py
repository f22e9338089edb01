"""A checkpoint as a folder in the layout of diffusers' `StableDiffusion3Pipeline`.

`model_index.json` names the parts and their classes; each part is a subfolder. The table below is an
allow-list: a folder that names another class is refused before any library sees it. T5 may be absent, as
in the original ("text_encoder_3": [null, null]); the pipeline then feeds zeros in its place.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd35.checkpoints.reader import TensorReader, weight_files
from sd35.checkpoints.source import TensorSource
from sd35.checkpoints.torchao_files import is_torchao, read_torchao
from sd35.errors import CheckpointError, MissingError

PIPELINE_CLASS = "StableDiffusion3Pipeline"
QUANT_METHOD = "sd35_fp8"  # ours, in the config.json of a part with FP8 layers
_FOREIGN_METHODS = {
    "modelopt": "NVIDIA ModelOpt",
    "compressed-tensors": "compressed-tensors, for vLLM",
    "fp8": "transformers' finegrained FP8 with blocks of 128 x 128",
    "gguf": "GGUF",
    "bitsandbytes": "bitsandbytes (4 or 8 bit)",
    "quanto": "optimum-quanto",
}


@dataclass(frozen=True)
class Part:
    """One component: the classes it may have, its config file, and the stem of its weight files."""

    classes: tuple[str, ...]
    config: str
    weights: str | None = None
    optional: bool = False


PARTS = {
    "scheduler": Part(("FlowMatchEulerDiscreteScheduler",), "scheduler_config.json"),
    "text_encoder": Part(("CLIPTextModelWithProjection",), "config.json", "model"),
    "text_encoder_2": Part(("CLIPTextModelWithProjection",), "config.json", "model"),
    "text_encoder_3": Part(("T5EncoderModel",), "config.json", "model", optional=True),
    "tokenizer": Part(("CLIPTokenizer", "CLIPTokenizerFast"), "tokenizer_config.json"),
    "tokenizer_2": Part(("CLIPTokenizer", "CLIPTokenizerFast"), "tokenizer_config.json"),
    "tokenizer_3": Part(("T5Tokenizer", "T5TokenizerFast"), "tokenizer_config.json", optional=True),
    "transformer": Part(("SD3Transformer2DModel",), "config.json", "diffusion_pytorch_model"),
    "vae": Part(("AutoencoderKL",), "config.json", "diffusion_pytorch_model"),
}


@dataclass(frozen=True)
class CheckpointFolder:
    """An opened folder: every part that it needs is there."""

    path: Path
    parts: tuple[str, ...]

    def config(self, part: str) -> dict[str, Any]:
        """The part's configuration."""
        return read_json(self.path / part / PARTS[part].config)

    def files(self, part: str) -> list[Path]:
        """The part's weight files; empty for one without weights."""
        stem = PARTS[part].weights
        return weight_files(self.path / part, stem) if stem else []

    def tensors(self, part: str) -> TensorSource:
        """The part's tensors: 16-bit, or FP8 as sd35 or torchao write it."""
        refuse_foreign_quantization(self.config(part), self.path / part)
        reader = TensorReader(self.files(part))
        try:
            return read_torchao(reader) if is_torchao(reader.metadata) else TensorSource.of(reader)
        except BaseException:
            reader.close()
            raise

    def folder(self, part: str) -> Path:
        """Where the part's own files lie."""
        return self.path / part


def refuse_foreign_quantization(config: Mapping[str, Any], place: Path) -> None:
    """CheckpointError where config.json announces a quantization that sd35 does not read."""
    entry = config.get("quantization_config")
    method = entry.get("quant_method") if isinstance(entry, dict) else entry
    if method in (None, QUANT_METHOD, "torchao"):
        return
    known = (
        _FOREIGN_METHODS.get(method, "a method that sd35 does not know") if isinstance(method, str) else ""
    )
    raise CheckpointError(
        f"{place} is quantized by {method!r}: {known or 'no method at all'}. sd35 reads 16-bit folders, its "
        "own FP8 and torchao's; quantize the 16-bit checkpoint instead."
    )


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
    index = read_json(path / "model_index.json")
    if index.get("_class_name") != PIPELINE_CLASS:
        raise CheckpointError(
            f"{path}/model_index.json is for {index.get('_class_name')!r}, not for {PIPELINE_CLASS!r}: "
            "this is a checkpoint of something else."
        )
    parts = tuple(name for name, part in PARTS.items() if _is_present(path, name, part, index.get(name)))
    folder = CheckpointFolder(path, parts)
    for name in parts:
        folder.config(name)
        if name not in without_weights:
            folder.files(name)
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; CheckpointError with the reason where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing: this is no complete SD3.5 folder, so fetch or copy it again."
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}): fetch or copy it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object: fetch or copy it again.")
    return content


def _is_present(path: Path, name: str, part: Part, entry: object) -> bool:
    class_name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if class_name is None and part.optional:
        return False
    if class_name not in part.classes:
        raise CheckpointError(
            f"{path}/model_index.json gives {name} as {entry!r}, and SD3.5 needs {part.classes[0]}: refused."
        )
    if not (path / name).is_dir():
        raise CheckpointError(
            f"{path} has no folder {name}: the checkpoint is incomplete, so fetch it again."
        )
    return True
