"""Write a checkpoint folder, part by part, from any source: copied where nothing changes, else streamed.

A part with FP8 layers gets a `quantization_config` with our method's name into its config.json. Plain
diffusers or transformers would drop the scales of such files without a word; with this entry they refuse
to load it.
"""

import json
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

from sd35 import __version__
from sd35.checkpoints.formats import Checkpoint
from sd35.checkpoints.gates import QUANT_METHOD
from sd35.checkpoints.manifest import (
    FileRecord,
    Manifest,
    hash_file,
    hash_files,
    read_manifest,
    write_manifest,
)
from sd35.checkpoints.parts import PARTS
from sd35.checkpoints.relayout import Layout
from sd35.checkpoints.schemes import METADATA_KEY, dump_schemes
from sd35.checkpoints.source import TensorSource
from sd35.checkpoints.unfinished import copy_whole, link_or_copy
from sd35.checkpoints.writer import write_safetensors

_COPIED = (".json", ".txt", ".model")  # never code, never pickles
_WEIGHTS = (".safetensors", ".safetensors.index.json")

# What becomes of a part's tensors; None: they stay as they are.
Rewrite = Callable[[str, TensorSource], Layout | None]


def write_folder(
    checkpoint: Checkpoint,
    place: Path,
    rewrite: Rewrite,
    recipe: Callable[[], dict[str, Any] | None],
    link_below: Path | None = None,
) -> int:
    """Fill the folder `place`, manifest included; the number of its layers in FP8.

    `recipe` is asked in the end, for what the manifest is to say of it.

    Files that an earlier run has finished in `place` are kept: `placing.py` sees to it that they are ours.
    Weights that stay as they are become hard links if they lie below `link_below`.
    """
    write = partial(_write_part, checkpoint, rewrite=rewrite, link_below=link_below)
    layers = sum(write(part, place / part) for part in checkpoint.parts)
    copy_whole(checkpoint.folder("transformer").parent / "model_index.json", place)
    write_manifest(place, made_of(checkpoint.path, hash_files(place), recipe()))
    return layers


def made_of(source: Path, files: dict[str, FileRecord], recipe: dict[str, Any] | None) -> Manifest:
    """The manifest of what was made of `source`, a folder or a file."""
    known = read_manifest(source)
    return Manifest(
        files=files,
        variant=known.variant if known else None,
        tool=f"sd35-fp8 {__version__}",
        recipe=recipe,
        source=source_records(source),
    )


def source_records(path: Path) -> dict[str, FileRecord]:
    """Size and hash of the file, or of every file of the folder, that a checkpoint is read from."""
    return {path.name: hash_file(path)} if path.is_file() else hash_files(path)


def room_needed(checkpoint: Checkpoint, linked: Collection[str] = ()) -> int:
    """Bytes of the weights that the parts have now: a bound for what is written, unless it grows.

    Parts in `linked` take no room.
    """
    files = {path for part in checkpoint.parts if part not in linked for path in checkpoint.files(part)}
    return sum(path.stat().st_size for path in files)


def may_link(path: Path, below: Path | None) -> bool:
    """Whether a file is a regular one of that folder; a link's own target may lie anywhere."""
    return below is not None and not path.is_symlink() and path.resolve().is_relative_to(below.resolve())


def _write_part(
    checkpoint: Checkpoint, part: str, place: Path, *, rewrite: Rewrite, link_below: Path | None
) -> int:
    place.mkdir(exist_ok=True)
    stem, own = PARTS[part].weights, checkpoint.folder(part)
    for path in sorted(own.iterdir()):
        if path.is_file() and path.name.endswith(_COPIED) and not path.name.endswith(_WEIGHTS):
            copy_whole(path, place)
    if stem is None:
        return 0
    with checkpoint.tensors(part) as source:
        source.stream()
        layout = rewrite(part, source)
        if layout is None and source.format == "folder" and source.paths[0].parent == own:
            _take_weights(own, source.paths, place, link_below)
            return len(source.schemes)
        layout = layout or Layout(source.tensors, dict(source.schemes), dict(source.input_scales))
        if not (weights := place / f"{stem}.safetensors").exists():
            write_layout(layout, weights)
        _write_config(checkpoint.config(part), place / PARTS[part].config, is_fp8=bool(layout.schemes))
    return len(layout.schemes)


def _take_weights(own: Path, weights: list[Path], place: Path, link_below: Path | None) -> None:
    for path in weights:
        if may_link(path, link_below):
            link_or_copy(path, place)
        else:
            copy_whole(path, place)
    for path in own.glob("*.safetensors.index.json"):
        copy_whole(path, place)


def write_layout(layout: Layout, path: Path) -> None:
    """One part's tensors into one file, in the order of their names."""
    static = {
        f"{layer}.input_scale": lazy
        for layer, lazy in layout.input_scales.items()
        if layout.schemes[layer].activation == "static"
    }
    tensors = dict(sorted({**layout.tensors, **static}.items()))
    metadata = {"format": "pt"}
    if layout.schemes:
        metadata[METADATA_KEY] = dump_schemes(dict(sorted(layout.schemes.items())))
    write_safetensors(path, tensors, metadata)


def _write_config(config: dict[str, Any], path: Path, *, is_fp8: bool) -> None:
    config = {key: value for key, value in config.items() if key != "quantization_config"}
    if is_fp8:
        config["quantization_config"] = {"quant_method": QUANT_METHOD, "read_with": "sd35"}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8", newline="\n")
