"""Which files may lie in a checkpoint folder, and where links may lead."""

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from sd35.checkpoints.folder import open_folder
from sd35.checkpoints.tree import tree_errors, tree_findings, walk
from sd35.errors import CheckpointError


def a_fifo(path: Path) -> None:
    """Opening it would wait for ever."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    """A socket of this machine."""
    path.unlink(missing_ok=True)
    here = os.getcwd()
    os.chdir(path.parent)  # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)
    os.chdir(here)


def linked(target: str) -> Callable[[Path], None]:
    """A link in place of the file."""

    def put(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return put


@pytest.mark.parametrize("name", ["vae/config.json", "transformer/extra", "model_index.json"])
@pytest.mark.parametrize(
    ("put", "words"),
    [
        (a_fifo, "a FIFO"),
        (a_socket, "a socket"),
        (linked("/dev/zero"), "leaves"),
        (linked("/etc/hostname"), "leaves"),
        (linked("../../../../../etc/hostname"), "leaves|nothing"),
        (linked("gone"), "nothing"),
        (linked("."), "link to a folder"),
        (linked("../.."), "leaves|link to a folder"),
        (lambda path: path.touch() or path.chmod(0o4644), "set-user-id"),
    ],
)
def test_kinds_of_file(demo_copy: Path, name: str, put: Callable[[Path], None], words: str) -> None:
    """B19: FIFOs, sockets, devices, links out, links to nothing and to folders, set-user-id files."""
    put(demo_copy / name)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_folder(demo_copy)
    assert name in str(caught.value)


def test_circular_links(demo_copy: Path) -> None:
    """B19: links that lead to one another end in a sentence."""
    (demo_copy / "a").symlink_to("b")
    (demo_copy / "b").symlink_to("a")
    with pytest.raises(CheckpointError, match=r"nowhere|circle|nothing"):
        open_folder(demo_copy)


def test_junctions_are_links(demo_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows' links to folders, which no is_symlink knows, are not entered."""
    look = Path.lstat

    def as_on_windows(path: Path) -> object:
        status, tag = look(path), 0xA0000003 if path.name == "tokenizer" else 0
        return SimpleNamespace(st_mode=status.st_mode, st_reparse_tag=tag)

    monkeypatch.setattr(Path, "lstat", as_on_windows)
    assert [error.finding.file for error in tree_errors(demo_copy)] == [str(demo_copy / "tokenizer")]
    assert not [path for path in walk(demo_copy) if path.parent.name == "tokenizer"]


def test_links_inside_and_hard_links_are_files(demo_copy: Path) -> None:
    """A link that stays in the folder and a second name of a file change nothing."""
    config = demo_copy / "vae" / "config.json"
    config.rename(demo_copy / "vae" / "kept.json")
    config.symlink_to("kept.json")
    os.link(demo_copy / "model_index.json", demo_copy / "second.json")
    assert "vae" in open_folder(demo_copy).parts


def test_a_hub_cache_is_a_checkpoint(demo: Path, tmp_path: Path) -> None:
    """snapshots/<revision>/x -> ../../blobs/<hash> is how the hub keeps files; a link elsewhere is not."""
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "blobs").mkdir(parents=True)
    shutil.copytree(demo, snapshot)
    for number, path in enumerate(path for path in sorted(snapshot.rglob("*")) if path.is_file()):
        blob = repository / "blobs" / f"{number:064x}"
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, path.parent))
    assert "vae" in open_folder(snapshot).parts
    config = snapshot / "vae" / "config.json"
    shutil.copy(config, repository / "elsewhere")
    config.unlink()
    config.symlink_to("../../../elsewhere")
    with pytest.raises(CheckpointError, match="leaves"):
        open_folder(snapshot)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pipeline.py", b""),
        ("transformer/modeling.py", b"import os\n"),
        ("deep/er/still.PYC", b""),
        ("vae/x.so", b"\x7fELF"),
        ("vae/pytorch_model.bin", b"x"),
        ("text_encoder/notes.txt", b"cos\nsystem\n(S'ls'\ntR."),
        ("tokenizer/vocab.json", b"PK\x03\x04rest"),
        ("README.md", b"\x80\x04\x95"),
    ],
)
def test_code_anywhere_ends_it(demo_copy: Path, name: str, content: bytes) -> None:
    """B02, B20: Python files, libraries and pickles, by name or by contents, wherever they lie."""
    (demo_copy / name).parent.mkdir(parents=True, exist_ok=True)
    (demo_copy / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        open_folder(demo_copy)
    assert [finding.file for finding in tree_findings(demo_copy)] == [name]


def test_clones_and_caches_are_not_looked_into(demo_copy: Path) -> None:
    """`.git` and `.cache` belong to tools and are no part of the checkpoint."""
    for place in (".git/hooks/x.py", ".cache/huggingface/x.py"):
        (demo_copy / place).parent.mkdir(parents=True)
        (demo_copy / place).touch()
    assert not tree_findings(demo_copy)


def test_names_are_printed_plainly(demo_copy: Path) -> None:
    """B10: a file's name with escape codes does not reach the terminal."""
    (demo_copy / "x\x1b[2J.py").touch()
    with pytest.raises(CheckpointError) as caught:
        open_folder(demo_copy)
    assert str(caught.value).isprintable()
