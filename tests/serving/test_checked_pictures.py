"""An output check stands between a finished picture and the storage."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sd35.errors import MissingError
from sd35.serving.attendant import Attendant
from sd35.serving.breaker import Commands
from sd35.serving.folder import FolderStorage
from sd35.serving.jobs import Job, Spec
from sd35.serving.live import LiveJob
from sd35.serving.messages import Drawing, Loaded, RawImage
from sd35.serving.neighbours import open_check, signed_urls
from sd35.serving.pictures import save
from sd35.serving.problems import Problem, ServiceError
from sd35.serving.seams import Verdict
from sd35.serving.settings import Model, ServerSettings

DEMO = Model.parse("demo")
SPEC = Spec(
    prompt="a fox", negative_prompt="", model="demo", width=16, height=16, num_inference_steps=1,
    guidance_scale=1.0, seed=1, n=2, previews=2,
)  # fmt: skip


class Strict:
    """Lets the first picture pass, and no other."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def judge(self, picture: bytes, prompt: str) -> Verdict:
        """Only the first."""
        self.seen.append(picture)
        return Verdict(len(self.seen) == 1)


def saved(folder: Path, check: Any) -> FolderStorage:
    """The storage after saving a job of two pictures."""
    storage = FolderStorage(folder / "pictures", signed_urls(folder))
    raw = RawImage(16, 16, bytes(16 * 16 * 3))
    drawing, loaded = Drawing((raw, raw), {}, None), Loaded(0.1, "identity", "bf16")
    save(storage, check, Job(spec=SPEC), DEMO, drawing, loaded, with_prompt=False)
    return storage


def test_one_held_back_keeps_all_of_its_job_back(tmp_path: Path) -> None:
    """The second picture is refused: the first, which passed, is not stored either."""
    check = Strict()
    with pytest.raises(ServiceError) as refused:
        saved(tmp_path, check)
    assert refused.value.problem is Problem.OUTPUT_BLOCKED
    assert [picture[:4] for picture in check.seen] == [b"\x89PNG"] * 2
    assert not list((tmp_path / "pictures").iterdir())


def test_without_a_check_all_are_stored(tmp_path: Path) -> None:
    """Both pictures, whole."""
    assert len(list(saved(tmp_path, None).files())) == 2


@pytest.mark.parametrize(("check", "previews"), [("", 2), ("mine", 0)])
def test_unchecked_previews_are_not_asked_for(check: str, previews: int) -> None:
    """A check that sees only finished pictures lets no unfinished one out."""
    settings, books = ServerSettings(output_check=check), SimpleNamespace(tell=None)
    attendant = Attendant(settings, Commands([]), books, "auto")  # type: ignore[arg-type]
    assert attendant._task(LiveJob(Job(spec=SPEC), DEMO)).previews == previews


def test_a_check_that_is_not_there_stops_the_start() -> None:
    """By its name; no check is nothing."""
    assert open_check(ServerSettings()) is None
    with pytest.raises(MissingError, match="no output check 'mine'"):
        open_check(ServerSettings(output_check="mine"))
