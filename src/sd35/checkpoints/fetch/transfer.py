"""One file over HTTP, for as long as it takes: Range requests that go on where the last one stopped.

Three things end a request early: trouble that passes (a dropped connection, 5xx, 429), after a pause; an
answer that does not continue our bytes (another ETag, another range, Range ignored), which starts the file
again; and a refusal, which is explained. When all bytes are there and their hash is wrong, the file is
fetched once more from its first byte, and refused if it is wrong again.
"""

import random
import re
from http import HTTPStatus

import httpx2

from sd35.checkpoints.fetch.part import Part
from sd35.checkpoints.fetch.refusals import Asked, is_passing, refusal
from sd35.checkpoints.progress import Progress
from sd35.errors import CheckpointError, NetworkError

TRIES = 5  # requests in a row that bring nothing new
PAUSE = 0.5  # seconds before the second try; doubles with each
LONGEST_PAUSE = 60.0
_NEW = 1 << 20  # bytes that count as something new
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class Trouble(Exception):
    """This request did not work; another may."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause  # seconds that the server asks for


def download(client: httpx2.Client, url: str, part: Part, asked: Asked, progress: Progress) -> None:
    """Bring the part to its end and prove it; NetworkError, MissingError or CheckpointError otherwise."""
    for _ in range(2):
        _complete(client, url, part, asked, progress)
        if part.is_right:
            return
        part.discard()
    raise CheckpointError(
        f"{asked.place} sent {part.file.path} twice with the right size and the wrong content (its hash is "
        f"not {part.file.sha256 or part.file.blob}): nothing of it was kept; try later or another --endpoint."
    )


def _complete(client: httpx2.Client, url: str, part: Part, asked: Asked, progress: Progress) -> None:
    fruitless = 0
    while part.size < part.file.size:
        before = part.size
        try:
            _receive(client, url, part, asked)
        except httpx2.TooManyRedirects as error:
            raise NetworkError(f"{url} redirects in a circle: try another --endpoint.") from error
        except (httpx2.TransportError, Trouble) as trouble:
            fruitless = 1 if part.size >= before + _NEW else fruitless + 1
            if fruitless >= TRIES:
                raise NetworkError(
                    f"{part.file.path} can't be had from {asked.place}: {TRIES} tries in a row failed, the "
                    f"last with: {words(trouble)}. What came is kept; run the same command again to go on."
                ) from trouble
            progress.wait(pause(fruitless, trouble))


def pause(failures: int, trouble: Exception) -> float:
    """Seconds before the next try: doubling, with some chance in it, or what the server asks for."""
    wanted = trouble.pause if isinstance(trouble, Trouble) else 0.0
    return min(LONGEST_PAUSE, max(wanted, PAUSE * 2 ** (failures - 1) * random.uniform(0.75, 1.25)))


def words(trouble: Exception) -> str:
    """What went wrong, also where the library's exception has no text."""
    return str(trouble) or type(trouble).__name__


def check_answer(response: httpx2.Response, asked: Asked, path: str | None = None) -> None:
    """Raise Trouble for what may pass, and the explained refusal for what won't."""
    if is_passing(response.status_code):
        raise Trouble(f"HTTP {response.status_code}", _retry_after(response))
    if response.status_code >= 400:
        raise refusal(response, asked, path)


def check_pinned(response: httpx2.Response, asked: Asked, part: Part) -> None:
    """The hub's own answer (the first, where it redirects) must be about the commit and content we listed."""
    headers = (response.history[0] if response.history else response).headers
    commit, linked = headers.get("X-Repo-Commit"), plain_etag(headers.get("X-Linked-Etag"))
    if asked.commit and commit and commit != asked.commit:
        raise CheckpointError(
            f"{asked.place} answered for commit {commit}, and {asked.commit} was listed: it changed under "
            "our hands, so run the same command again."
        )
    if linked and part.file.blob is None and linked != part.file.sha256:
        raise CheckpointError(
            f"{asked.place} now has another {part.file.path} than it listed: run the same command again."
        )


def plain_etag(etag: str | None) -> str | None:
    """An ETag without its quotes and weakness mark."""
    return etag.removeprefix("W/").strip('"') if etag else None


def _receive(client: httpx2.Client, url: str, part: Part, asked: Asked) -> None:
    """One request: its bytes are in the part when it returns or raises."""
    headers = {"Range": f"bytes={part.size}-"} if part.size else {}
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.discard()
            raise Trouble("the server has fewer bytes than came before")
        check_answer(response, asked, part.file.path)
        check_pinned(response, asked, part)
        _join(response, part)
        for chunk in response.iter_raw():
            if part.size + len(chunk) > part.file.size:
                part.discard()
                raise Trouble(f"it sends more than the {part.file.size} bytes that were listed")
            part.write(chunk)
    if part.size < part.file.size:
        raise Trouble(f"the connection ended at {part.size} of {part.file.size} bytes")


def _join(response: httpx2.Response, part: Part) -> None:
    """Make sure that the next byte of the answer is the next byte of the part."""
    etag = plain_etag(response.headers.get("ETag"))
    if response.status_code == HTTPStatus.PARTIAL_CONTENT:
        if not _continues(response, part) or (etag and part.etag and etag != part.etag):
            part.discard()
            raise Trouble("the server continues another file than the one begun")
        return
    length = response.headers.get("Content-Length")
    if length is not None and length != str(part.file.size):
        kind = response.headers.get("Content-Type", "unnamed content")
        raise Trouble(f"it offers {length} bytes of {kind} where {part.file.size} were listed")
    if part.size:  # Range was ignored: the answer is the whole file
        part.discard()
    part.begin(etag)


def _continues(response: httpx2.Response, part: Part) -> bool:
    found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if found is None:
        return False
    return int(found[1]) == part.size and found[3] in ("*", str(part.file.size))


def _retry_after(response: httpx2.Response) -> float:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0
