"""A hub that speaks huggingface.co's HTTP: the real one, a mirror, or one on your own network.

Four addresses are all of it (the first two under `/api/models/<repository>`):

    /revision/<revision>                      -> the commit behind a branch or tag
    /tree/<commit>?recursive=true             -> path, size, git's SHA-1 and the LFS SHA-256 of every file
    /<repository>/resolve/<commit>/<path>     -> the bytes; HEAD on it says whether we may have them

The list is public even where the files are gated, so access is tried with a HEAD before the first byte. The
token goes to the endpoint alone: httpx2 drops it when an answer redirects to another host.
"""

import time
from dataclasses import replace
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx2

from sd35.checkpoints.fetch.listing import RemoteFile
from sd35.checkpoints.fetch.part import Part
from sd35.checkpoints.fetch.refusals import Asked
from sd35.checkpoints.fetch.sources import is_commit
from sd35.checkpoints.fetch.transfer import (
    TRIES,
    Trouble,
    check_answer,
    download,
    pause,
    words,
)
from sd35.checkpoints.progress import Progress
from sd35.errors import NetworkError, RequestError

# Seconds: to reach a server, and to wait for its next byte.
TIMEOUT = httpx2.Timeout(20.0, connect=10.0)
MAX_PAGES = 1000


class Hub:
    """A connection to one repository of one hub; use it as a context manager."""

    def __init__(self, repository: str, endpoint: str, token: str | None) -> None:
        self._asked = Asked(repository, endpoint, has_token=token is not None)
        headers = {"User-Agent": "sd35-fp8", "Accept-Encoding": "identity"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        try:
            httpx2.URL(endpoint)
        except httpx2.InvalidURL as error:
            raise RequestError(f"{endpoint!r} is no endpoint ({error}).") from error
        self._client = httpx2.Client(headers=headers, timeout=TIMEOUT, follow_redirects=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @property
    def place(self) -> str:
        """The repository's page."""
        return self._asked.place

    def pin(self, revision: str | None) -> str:
        """The commit behind a branch, a tag or a commit; what follows is about it alone."""
        name = revision or "main"
        self._asked = replace(self._asked, revision=name)
        answer = self._json(f"{self._api}/revision/{quote(name, safe='')}").json()
        commit = answer.get("sha") if isinstance(answer, dict) else None
        if not isinstance(commit, str) or not is_commit(commit):
            raise NetworkError(f"{self.place} did not say which commit {name} is: try another --endpoint.")
        self._asked = replace(self._asked, commit=commit)
        return commit

    def files(self) -> list[RemoteFile]:
        """Every file of the commit."""
        url = f"{self._api}/tree/{self._asked.commit}"
        query = "recursive=true&expand=false"
        found: list[RemoteFile] = []
        for _ in range(MAX_PAGES):
            response = self._json(f"{url}?{query}")
            found += [_remote_file(entry) for entry in _entries(response, self.place)]
            following = response.links.get("next", {}).get("url")
            if following is None:
                return found
            query = urlsplit(following).query  # only the cursor: the host stays the one we were given
        raise NetworkError(f"{self.place} lists more than {MAX_PAGES} pages of files: that is no checkpoint.")

    def check(self, files: list[RemoteFile]) -> None:
        """Find out whether we may have the files, without fetching any."""
        largest = max(files, key=lambda file: file.size)
        self._ask("HEAD", self._url(largest), largest.path, follow=False)

    def prepare(self, files: list[RemoteFile], progress: Progress) -> None:
        """Nothing: each file is a request of its own."""

    def bring(self, part: Part, progress: Progress) -> None:
        """Download and verify one file."""
        download(self._client, self._url(part.file), part, self._asked, progress)

    @property
    def _api(self) -> str:
        return f"{self._asked.endpoint}/api/models/{self._asked.repository}"

    def _url(self, file: RemoteFile) -> str:
        return f"{self.place}/resolve/{self._asked.commit}/{quote(file.path)}"

    def _json(self, url: str) -> httpx2.Response:
        response = self._ask("GET", url)
        try:
            response.json()
        except ValueError as error:
            kind = response.headers.get("Content-Type", "unnamed content")
            raise NetworkError(
                f"{url} answered with {kind}, which is no hub's answer (a proxy's or a login page?): check "
                "--endpoint and the network."
            ) from error
        return response

    def _ask(self, method: str, url: str, path: str | None = None, *, follow: bool = True) -> httpx2.Response:
        """A small request, tried a few times."""
        for failures in range(1, TRIES + 1):
            try:
                response = self._client.request(method, url, follow_redirects=follow)
                check_answer(response, self._asked, path)
                return response
            except httpx2.TooManyRedirects as error:
                raise NetworkError(f"{url} redirects in a circle: try another --endpoint.") from error
            except (httpx2.TransportError, Trouble) as trouble:
                last: Exception = trouble
                if failures < TRIES:
                    time.sleep(pause(failures, trouble))
        raise NetworkError(
            f"{self._asked.endpoint} can't be reached ({words(last)}): check the network and --endpoint, or "
            "fetch from a folder."
        ) from last


def _entries(response: httpx2.Response, place: str) -> list[dict[str, Any]]:
    answer = response.json()
    if not isinstance(answer, list) or not all(isinstance(entry, dict) for entry in answer):
        raise NetworkError(f"{place} answered with something that is no list of files: check --endpoint.")
    return [entry for entry in answer if entry.get("type") == "file"]


def _remote_file(entry: dict[str, Any]) -> RemoteFile:
    try:
        path, lfs = str(entry["path"]), entry.get("lfs")
        if lfs:
            return RemoteFile(path, int(lfs["size"]), sha256=str(lfs.get("oid") or lfs["sha256"]))
        return RemoteFile(path, int(entry["size"]), blob=str(entry["oid"]))
    except (KeyError, TypeError, ValueError) as error:
        raise NetworkError(f"The hub's list of files can't be understood ({error!r} in {entry}).") from error
