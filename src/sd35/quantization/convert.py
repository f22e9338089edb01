"""Checkpoint folder in, FP8 checkpoint folder out, one tensor in memory at a time.

The new folder is complete in itself: FP8 weights where the recipe wants them, everything else copied, and
`sd35.json` with the recipe, the source's hashes and the tool's version. It is built beside its place and
moved there when it is whole, so an interruption leaves nothing behind that looks like a checkpoint. No
clock and no random number takes part: equal input gives equal bytes.

A quantised part's config.json gets a `quantization_config` with our method's name. Plain diffusers or
transformers would drop the scales of such files without a word; with this entry they refuse to load it.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import Tensor

from sd35 import __version__
from sd35.checkpoints.folder import PARTS, CheckpointFolder, open_folder
from sd35.checkpoints.gates import QUANT_METHOD
from sd35.checkpoints.manifest import Manifest, hash_files, read_manifest, write_manifest
from sd35.checkpoints.reader import TensorReader, TensorSpec
from sd35.checkpoints.schemes import METADATA_KEY, dump_schemes, load_schemes
from sd35.checkpoints.store import locate
from sd35.checkpoints.strict_json import read_json
from sd35.checkpoints.writer import write_safetensors
from sd35.errors import CheckpointError, OutputError
from sd35.fp8 import TORCH_DTYPES, Scheme, scale_shape
from sd35.fp8 import quantize as quantize_tensor
from sd35.quantization.recipe import Recipe

_COPIED = (".json", ".safetensors", ".txt", ".model")  # never code, never pickles


@dataclass(frozen=True)
class QuantizationReport:
    """Where the new folder is, its layers in FP8, and its weight files' bytes beside the source's."""

    path: Path
    layers: int
    bytes_before: int
    bytes_after: int


def quantize(source: str | Path, destination: str | Path, recipe: Recipe | None = None) -> QuantizationReport:
    """Write the FP8 folder `destination` from the 16-bit folder `source` (a path, or `demo`).

    CheckpointError if the source is incomplete or FP8 already, OutputError if the destination exists or
    can't be written.
    """
    folder = open_folder(locate(source))
    recipe = recipe or Recipe()
    with _built_beside(Path(destination), _room_needed(folder)) as place:
        layers = sum(_write_part(folder, part, place / part, recipe) for part in folder.parts)
        shutil.copy2(folder.path / "model_index.json", place)
        known = read_manifest(folder.path)
        write_manifest(
            place,
            Manifest(
                files=hash_files(place),
                variant=known.variant if known else None,
                tool=f"sd35-fp8 {__version__}",
                recipe=recipe.as_dict(),
                source=hash_files(folder.path),
            ),
        )
    return QuantizationReport(
        Path(destination), layers, _weight_bytes(folder.path), _weight_bytes(Path(destination))
    )


@contextmanager
def _built_beside(destination: Path, room_needed: int) -> Iterator[Path]:
    """A fresh folder next to `destination`, moved there on success and removed otherwise."""
    if destination.exists():
        raise OutputError(
            f"{destination} exists already and is never overwritten: remove it or name another."
        )
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(destination.parent).free
        if free < room_needed:
            raise OutputError(
                f"{destination.parent} has {free / 1e9:.1f} GB free and up to {room_needed / 1e9:.1f} GB are "
                "needed: free the disk or choose another."
            )
        place = Path(mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    except OSError as error:
        raise OutputError(
            f"{destination} can't be written ({error.strerror}): choose another place."
        ) from error
    try:
        yield place
        place.chmod(0o755)
        place.rename(destination)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _room_needed(folder: CheckpointFolder) -> int:
    return sum(path.stat().st_size for part in folder.parts for path in (folder.path / part).iterdir())


def _write_part(folder: CheckpointFolder, part: str, place: Path, recipe: Recipe) -> int:
    """Copy or quantize one part; the number of its layers that became FP8."""
    place.mkdir()
    weights = folder.files(part)
    schemes = {}
    if weights:
        with TensorReader(weights) as reader:
            schemes = _plan(reader, part, recipe)
            if schemes:
                _write_fp8(reader, schemes, place / f"{PARTS[part].weights}.safetensors")
    for path in sorted((folder.path / part).iterdir()):
        is_replaced = schemes and (path in weights or path.name.endswith(".index.json"))
        if path.suffix in _COPIED and not is_replaced:
            shutil.copy2(path, place)
    if schemes:
        _mark_config(place / PARTS[part].config)
    return len(schemes)


def _plan(reader: TensorReader, part: str, recipe: Recipe) -> dict[str, Scheme]:
    if load_schemes(reader.metadata):
        raise CheckpointError(
            f"{reader.paths[0]} is FP8 already: quantizing twice would lose precision for nothing, so start "
            "from the 16-bit checkpoint."
        )
    return recipe.plan(part, {name: spec.shape for name, spec in reader.specs.items()})


def _write_fp8(reader: TensorReader, schemes: dict[str, Scheme], path: Path) -> None:
    specs: dict[str, TensorSpec] = {}
    for name in sorted(reader):
        specs.update(_specs_after(name, reader.specs[name], schemes))
    metadata = {"format": "pt", METADATA_KEY: dump_schemes(dict(sorted(schemes.items())))}
    write_safetensors(path, specs, _tensors_after(reader, schemes), metadata)


def _specs_after(name: str, spec: TensorSpec, schemes: dict[str, Scheme]) -> dict[str, TensorSpec]:
    """What becomes of one tensor: itself, or FP8 data and a scale."""
    scheme = _scheme_of(name, schemes)
    if scheme is None:
        return {name: spec}
    scale = TensorSpec(torch.float32, torch.Size(scale_shape(spec.shape, scheme.granularity)))
    return {name: TensorSpec(TORCH_DTYPES[scheme.dtype], spec.shape), f"{name}_scale": scale}


def _tensors_after(reader: TensorReader, schemes: dict[str, Scheme]) -> Iterator[tuple[str, Tensor]]:
    for name in sorted(reader):
        scheme = _scheme_of(name, schemes)
        if scheme is None:
            yield name, reader.read(name)
            continue
        scaled = quantize_tensor(reader.read(name), scheme.dtype, scheme.granularity)
        if not bool(scaled.scale.isfinite().all()):
            raise CheckpointError(
                f"{name} holds NaN or infinity: the checkpoint is damaged, so fetch it again."
            )
        yield name, scaled.data
        yield f"{name}_scale", scaled.scale


def _scheme_of(name: str, schemes: dict[str, Scheme]) -> Scheme | None:
    return schemes.get(name.removesuffix(".weight")) if name.endswith(".weight") else None


def _mark_config(path: Path) -> None:
    config = read_json(path)
    config["quantization_config"] = {"quant_method": QUANT_METHOD, "read_with": "sd35"}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
