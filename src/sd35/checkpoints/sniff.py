"""What a file really is, by its contents: the name and the extension are never believed.

Half of all "broken checkpoints" are something else under the right name: the pointer that Git LFS leaves
where nothing was pulled, the page that a server sent in place of the file, a pickle that was renamed, a
download that stopped. Whoever is told so in words, with the command that mends it, is helped.

A pickle is a program; it is recognised by walking its opcodes (which runs nothing), so that its age, its
extension or a list of known-bad imports play no part.
"""

import json
import pickletools
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sd35.checkpoints.files import open_regular
from sd35.checkpoints.findings import printable

_LOOK = 64 << 10
_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\n(?:[a-z0-9.-]+ [^\n]*\n)*?"
    rb"oid sha256:([0-9a-f]{64})\nsize (\d{1,19})\n"
)
_POINTER_BYTES = 1024  # the specification keeps pointers below this
_ARCHIVES = {
    b"PK\x03\x04": "a zip archive",
    b"PK\x05\x06": "an empty zip archive",
    b"PK\x07\x08": "a zip archive in parts",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x1f\x8b": "a gzip file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ\x00": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"Rar!": "a rar archive",
    b"\x7fELF": "a program",
    b"MZ": "a Windows program",
    b"#!": "a script",
    b"\x93NUMPY": "a NumPy file",
}
_OTHERS = {
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"%PDF": "a PDF document",
}
_NEVER_READ = "such files are never read, so get the checkpoint as safetensors"


@dataclass(frozen=True)
class Sniffed:
    """What a file is, and what to do: "a Git LFS pointer ...", "run git lfs pull"; may it hold code?"""

    words: str
    remedy: str
    is_code: bool = False


@dataclass(frozen=True)
class Pointer:
    """What a Git LFS pointer stands for."""

    sha256: str
    size: int


def sniff(path: Path) -> Sniffed | None:
    """What a file is that should be safetensors, JSON or text; None where nothing else is recognised."""
    with open_regular(path) as file:
        data = file.read(_LOOK)
    return sniff_bytes(data, path)


def sniff_bytes(data: bytes, path: Path) -> Sniffed | None:
    """`sniff`, given the first 64 KiB."""
    if not data:
        return Sniffed("is an empty file", "fetch it again")
    if looks_like_safetensors(data):
        return None
    if not any(data):
        return Sniffed("holds nothing but zeros: its download never came", "fetch it again")
    if pointer := read_pointer(data):
        return Sniffed(
            f"is a Git LFS pointer to {pointer.size} bytes (SHA-256 {pointer.sha256}), not the file",
            f"run `git lfs pull --include {path.name}` in the clone",
        )
    return _archive(data) or _other(data) or _pickle(data) or _answer(data)


def looks_like_safetensors(data: bytes) -> bool:
    """Whether the start is a plausible length (below 2^24) and the opening brace of a header."""
    return len(data) > 8 and data[3:8] == b"\0\0\0\0\0" and data[8:9] == b"{"


def read_pointer(data: bytes) -> Pointer | None:
    """The Git LFS pointer that these bytes are, None for anything else."""
    found = _POINTER.fullmatch(data) if len(data) < _POINTER_BYTES else None
    return Pointer(found[1].decode(), int(found[2])) if found else None


def zero_tail(path: Path, most: int | None = None) -> int:
    """How many zero bytes the file ends in; looking stops after `most`."""
    block = 1 << 20
    with open_regular(path) as file:
        size = end = file.seek(0, 2)
        while end > 0 and (most is None or size - end < most):
            begin = max(0, end - block)
            file.seek(begin)
            kept = len(file.read(end - begin).rstrip(b"\0"))
            if kept:
                return size - begin - kept
            end = begin
    return size - end


def _archive(data: bytes) -> Sniffed | None:
    for magic, words in _ARCHIVES.items():
        if data.startswith(magic):
            torch_zip = words == "a zip archive" and b"data.pkl" in data[:4096]
            return Sniffed(f"is {words}{', a pickle of PyTorch' * torch_zip}", _NEVER_READ, is_code=True)
    if data[257:262] == b"ustar":
        return Sniffed("is a tar archive", _NEVER_READ, is_code=True)
    return None


def _other(data: bytes) -> Sniffed | None:
    words = next((words for magic, words in _OTHERS.items() if data.startswith(magic)), None)
    return Sniffed(f"is {words}", "get the checkpoint as safetensors") if words else None


def _pickle(data: bytes) -> Sniffed | None:
    modern = data[:1] == b"\x80" and data[1:2] in (b"\2", b"\3", b"\4", b"\5")
    if modern or _runs_as_pickle(data):
        return Sniffed("is a pickle, which can run code", _NEVER_READ, is_code=True)
    return None


def _runs_as_pickle(data: bytes) -> bool:
    """Whether the bytes are a whole pickle program (of the old, textual protocols, too)."""
    try:
        opcodes = [opcode.name for opcode, _, _ in islice(pickletools.genops(data), 100_000)]
    except (ValueError, IndexError, AttributeError, UnicodeError, OverflowError):
        return False
    return len(opcodes) > 2 and opcodes[-1] == "STOP"


def _answer(data: bytes) -> Sniffed | None:
    """What a server says in place of a file."""
    start = data.removeprefix(b"\xef\xbb\xbf").lstrip()[:4096]
    begin = start[:64].lower()
    remedy = "fetch it again, with a token where the repository is gated"
    if begin.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        title = re.search(rb"<title[^>]*>([^<]{0,80})", start, re.IGNORECASE)
        named = f" ({printable(title[1].decode('utf-8', 'replace').strip())})" if title else ""
        return Sniffed(f"is an HTML page{named} that a server sent in place of the file", remedy)
    if begin.startswith((b"<?xml", b"<error")):
        code = re.search(rb"<Code>([^<]{1,60})</Code>", start)
        named = f" ({printable(code[1].decode('utf-8', 'replace'))})" if code else ""
        return Sniffed(f"is an XML error{named} that a server sent in place of the file", remedy)
    return _json_error(data, remedy)


def _json_error(data: bytes, remedy: str) -> Sniffed | None:
    if data[:1] != b"{" or len(data) == _LOOK:
        return None
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    said = content.get("error") or content.get("message") or content.get("detail")
    if not isinstance(said, str):
        return None
    return Sniffed(f"is a server's error message ({printable(said)}) in place of the file", remedy)
