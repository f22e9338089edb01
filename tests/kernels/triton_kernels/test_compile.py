"""Every kernel compiles for every generation of cards, on a machine that has none."""

import os
import subprocess
import sys
from pathlib import Path

ARCHITECTURES = (80, 86, 89, 90, 100, 120)


def test_every_launch_compiles_for_every_card() -> None:
    """All operations' launches at Large's and the VAE's widths, from Ampere to Blackwell."""
    script = Path(__file__).parent / "compile_ahead.py"
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    *operations, odd, even = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in operations] == [f"sm_{number}" for number in ARCHITECTURES]
    assert all("9 kernels" in line for line in operations)
    assert odd == even == "sm_90: attention of tiles, products in flight"
