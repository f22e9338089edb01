"""Places for pictures that tests can break: one in memory, and a real S3 server that can be stopped."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from sd35.errors import MissingError, UnavailableError
from sd35.serving.objects import Bucket
from sd35.serving.storage import Listed, StoredFile

ACCESS_KEY, SECRET_KEY = "test-key", "test-secret"


class Memory:
    """A `Storage` in memory that fails with `failure`, while there is one, and notes the puts."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.failure: UnavailableError | None = None
        self.refused: set[str] = set()
        self.puts: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def put(self, name: str, data: bytes) -> StoredFile:
        """Keep the bytes, once the gate is open."""
        self.puts.append(name)
        self.gate.wait(10)
        self._fail(name)
        self.content[name] = data
        return StoredFile.of(name, data)

    def open(self, name: str) -> bytes:
        """The bytes."""
        self._fail()
        if name not in self.content:
            raise MissingError(name)
        return self.content[name]

    def url(self, name: str, expires_s: float) -> str:
        """An address that tells whose it is."""
        return f"memory:{name}?{expires_s}"

    def delete(self, name: str) -> None:
        """Forget the bytes."""
        self._fail()
        self.content.pop(name, None)

    def files(self) -> Iterator[Listed]:
        """All of them."""
        self._fail()
        return iter([Listed(name, len(data), 0.0) for name, data in self.content.items()])

    def _fail(self, name: str = "") -> None:
        if self.failure is not None and (not self.refused or name in self.refused):
            raise self.failure


class S3Server:
    """`rclone serve s3` over a folder whose subfolders are the buckets."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, access_key: str = ACCESS_KEY) -> None:
        """Serve whoever has this key, and return when connections are taken."""
        program = Path(sys.executable).with_name("rclone")
        address, keys = f"127.0.0.1:{self.port}", f"{access_key},{SECRET_KEY}"
        self._process = subprocess.Popen(
            [program, "serve", "s3", "--config", "", "--addr", address, "--auth-key", keys, self.root],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while not self._answers():
            assert self._process.poll() is None, "rclone has ended"
            assert time.monotonic() < deadline, "rclone does not answer"

    def stop(self) -> None:
        """End it at once, with whatever it was doing (SIGTERM would wait for open connections)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def bucket(self, name: str = "pictures", **changes: object) -> Bucket:
        """How to reach a bucket of this server."""
        facts = {"access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY, "patience_s": 2.0}
        return Bucket(name=name, endpoint=f"http://127.0.0.1:{self.port}", **{**facts, **changes})

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=0.2):
                return True
        except OSError:
            time.sleep(0.05)
            return False
