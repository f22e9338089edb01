"""Flip random bits of a checkpoint folder's files, one at a time, and count how many `verify` catches.

    python scripts/bit_flips.py src/sd35/demo/checkpoint --flips 1000 --seed 1

Works on a copy with a manifest of its own. Half of the flips go into safetensors headers and small files, for
in proportion to bytes nearly all would hit weights. With --no-manifest the folder has no record, and the
count is what the structural checks alone can see.
"""

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from sd35.checkpoints.header import read_header
from sd35.checkpoints.manifest import FILE_NAME, Manifest, hash_files, write_manifest
from sd35.checkpoints.verify import verify


def place_of_flip(rng: random.Random, paths: list[Path]) -> tuple[Path, int]:
    """A file and a byte of it: every other time among what is read as structure."""
    if rng.random() < 0.5:
        path = rng.choice(paths)
        return path, rng.randrange(_structure_bytes(path))
    path = rng.choices(paths, [path.stat().st_size for path in paths])[0]
    return path, rng.randrange(path.stat().st_size)


def _structure_bytes(path: Path) -> int:
    return read_header(path).data_start if path.suffix == ".safetensors" else path.stat().st_size


def flip(path: Path, at: int, bit: int) -> None:
    """Turn one bit round, in place."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ (1 << bit)]))


def main() -> int:
    """Exit code 1 if a flip was missed."""
    parser = argparse.ArgumentParser(description="Count the bit flips that sd35 verify catches.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-manifest", action="store_true")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "copy"
        shutil.copytree(arguments.folder, copy)
        (copy / FILE_NAME).unlink(missing_ok=True)
        paths = sorted(path for path in copy.rglob("*") if path.is_file())
        if not arguments.no_manifest:
            write_manifest(copy, Manifest(hash_files(copy)))
        caught = 0
        for _ in range(arguments.flips):
            path, at = place_of_flip(rng, paths)
            bit = rng.randrange(8)
            flip(path, at, bit)
            caught += not verify(copy).sound
            flip(path, at, bit)
        assert verify(copy).sound
    print(f"{arguments.flips} flips, {caught} caught")
    return caught != arguments.flips


if __name__ == "__main__":
    sys.exit(main())
