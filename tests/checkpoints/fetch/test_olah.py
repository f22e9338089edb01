"""A hub that somebody else wrote: olah, offline, over a local git repository."""

from pathlib import Path

import pytest
from git_repository import SERVERS, free_port, repository_of, serving
from loopback_hub import WEIGHTS, contents

from sd35.checkpoints.fetch.fetch import fetch, refetch
from sd35.checkpoints.manifest import Origin
from sd35.errors import Sd35Error

_CONFIG = """
[basic]
repos-path = "cache"
mirrors-path = ["mirrors"]
[accessibility]
offline = true
[[accessibility.proxy]]
repo = "*/*"
allow = true
[[accessibility.cache]]
repo = "*/*"
allow = true
"""


@pytest.mark.server
def test_fetch_from_olah(tmp_path: Path, repository: dict[str, bytes], wanted: dict[str, bytes]) -> None:
    """The folder, pinned; a lost file again; and olah's answer for a repository that it does not have."""
    server = tmp_path / "server"
    commit = repository_of(repository, server / "mirrors/models/maker/model")
    (server / "olah.toml").write_text(_CONFIG)
    port = free_port()
    command = [
        str(SERVERS / "olah/bin/olah-cli"),
        "-c",
        "olah.toml",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with serving(command, port, server) as endpoint:
        report = fetch("maker/model", tmp_path / "m", endpoint=endpoint)
        assert contents(tmp_path / "m") == wanted
        assert report.manifest.origin == Origin("hub", "maker/model", commit, endpoint)
        (tmp_path / "m" / WEIGHTS).write_bytes(bytes(400_000))
        refetch(tmp_path / "m", [WEIGHTS])
        assert contents(tmp_path / "m") == wanted
        with pytest.raises(Sd35Error, match="maker/nothing"):
            fetch("maker/nothing", tmp_path / "n", endpoint=endpoint)
