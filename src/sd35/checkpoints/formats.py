"""Which format a path is of, and the one door that opens them all.

| name | what it is |
|---|---|
| folder       | diffusers' layout, 16-bit or with sd35's FP8 |
| torchao      | diffusers' layout with torchao's FP8 (H) |
| 16-bit file  | Stability's single file, with or without text encoders |
| plain        | a single file cast to FP8 without scales (A) |
| comfy-legacy | a single file with `scaled_fp8` (B) |
| comfy        | a single file with `weight_scale` and ComfyUI's hints (C) |
| rowwise      | a single file with one scale a row (G) |

A format is recognised by what is in the header and never by a file's name.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from sd35.checkpoints.folder import open_folder
from sd35.checkpoints.original_parts import parts_held, read_part
from sd35.checkpoints.single_file import open_single_file
from sd35.checkpoints.source import TensorSource
from sd35.errors import MissingError, RequestError


class Checkpoint(Protocol):
    """What every format looks like from above: parts with configs, files of their own, and tensors."""

    @property
    def path(self) -> Path:
        """The folder or file that a person named."""
        ...

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that the pipeline has."""
        ...

    def config(self, part: str) -> dict[str, Any]:
        """The part's configuration."""
        ...

    def tensors(self, part: str) -> TensorSource:
        """The part's tensors under diffusers' names."""
        ...

    def files(self, part: str) -> list[Path]:
        """The part's weight files."""
        ...

    def folder(self, part: str) -> Path:
        """Where the part's config and tokenizer lie."""
        ...


def open_checkpoint(
    path: Path, components: Path | None = None, encoder_files: Sequence[Path] = ()
) -> Checkpoint:
    """Open a folder or a single file; `components` and `encoder_files` have what a single file lacks."""
    if path.is_file():
        return open_single_file(path, components, encoder_files)
    if components is not None or encoder_files:
        raise RequestError(
            f"{path} is a whole checkpoint folder: components and text encoders are named for single files "
            "alone."
        )
    return open_folder(path)


def detect(path: Path) -> str:
    """The name of the format that the transformer at this path is in; errors as `open_checkpoint`."""
    if path.is_file():
        with read_part(path, "transformer", parts_held(path)["transformer"]) as source:
            return source.format
    if not path.exists():
        raise MissingError(f"There is nothing at {path}: give the path of a checkpoint folder or file.")
    with open_folder(path).tensors("transformer") as source:
        return source.format
