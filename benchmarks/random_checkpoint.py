"""A checkpoint of random weights at full size, on the disk: to measure memory and loading with.

    python benchmarks/random_checkpoint.py large FOLDER
    sd35 quantize FOLDER FP8_FOLDER
    sd35 bench --variant large --checkpoint FP8_FOLDER --caps 7.2GiB 5.2GiB 3.2GiB

The folder is in 16 bits and laid out as diffusers lays one out, so everything that reads a checkpoint reads
it. Its tokenizers and scheduler are the demo model's. Pictures of it are noise; Large takes 28 GB.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch

from sd35.bench.random_weights import RandomCheckpoint
from sd35.checkpoints.lazy import Lazy
from sd35.checkpoints.parts import PARTS
from sd35.checkpoints.store import locate
from sd35.checkpoints.writer import write_safetensors
from sd35.errors import OutputError, Sd35Error
from sd35.variants import VARIANTS


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("folder", type=Path, help="must not exist yet")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    try:
        write(arguments.variant, arguments.folder, torch.device(arguments.device))
    except Sd35Error as error:
        parser.exit(1, f"{error}\n")


def write(variant: str, folder: Path, device: torch.device) -> None:
    """Part by part; the numbers are drawn on the device, one tensor at a time."""
    if folder.exists():
        raise OutputError(f"{folder} exists: name a folder that does not, or remove it.")
    demo, checkpoint = locate("demo"), RandomCheckpoint(variant, device)
    folder.mkdir(parents=True)
    shutil.copy(demo / "model_index.json", folder)
    for name, part in PARTS.items():
        if part.weights is None:
            shutil.copytree(demo / name, folder / name)
            continue
        (folder / name).mkdir()
        (folder / name / part.config).write_text(
            json.dumps(_config(checkpoint, name, part.classes[0]), indent=2)
        )
        on_host = {key: _brought_home(lazy) for key, lazy in checkpoint.tensors(name).tensors.items()}
        write_safetensors(folder / name / f"{part.weights}.safetensors", on_host, {"format": "pt"})


def _config(checkpoint: RandomCheckpoint, part: str, class_name: str) -> dict[str, object]:
    key = "architectures" if part.startswith("text") else "_class_name"
    return {key: [class_name] if key == "architectures" else class_name, **checkpoint.config(part)}


def _brought_home(lazy: Lazy) -> Lazy:
    return Lazy(lazy.spec, lambda: lazy.read().cpu())


if __name__ == "__main__":
    main()
