"""The table of recipes is made by a command; here it makes three of its rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXACT, ROWWISE, LEARNED = "16-bit, float32 compute", "rowwise (default)", "rowwise, learned rounding"


def test_rows_are_measured(tmp_path: Path) -> None:
    """Computing more exactly errs least, learned rounding less than the nearest, at equal bytes."""
    out = tmp_path / "fidelity.json"
    flags = ["--prompts", "2", "--steps", "3", "--calibration", "2", "--device", "cpu", "--out", str(out)]
    command = [
        sys.executable,
        str(ROOT / "benchmarks/fidelity.py"),
        *flags,
        "--rows",
        EXACT,
        ROWWISE,
        LEARNED,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr[-2000:]
    measured = {row["name"]: row for row in json.loads(out.read_text(encoding="utf-8"))["rows"]}
    assert list(measured) == [EXACT, ROWWISE, LEARNED]
    exact, nearest, learned = (measured[name]["velocity SQNR, dB"]["mean"] for name in measured)
    assert exact > learned + 6 > nearest + 6
    assert measured[LEARNED]["transformer_bytes"] == measured[ROWWISE]["transformer_bytes"]
    assert measured[ROWWISE]["transformer_bytes"] < 0.55 * measured[EXACT]["transformer_bytes"]
    assert ROWWISE in done.stdout
