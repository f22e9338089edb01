"""A file that was killed on its way is gone on with, and comes out the same to the byte."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sd35.checkpoints import unfinished
from sd35.checkpoints.lazy import Lazy, Tensors, given
from sd35.checkpoints.unfinished import Unfinished, copy_whole, link_or_copy
from sd35.checkpoints.writer import write_safetensors

VALUES = {name: torch.randn(5, 7) for name in "abcdef"} | {"empty": torch.zeros(0), "z": torch.randn(3)}


@pytest.fixture(autouse=True)
def _every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps so small that each tensor is one."""
    monkeypatch.setattr(unfinished, "STEP", 1)


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """The file of an undisturbed run."""
    write_safetensors(tmp_path / "whole", {name: given(value) for name, value in VALUES.items()}, {})
    return (tmp_path / "whole").read_bytes()


def watched(asked: list[str], stop_at: str = "") -> Tensors:
    """The tensors, which note that they were asked for; one of them is the end of the run."""

    def reading(name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            if name == stop_at:
                raise KeyboardInterrupt
            asked.append(name)
            return VALUES[name]

        return read

    return {name: Lazy(given(value).spec, reading(name)) for name, value in VALUES.items()}


def stopped(path: Path, at: str) -> Unfinished:
    """What a run that ends at this tensor leaves."""
    with pytest.raises(KeyboardInterrupt):
        write_safetensors(path, watched([], at), {})
    return Unfinished(path, b"")


@pytest.mark.parametrize("at", list(VALUES))
def test_gone_on_with_behind_the_last_whole_tensor(tmp_path: Path, whole: bytes, at: str) -> None:
    """The same bytes, and no tensor that is there is computed again."""
    stopped(tmp_path / "x", at)
    assert not (tmp_path / "x").exists()
    asked: list[str] = []
    write_safetensors(tmp_path / "x", watched(asked), {})
    assert (tmp_path / "x").read_bytes() == whole
    assert "".join(asked).replace("empty", "") == "abcdefz"["abcdefz".find(at[0] if at != "empty" else "z") :]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole", "x"]


def test_bytes_that_were_never_noted_do_not_count(tmp_path: Path, whole: bytes) -> None:
    """A tail that the disk may have made up is cut off, and a half-written note is not read."""
    file = stopped(tmp_path / "x", "d")
    sure = file.body.stat().st_size
    with file.body.open("ab") as body:
        body.write(bytes(10_000))
    with file.note.open("a") as note:
        note.write(f"{sure + 10_000}")  # no line end
    write_safetensors(tmp_path / "x", watched([]), {})
    assert (tmp_path / "x").read_bytes() == whole


@pytest.mark.parametrize("damage", ["shorter", "other head", "no body"])
def test_remains_that_can_not_be_ours(tmp_path: Path, whole: bytes, damage: str) -> None:
    """Less than what was noted, or another header: the file starts anew."""
    file = stopped(tmp_path / "x", "d")
    content = file.body.read_bytes()
    file.body.write_bytes(content[:-1] if damage == "shorter" else b"\1" + content[1:])
    if damage == "no body":
        file.body.unlink()
    asked: list[str] = []
    write_safetensors(tmp_path / "x", watched(asked), {})
    assert (tmp_path / "x").read_bytes() == whole
    assert asked == list(VALUES)


def test_a_copy_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that stops half-way has not the name, and one that is there is not made again."""
    (tmp_path / "x").write_text("content")
    (tmp_path / "to").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(unfinished.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            copy_whole(tmp_path / "x", tmp_path / "to")
    assert not (tmp_path / "to" / "x").exists()
    copy_whole(tmp_path / "x", tmp_path / "to")
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["x"]
    (tmp_path / "x").write_text("changed")
    copy_whole(tmp_path / "x", tmp_path / "to")
    assert (tmp_path / "to" / "x").read_text() == "content"


@pytest.mark.parametrize("number", [None, errno.EXDEV, errno.ENOSPC])
def test_a_link_where_there_can_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    """The same file under two names; a copy on another file system, and an error for anything else."""

    def refuse(source: Path, place: Path) -> None:
        raise OSError(number, "refused")

    (tmp_path / "x").write_text("content")
    (tmp_path / "to").mkdir()
    if number is not None:
        monkeypatch.setattr(os, "link", refuse)
    if number == errno.ENOSPC:
        with pytest.raises(OSError, match="refused"):
            link_or_copy(tmp_path / "x", tmp_path / "to")
        return
    link_or_copy(tmp_path / "x", tmp_path / "to")
    assert (tmp_path / "to" / "x").read_text() == "content"
    assert (tmp_path / "to" / "x").samefile(tmp_path / "x") == (number is None)
