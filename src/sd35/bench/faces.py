"""The server's faces as a client sees them: one whole errand each, over HTTP and nothing else.

Every client that is at work at the same time has a connection of its own: what a pool does with hundreds of
them would be measured as the server's.
"""

import json
import ssl
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

import httpx2

from sd35.bench.load import AskFailed

PATIENCE_S = 600.0  # what OpenAI's own package waits
PROMPT = "a lighthouse on a cliff, in the evening"


class Faces:
    """Errands at one server; `async with` closes the connections."""

    def __init__(self, url: str, key: str | None, asked: dict[str, Any]) -> None:
        self._url, self._asked = url, asked
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        # Reading the certificates takes 15 ms, in which no answer is read: once, not for each connection.
        self._tls = ssl.create_default_context()
        self._idle: deque[httpx2.AsyncClient] = deque()
        self._made: list[httpx2.AsyncClient] = []

    async def __aenter__(self) -> "Faces":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._made:
            await client.aclose()

    async def livez(self) -> None:
        """Ask whether the process answers."""
        async with self._client() as client:
            _expect(await client.get("/livez"), 200)

    async def openai(self) -> None:
        """Ask for pictures and get them."""
        body: dict[str, Any] = {"prompt": PROMPT, "n": self._asked.get("n", 1)}
        if "width" in self._asked:
            body["size"] = f"{self._asked['width']}x{self._asked['height']}"
        if "num_inference_steps" in self._asked:
            body["num_inference_steps"] = self._asked["num_inference_steps"]
        async with self._client() as client:
            answer = _expect(await client.post("/v1/images/generations", json=body), 200)
        if not all(datum["b64_json"] for datum in answer.json()["data"]):
            raise AskFailed("no picture")

    async def accept(self) -> None:
        """Leave a job and have it acknowledged, no more."""
        async with self._client() as client:
            _expect(await client.post("/api/v1/jobs", json={"prompt": PROMPT, **self._asked}), 202)

    async def native(self) -> None:
        """Leave a job and listen to its events until it has ended."""
        async with self._client() as client:
            job = _expect(await client.post("/api/v1/jobs", json={"prompt": PROMPT, **self._asked}), 202)
            state = ""
            async with client.stream("GET", f"/api/v1/jobs/{job.json()['id']}/events") as events:
                async for line in events.aiter_lines():
                    if line.startswith("data: "):
                        state = json.loads(line.removeprefix("data: ")).get("state", state)
        if state != "succeeded":
            raise AskFailed(state or "no end")

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx2.AsyncClient]:
        client = self._idle.pop() if self._idle else self._another()
        try:
            yield client
        except httpx2.HTTPError as error:
            raise AskFailed(type(error).__name__) from error
        finally:
            self._idle.append(client)

    def _another(self) -> httpx2.AsyncClient:
        client = httpx2.AsyncClient(
            base_url=self._url,
            headers=self._headers,
            timeout=PATIENCE_S,
            verify=self._tls,
            trust_env=False,
        )
        self._made.append(client)
        return client


def _expect(answer: httpx2.Response, status: int) -> httpx2.Response:
    if answer.status_code != status:
        raise AskFailed(f"status {answer.status_code}")
    return answer
