"""What a remote offers, and which of it a checkpoint needs.

A repository holds more than one model: 16-bit twins (`model.fp16.safetensors`), pickles, example pictures,
Python code, and often the single-file layout beside the diffusers folder. The rules below are an allow-list
over the diffusers folder's parts; what they do not name is not fetched.

Git names a file's content in two ways, and a hub passes both on: a small file by SHA-1 over
`blob <size>\\0<content>`, a large one (Git LFS) by plain SHA-256.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from sd35.checkpoints.files import is_plain
from sd35.checkpoints.parts import PARTS, Part
from sd35.errors import CheckpointError, MissingError, RequestError

INDEX = "model_index.json"
POINTER_SIZE = 1024  # bytes; Git LFS's specification keeps pointers below
_LICENSE = re.compile(r"LICEN[CS]E[\w-]*(\.md|\.txt)?")
_TOKENIZER_FILES = frozenset({"merges.txt", "spiece.model"})
_SINGLE_SUFFIXES = (".safetensors", ".json", ".model", ".txt")
_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\n(?:.*\n)*?oid sha256:([0-9a-f]{64})\nsize (\d+)\n"
)


@dataclass(frozen=True)
class RemoteFile:
    """Path in the repository, size in bytes, and the content's name: `sha256` or git's `blob` SHA-1.

    Both are None for a file of a plain folder, which promises nothing of its content; a small file that was
    fetched before has both.
    """

    path: str
    size: int
    sha256: str | None = None
    blob: str | None = None


class Checksum:
    """The names of a content, computed as it streams by: SHA-256 always, git's where it was promised."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        header = b"blob %d\0" % file.size
        self._blob = hashlib.sha1(header, usedforsecurity=False) if file.blob else None

    def update(self, chunk: bytes) -> None:
        """Take in the next bytes."""
        self._sha256.update(chunk)
        if self._blob is not None:
            self._blob.update(chunk)

    @property
    def sha256(self) -> str:
        """SHA-256 of what came so far."""
        return self._sha256.hexdigest()

    @property
    def is_right(self) -> bool:
        """Whether this is the content that was promised, by every name that it was promised under."""
        if self._blob is not None and self._blob.hexdigest() != self._file.blob:
            return False
        return self._file.sha256 in (None, self.sha256)


def pointer(path: str, content: bytes) -> RemoteFile | None:
    """The large file for which a Git LFS pointer stands; None if `content` is no pointer."""
    found = _POINTER.fullmatch(content)
    return RemoteFile(path, int(found[2]), sha256=found[1].decode()) if found else None


def select(files: Iterable[RemoteFile], names: tuple[str, ...], place: str) -> list[RemoteFile]:
    """The files that the checkpoint needs, of the diffusers folder or, if `names` are given, just those.

    MissingError if the remote lacks one, CheckpointError if it has a part in pickles only, RequestError if
    a name is of a kind that is never fetched. Licences always come along.
    """
    offered = {file.path: file for file in files if is_plain(file.path)}
    wanted = _named(offered, names, place) if names else _folder(offered, place)
    licences = [file for path, file in offered.items() if _LICENSE.fullmatch(path)]
    return sorted({*wanted, *licences}, key=lambda file: file.path)


def _named(offered: dict[str, RemoteFile], names: tuple[str, ...], place: str) -> list[RemoteFile]:
    for name in names:
        if not name.endswith(_SINGLE_SUFFIXES):
            raise RequestError(
                f"{name} is not fetched: only {', '.join(_SINGLE_SUFFIXES)} files are, never code or pickles."
            )
        if name not in offered:
            raise MissingError(f"{place} has no file {name}; it has {_weights(offered)}.")
    return [offered[name] for name in names]


def _folder(offered: dict[str, RemoteFile], place: str) -> list[RemoteFile]:
    if INDEX not in offered:
        raise MissingError(
            f"{place} has no {INDEX}, so it is no folder in diffusers' layout: name single files with "
            f"--file; it has {_weights(offered)}."
        )
    wanted = [offered[INDEX]]
    for name, part in PARTS.items():
        wanted += _part(offered, name, part, place)
    return wanted


def _part(offered: dict[str, RemoteFile], name: str, part: Part, place: str) -> list[RemoteFile]:
    """The part's files; only an optional part may be absent."""
    inside = {PurePosixPath(path).name: file for path, file in offered.items() if _parent(path) == name}
    if not inside and part.optional:
        return []
    weights = _weight_names(part.weights, inside) if part.weights else []
    if part.weights and not weights:
        raise CheckpointError(
            f"{place} has no {name}/{part.weights}.safetensors (nor shards of it): that part is missing "
            "there, or lies in pickles, which are never fetched; take another repository or revision."
        )
    if part.config not in inside:
        raise CheckpointError(f"{place} has no {name}/{part.config}: take another repository or revision.")
    return [file for base, file in inside.items() if base in weights or _is_small(base)]


def _weight_names(stem: str, inside: Iterable[str]) -> list[str]:
    """One whole file, or else shards with their index: the order in which the reader looks for them."""
    whole, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    if whole in inside:
        return [whole]
    shards = [base for base in inside if re.fullmatch(rf"{stem}-\d{{5}}-of-\d{{5}}\.safetensors", base)]
    return [index, *shards] if shards and index in inside else []


def _is_small(base: str) -> bool:
    """A config or a tokenizer's file; another weight file's index is neither."""
    return base in _TOKENIZER_FILES or (base.endswith(".json") and ".index." not in base)


def _parent(path: str) -> str:
    return str(PurePosixPath(path).parent)


def _weights(offered: Iterable[str]) -> str:
    names = [path for path in offered if path.endswith(".safetensors")]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more if names else "no safetensors files at all"
