"""What a person means by the SOURCE of `sd35 fetch`.

    large, medium, large-turbo, large-fp8    short names of hub repositories
    org/name                                 a repository of the hub
    https://host/path.git, git@host:path     a Git LFS remote (with --via git a hub id becomes one too)
    ./folder, /folder, ~/folder, C:\\folder   a folder on this machine

The form decides, never what happens to lie in the current folder.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args
from urllib.parse import urlsplit, urlunsplit

from sd35.checkpoints.fetch import environment
from sd35.checkpoints.manifest import Origin
from sd35.checkpoints.store import REPOSITORIES
from sd35.errors import CheckpointError, RequestError
from sd35.variants import VARIANTS

Kind = Literal["hub", "git", "folder"]

FP8 = "large-fp8"
_DEFAULT_FILES = {REPOSITORIES[FP8]: ("sd3.5_large_fp8_scaled.safetensors",)}
_VARIANTS = {repository: name for name, repository in REPOSITORIES.items() if name in VARIANTS}
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SCP = re.compile(r"[\w.-]+@[\w.-]+:.+")
_FOLDER = re.compile(r"[/~]|\.{1,2}[/\\]|\\\\|[A-Za-z]:[/\\]")
_GIT_SCHEMES = ("https", "http", "ssh", "file")


@dataclass(frozen=True)
class Source:
    """`place` is a repository's id, a URL without credentials in it, or an absolute path."""

    kind: Kind
    place: str
    name: str  # of the folder that it is fetched into
    endpoint: str | None = None  # the hub's address
    files: tuple[str, ...] = ()  # single files; empty: the diffusers folder
    url: str | None = None  # for git: the address as it was given
    has_token: bool = True  # whether the person's token is meant for this endpoint

    @property
    def variant(self) -> str | None:
        """The variant whose repository this is: nothing in the files tells Large from Large-Turbo."""
        return _VARIANTS.get(self.place)

    @property
    def needs_network(self) -> bool:
        """Whether it lies elsewhere."""
        return self.kind != "folder" and not self.place.startswith("file://")


def understand(
    text: str, via: str | None = None, endpoint: str | None = None, files: tuple[str, ...] = ()
) -> Source:
    """The source that `text` names; RequestError if it names none."""
    hub = _endpoint(endpoint)
    kind = _kind(text, via)
    if kind == "folder":
        path = Path(os.path.abspath(os.path.expanduser(text)))  # as it is called: links are not followed
        return Source("folder", str(path), path.name, files=files)
    if kind == "git":
        return _git(text, hub, files)
    repository = REPOSITORIES.get(text, text)
    if not _ID.fullmatch(repository) or ".." in repository:
        raise RequestError(
            f"{text!r} is no source: give one of {', '.join(REPOSITORIES)}, a hub id such as org/name, a git "
            "URL, or a folder that begins with / or ./"
        )
    name = text if text in REPOSITORIES else _short_name(repository)
    return Source("hub", repository, name, hub, files or _DEFAULT_FILES.get(repository, ()))


def recorded(origin: Origin) -> Source:
    """The source that a manifest names; CheckpointError if it names none.

    A manifest may come from a stranger, and the token must not go to whatever address it holds: it goes to
    the hub, and to the endpoint that the person has set.
    """
    try:
        source = understand(origin.place, via=origin.kind, endpoint=origin.endpoint)
    except RequestError as error:
        raise CheckpointError(f"The manifest's origin is no source: {error}") from error
    return replace(source, has_token=source.endpoint in (environment.HUB, environment.endpoint()))


def is_commit(text: str) -> bool:
    """Whether it is a full git commit id."""
    return len(text) == 40 and set(text) <= set("0123456789abcdef")


def without_credentials(url: str) -> str:
    """The URL without the user's name and password: what may be shown and written down."""
    parts = urlsplit(url)
    if not parts.scheme or "@" not in parts.netloc or parts.scheme == "ssh":
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _kind(text: str, via: str | None) -> Kind:
    if via is not None:
        if via not in get_args(Kind):
            raise RequestError(
                f"There is no way {via!r} to fetch: choose one of {', '.join(get_args(Kind))}."
            )
        return cast(Kind, via)
    if _FOLDER.match(text) or text in (".", ".."):
        return "folder"
    return "git" if "://" in text or _SCP.fullmatch(text) else "hub"


def _git(text: str, hub: str, files: tuple[str, ...]) -> Source:
    repository = REPOSITORIES.get(text, text)
    if _ID.fullmatch(repository) and not repository.endswith(".git"):
        url, name = f"{hub}/{repository}", text if text in REPOSITORIES else _short_name(repository)
    else:
        url, name = text, re.split(r"[/:]", text.rstrip("/"))[-1].removesuffix(".git")
    # git takes addresses that run programs (ext::sh -c ...) and reads a leading dash as an option.
    if urlsplit(url).scheme not in _GIT_SCHEMES and not _SCP.fullmatch(url):
        raise RequestError(
            f"{url!r} is no address of a git remote: give one with https://, ssh:// or file://."
        )
    if name in ("", ".", "..") or name == urlsplit(url).netloc:
        raise RequestError(f"{url!r} names no repository.")
    return Source("git", without_credentials(url), name, files=files, url=url)


def _short_name(repository: str) -> str:
    """The short name of a repository that has one, else a folder's name made of its id."""
    known = {place: name for name, place in REPOSITORIES.items()}
    return known.get(repository, repository.replace("/", "--"))


def _endpoint(given: str | None) -> str:
    endpoint = (given or environment.endpoint()).rstrip("/")
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise RequestError(f"{endpoint!r} is no endpoint: give an address such as https://hf-mirror.com")
    return endpoint
