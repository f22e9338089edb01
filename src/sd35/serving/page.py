"""The web pages: the files of `web/`, as they are, at `/`, `/ops` and `/web/`.

They are read once, when the server starts, and weigh under 200 kB together. A browser asks each time whether
its copy is still the one (`no-cache` with an ETag), so a new version of the server never runs half of an old
page. The policy (CSP) lets the page load what this server gives and nothing else: no inline script, no
inline style, no stranger's frame around it. Pictures may come from where the storage keeps them.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response

from sd35.serving.gateway import Gateway, gateway_of
from sd35.serving.problems import Problem, ServiceError

FOLDER = Path(__file__).with_name("web")
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Asset:
    """A file of the page as it goes out."""

    content: bytes
    media_type: str
    etag: str


def read_assets(folder: Path = FOLDER) -> dict[str, Asset]:
    """The page's files by their path below `web/`."""
    paths = (path for path in sorted(folder.rglob("*")) if path.suffix in MEDIA_TYPES)
    return {path.relative_to(folder).as_posix(): _asset(path) for path in paths}


def policy(gateway: Gateway) -> str:
    """The Content-Security-Policy of the page. https://www.w3.org/TR/CSP3/"""
    origins = " ".join(sorted(_picture_origins(gateway)))
    return "; ".join(
        (
            "default-src 'self'",
            f"img-src 'self' blob: data: {origins}".rstrip(),
            "object-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",  # nothing turns text into markup
            "trusted-types 'none'",
        )
    )


@router.get("/")
async def index(request: Request) -> Response:
    """The page."""
    return _answer("index.html", request)


@router.get("/ops")
async def operations(request: Request) -> Response:
    """The page for those who run the server; what it shows, its routes give to whom it may."""
    return _answer("ops.html", request)


@router.get("/web/{path:path}")
async def asset(path: str, request: Request) -> Response:
    """A file that the page needs."""
    return _answer(path, request)


def _answer(path: str, request: Request) -> Response:
    found: Asset | None = request.app.state.assets.get(path)
    if found is None:
        raise ServiceError(Problem.NOT_FOUND, f"There is no file {path!r} here.")
    headers = {**HEADERS, "ETag": found.etag, "Content-Security-Policy": policy(gateway_of(request))}
    if has_current(request.headers.get("if-none-match", ""), found.etag):
        return Response(status_code=304, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=headers)


def has_current(if_none_match: str, etag: str) -> bool:
    """Whether one of the client's copies is ours; weak comparison, as RFC 9110 section 13.1.2 wants here."""
    copies = {copy.strip().removeprefix("W/") for copy in if_none_match.split(",")}
    return bool(copies & {etag, "*"})


def _asset(path: Path) -> Asset:
    content = path.read_bytes()
    return Asset(content, MEDIA_TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _picture_origins(gateway: Gateway) -> set[str]:
    """Where links to pictures lead, when not here: an object store, or this server by its public name."""
    addresses = (gateway.service.storage.url("picture.png", 1), gateway.settings.public_url)
    parts = (urlsplit(address) for address in addresses)
    return {f"{part.scheme}://{part.netloc}" for part in parts if part.netloc}
