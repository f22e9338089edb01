"""A receiver of webhooks and alerts that notes what comes and answers as it is told."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Its body, understood."""
        return json.loads(self.body)


@dataclass
class Sink:
    """What came; `answers` are the next statuses, and then 204."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    location: str = ""  # of a redirect

    def await_requests(self, count: int, seconds: float = 30.0) -> list[Received]:
        """So many, or an AssertionError."""
        deadline = time.monotonic() + seconds
        while len(self.received) < count:
            assert time.monotonic() < deadline, f"{len(self.received)} requests came, not {count}"
            time.sleep(0.02)
        return self.received


@contextmanager
def sink() -> Iterator[Sink]:
    """A receiver on this machine."""
    one = Sink()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            one.received.append(Received(self.path, dict(self.headers), body))
            self.send_response(one.answers.pop(0) if one.answers else 204)
            if one.location:
                self.send_header("Location", one.location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    one.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield one
    server.shutdown()
    server.server_close()
    thread.join()
