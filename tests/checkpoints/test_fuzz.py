"""The fuzz targets, briefly and the same each time: any bytes are accepted or refused, and nothing else."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "fuzz"))
from targets import TARGETS, seeds, words


def mutated(rng: random.Random, data: bytes, vocabulary: list[bytes]) -> bytes:
    """A few edits of the kinds that libFuzzer makes: bits, cuts, copies, words."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(4)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[at : at + rng.randint(1, 8)]
        elif kind == 2:
            changed[at:at] = changed[at : at + rng.randint(1, 40)]
        else:
            changed[at : at + rng.randint(0, 8)] = rng.choice(vocabulary)
    return bytes(changed)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_gate_accepts_or_refuses(name: str) -> None:
    """Twenty thousand mutations of sound inputs, some of them mutated again."""
    rng, vocabulary = random.Random(1), words(name)
    pool = seeds(name)
    for seed in pool:
        TARGETS[name](seed)
    for _ in range(20_000):
        data = mutated(rng, rng.choice(pool), vocabulary)
        TARGETS[name](data)
        if len(pool) < 500 and rng.random() < 0.05:
            pool.append(data)
