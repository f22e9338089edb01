"""What tests of the server share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from stores import S3Server


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Server]:
    """A running S3 server with one bucket, `pictures`."""
    (tmp_path / "s3" / "pictures").mkdir(parents=True)
    server = S3Server(tmp_path / "s3")
    server.start()
    yield server
    server.stop()
