"""A hub on 127.0.0.1 for tests: the few addresses that fetch needs, and every way in which they can go wrong.

A fault is a word; `hub.faults[path]` is an iterator of them, one taken for each request of that path, None
for a good answer. Bytes are sent in small chunks, which a gate can count and hold back.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
SHARD = "text_encoder_3/model-00001-of-00002.safetensors"
CHUNK = 4096
PAGE = 5  # files on a page of the listing


@dataclass
class Gate:
    """Lets so many chunks pass, then holds every answer back until it is opened again."""

    chunks: int | None = None  # None: open
    turn: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)
    drained: threading.Event = field(default_factory=threading.Event)

    def let(self, chunks: int | None) -> None:
        """A new turn: older answers end, newer ones may send so many chunks."""
        with self.changed:
            self.chunks, self.turn = chunks, self.turn + 1
            self.drained.clear()
            self.changed.notify_all()

    def passes(self, turn: int) -> bool:
        """Wait for leave to send one chunk; False if the answer belongs to an older turn."""
        with self.changed:
            self.changed.wait_for(lambda: self.turn != turn or self.chunks is None or self.chunks > 0)
            if self.turn != turn:
                return False
            if self.chunks is not None:
                self.chunks -= 1
                if self.chunks == 0:
                    self.drained.set()
            return True


class LoopbackHub:
    """The server; `files` is what its one repository holds at its one commit."""

    def __init__(self, files: dict[str, bytes], repository: str = "maker/model") -> None:
        self.files = files
        self.repository = repository
        self.listed: dict[str, bytes] = {}  # what the listing says instead of the truth
        self.faults: dict[str, Iterator[str | None]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []  # method, path, headers
        self.sent = 0  # bytes of files
        self.gated = False
        self.token: str | None = None  # the one with access, where gated
        self.cdn: LoopbackHub | None = None  # redirects large files there
        self.gate = Gate()
        self.branches: dict[str, str] = {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.let(None)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def commit(self) -> str:
        """A commit id that follows from the files."""
        names = sorted((path, blob_id(content)) for path, content in self.files.items())
        return hashlib.sha1(repr(names).encode()).hexdigest()

    def downloads(self, path: str) -> list[dict[str, str]]:
        """The headers of every GET of that file."""
        return [headers for method, url, headers in self.requests if method == "GET" and url.endswith(path)]

    def entry(self, path: str) -> dict[str, Any]:
        """The listing's entry for a file."""
        content = self.listed.get(path, self.files[path])
        if not path.endswith(".safetensors"):
            return {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
        pointer = pointer_to(content)
        return {
            "type": "file",
            "path": path,
            "size": len(content),
            "oid": blob_id(pointer),
            "lfs": {"oid": sha256_of(content), "size": len(content), "pointerSize": len(pointer)},
        }


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the manifest."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "sd35.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@cache
def sha256_of(content: bytes) -> str:
    """Its SHA-256; a hub is asked for it again and again."""
    return hashlib.sha256(content).hexdigest()


@cache
def blob_id(content: bytes) -> str:
    """Git's name of a content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def pointer_to(content: bytes) -> bytes:
    """The Git LFS pointer that stands for a content."""
    digest = sha256_of(content)
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each small answer waits 40 ms for an acknowledgement

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.requests.append((self.command, path, dict(self.headers)))
        api = f"/api/models/{self.hub.repository}/"
        try:
            if path.startswith(f"{api}revision/"):
                self._revision(path.removeprefix(f"{api}revision/"))
            elif path == f"{api}tree/{self.hub.commit}":
                self._tree(int(parse_qs(url.query).get("cursor", ["0"])[0]))
            elif path.startswith(f"/{self.hub.repository}/resolve/{self.hub.commit}/"):
                self._file(path.split(self.hub.commit + "/", 1)[1])
            else:
                self._say(404, {"X-Error-Code": "RepoNotFound"})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _revision(self, name: str) -> None:
        fault = self._fault("revision")
        if fault is not None:
            self._fail(fault)
        elif name in {"main", self.hub.commit, *self.hub.branches}:
            commit = self.hub.branches.get(name, self.hub.commit)
            self._json({"id": self.hub.repository, "sha": commit, "siblings": []})
        else:
            self._say(404, {"X-Error-Code": "RevisionNotFound"})

    def _tree(self, cursor: int) -> None:
        fault = self._fault("tree")
        if fault is not None:
            self._fail(fault)
            return
        paths = sorted(self.hub.files)
        entries = [self.hub.entry(path) for path in paths[cursor : cursor + PAGE]]
        folders = [{"type": "directory", "path": "transformer", "size": 0, "oid": "0" * 40}]
        following = f'<https://elsewhere.invalid/tree?cursor={cursor + PAGE}>; rel="next"'
        self._json([*folders, *entries], {"Link": following} if cursor + PAGE < len(paths) else {})

    def _file(self, path: str) -> None:
        if self.hub.gated and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            known = self.headers.get("Authorization")
            self._say(403 if known else 401, {"X-Error-Code": "GatedRepo"})
        elif path not in self.hub.files:
            self._say(404, {"X-Error-Code": "EntryNotFound"})
        elif self.hub.cdn is not None and path.endswith(".safetensors"):
            digest = sha256_of(self.hub.files[path])
            target = f"{self.hub.cdn.endpoint}/{self.hub.cdn.repository}/resolve/{self.hub.cdn.commit}/{path}"
            pinned = {"X-Repo-Commit": self.hub.commit, "X-Linked-Etag": f'"{digest}"'}
            self._say(302, {**pinned, "Location": target})
        else:
            self._content(path, self.hub.files[path])

    def _content(self, path: str, content: bytes) -> None:
        fault = self._fault(path) if self.command == "GET" else None
        entry = self.hub.entry(path)
        headers = {"X-Repo-Commit": self.hub.commit, "ETag": f'"{entry.get("lfs", entry)["oid"]}"'}
        start = self._start(len(content))
        if fault == "other-commit":
            headers["X-Repo-Commit"] = "f" * 40
        elif fault == "other-etag":
            headers["ETag"] = '"another"'
        elif fault == "wrong":
            content = bytes(byte ^ 1 for byte in content)
        elif fault == "longer":
            content += b"more"
        elif fault == "ignore-range":
            start = 0
        elif fault not in (None, "cut", "stall"):
            self._fail(fault)
            return
        if start > len(content) or (fault is None and start == len(content) > 0):
            self._say(416)
            return
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if fault == "longer":  # no promise of a length
            self.close_connection = True
        else:
            headers["Content-Length"] = str(len(content) - start)
        self._head(206 if start else 200, headers)
        if self.command == "GET":
            body = content[start:]
            self._send(body[: len(body) // 2] if fault in ("cut", "stall") else body, fault)

    def _send(self, body: bytes, fault: str | None) -> None:
        turn = self.hub.gate.turn
        for offset in range(0, len(body), CHUNK):
            if not self.hub.gate.passes(turn):
                self.close_connection = True
                return
            chunk = body[offset : offset + CHUNK]
            self.wfile.write(chunk)
            self.wfile.flush()
            self.hub.sent += len(chunk)
        if fault == "stall":
            with self.hub.gate.changed:  # until the client has gone, or the test is over
                self.hub.gate.changed.wait_for(lambda: self.hub.gate.turn != turn, timeout=20)
        self.close_connection = self.close_connection or fault in ("cut", "stall")

    def _start(self, size: int) -> int:
        asked = self.headers.get("Range", "")
        return int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0

    def _fault(self, path: str) -> str | None:
        return next(self.hub.faults.get(path, iter(())), None)

    def _fail(self, fault: str) -> None:
        if fault == "html":
            self._say(200, {"Content-Type": "text/html"}, b"<html>Please log in</html>")
        elif fault == "loop":
            self._say(302, {"Location": self.path})
        elif fault == "drop":
            self.close_connection = True
            self.connection.close()
        else:
            status, _, code = fault.partition(" ")
            self._say(int(status), {"X-Error-Code": code} if code else {})

    def _json(self, content: object, headers: dict[str, str] | None = None) -> None:
        self._say(200, {**(headers or {}), "Content-Type": "application/json"}, json.dumps(content).encode())

    def _say(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self._head(status, {**(headers or {}), "Content-Length": str(len(body))})
        if self.command == "GET":
            self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
