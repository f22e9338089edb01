"""Fuzz one gate, guided by coverage: python fuzz/run.py header|index|config [libFuzzer's flags].

Needs atheris (pip install atheris==3.0.0). By hand, a million executions each:

    python fuzz/run.py header -runs=1000000 -seed=1 -max_len=4096 -timeout=1

A crash leaves its input in a file `crash-...`; that file as the last argument runs it again. The seeds and
the dictionary are written to a temporary folder. The suite runs the same targets briefly, without atheris.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sd35.checkpoints", "targets"]):
    from targets import TARGETS, seeds, words


def main() -> None:
    """Hand over to libFuzzer, which ends the process."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python fuzz/run.py {'|'.join(TARGETS)} [libFuzzer's flags]")
    name = sys.argv.pop(1)
    place = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    (place / "corpus").mkdir()
    for number, seed in enumerate(seeds(name)):
        (place / "corpus" / str(number)).write_bytes(seed)
    lines = ("".join(f"\\x{byte:02x}" for byte in word) for word in words(name))
    (place / "dictionary").write_text("".join(f'"{line}"\n' for line in lines))
    atheris.Setup([*sys.argv, f"-dict={place / 'dictionary'}", str(place / "corpus")], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
