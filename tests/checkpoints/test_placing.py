"""Outputs appear whole or not at all, and what is left of a run is continued by the same job alone."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from sd35.checkpoints.locked_folder import HeldError, LockedFolder
from sd35.checkpoints.placing import Job, fresh_file, fresh_folder
from sd35.errors import CheckpointError, OutputError

JOB = Job({"source": "a", "recipe": {"dtype": "e4m3fn"}})
AGAIN = Job(JOB.facts, resume=True)


def stop_in_the_middle(destination: Path, job: Job = JOB, error: BaseException | None = None) -> None:
    """Write one file and die."""
    with pytest.raises(BaseException), fresh_folder(destination, 0, job) as place:  # noqa: B017, PT011, PT012
        (place / "first").write_text("first")
        raise error or KeyboardInterrupt


def found(destination: Path, job: Job) -> list[str]:
    """What a later run finds in its folder."""
    with fresh_folder(destination, 0, job) as place:
        return [path.name for path in place.iterdir()]


def test_it_appears_at_the_end(tmp_path: Path) -> None:
    """Nothing has the name before the block is over, and nothing else is left afterwards."""
    with fresh_folder(tmp_path / "out", 0, JOB) as place:
        (place / "x").write_text("x")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "x").read_text() == "x"
    with fresh_file(tmp_path / "file", 0, JOB) as path:
        path.write_text("y")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


def test_what_belongs_to_a_file_gets_there_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed between the two leaves a manifest without a file, never a file without one."""
    replace = Path.replace

    def one_only(path: Path, target: Path) -> None:
        if (tmp_path / "file.sd35.json").exists():
            raise KeyboardInterrupt
        replace(path, target)

    monkeypatch.setattr(Path, "replace", one_only)
    with pytest.raises(KeyboardInterrupt), fresh_file(tmp_path / "file", 0, JOB) as path:  # noqa: PT012
        path.write_text("y")
        path.with_name("file.sd35.json").write_text("{}")
    assert not (tmp_path / "file").exists()
    assert (tmp_path / "file.sd35.json").exists()


def test_remains_are_found_by_the_same_job(tmp_path: Path) -> None:
    """What was finished before an interruption is there for the run that resumes."""
    stop_in_the_middle(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert found(tmp_path / "out", AGAIN) == ["first"]
    assert (tmp_path / "out" / "first").exists()


@pytest.mark.parametrize(
    "job", [JOB, Job({**JOB.facts, "recipe": {"dtype": "e5m2"}}, resume=True), Job({}, resume=True)]
)
def test_remains_of_anything_else_are_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, job: Job
) -> None:
    """Without resume, or with another job, the work starts from nothing; who asked to resume is told."""
    stop_in_the_middle(tmp_path / "out")
    assert found(tmp_path / "out", job) == []
    assert ("something else" in caplog.text) == job.resume


def test_a_note_that_was_cut_off(tmp_path: Path) -> None:
    """A record that can't be compared is no record."""
    stop_in_the_middle(tmp_path / "out")
    note = tmp_path / ".out.partial" / "job.json"
    note.write_bytes(note.read_bytes()[:-3])
    assert found(tmp_path / "out", AGAIN) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_work_that_can_go_on_is_kept(tmp_path: Path, error: BaseException) -> None:
    """Interrupted, or out of disk: only the partial folder is there."""
    stop_in_the_middle(tmp_path / "out", error=error)
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]


def test_work_that_was_refused_is_not(tmp_path: Path) -> None:
    """A damaged source will be refused again: nothing is kept for that."""
    stop_in_the_middle(tmp_path / "out", error=CheckpointError("NaN"))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_in_a_sentence(tmp_path: Path) -> None:
    """The place, the reason, and how to go on."""
    sentence = pytest.raises(OutputError, match=r"out can't be written \(No space.*--resume")
    with sentence, fresh_file(tmp_path / "out", 0, JOB):
        raise OSError(28, "No space left on device")


def test_room_counts_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run needs room for the rest alone; too little leaves nothing behind."""
    stop_in_the_middle(tmp_path / "out")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(OutputError, match="are needed"), fresh_folder(tmp_path / "new", 11, JOB):
        pass
    assert not (tmp_path / ".new.partial").exists()
    with fresh_folder(tmp_path / "out", 15, AGAIN):  # five bytes are there
        pass


@pytest.mark.parametrize("fresh", [fresh_folder, fresh_file])
def test_two_runs_at_one_place(tmp_path: Path, fresh: Callable[..., object]) -> None:
    """The second hears of the first in one sentence, and the first finishes undisturbed."""
    with fresh_folder(tmp_path / "out", 0, JOB) as place:
        (place / "x").write_text("x")
        with pytest.raises(OutputError, match="another sd35"), fresh(tmp_path / "out", 0, AGAIN):  # type: ignore[attr-defined]
            pass
    assert (tmp_path / "out" / "x").read_text() == "x"


@pytest.mark.parametrize("is_there_anew", [False, True])
def test_a_lock_that_was_cleared_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there_anew: bool
) -> None:
    """Who opens the lock just before its holder is done has a lock of nothing, and stops."""
    flock, partial = fcntl.flock, tmp_path / ".out.partial"

    def late(lock: int, how: int) -> None:
        shutil.rmtree(partial)
        if is_there_anew:
            partial.mkdir()
            (partial / "lock").touch()
        flock(lock, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(OutputError, match="another sd35"), fresh_folder(tmp_path / "out", 0, JOB):
        pass


def test_what_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    """Someone else's file under the name stays, and so does our work."""
    refusal = pytest.raises(OutputError, match="exists already")
    with refusal, fresh_file(tmp_path / "out", 0, JOB) as path:
        path.write_text("ours")
        (tmp_path / "out").write_text("theirs")
    assert (tmp_path / "out").read_text() == "theirs"
    assert (tmp_path / ".out.partial" / "out").read_text() == "ours"


def test_a_folder_that_has_just_been_cleared_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between making the folder and locking it, whoever had it may take it away: try again, no full disk."""
    monkeypatch.setattr(FileLock, "acquire", lambda _: (_ for _ in ()).throw(FileNotFoundError()))
    with pytest.raises(HeldError):
        LockedFolder(tmp_path / "gone")
