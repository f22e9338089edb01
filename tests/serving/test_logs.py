"""What the server says on stderr."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from sd35.serving.logs import about, configure
from sd35.serving.settings import LogFormat

from .conftest import ServerFactory

EVIL = 'a\nb\r{"x": 1}\x1b[31m\u202eend'


@pytest.fixture
def stderr() -> Iterator[io.StringIO]:
    """Where the root logger writes, and nobody else's handlers."""
    text, root = io.StringIO(), logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers[:] = [logging.StreamHandler(text)]
    root.setLevel(logging.INFO)
    yield text
    root.handlers[:] = before
    root.setLevel(level)


def test_json_is_one_object_a_line(stderr: io.StringIO) -> None:
    """Whatever a stranger has put into a message; the job's id is in it, and not afterwards."""
    configure("json")
    with about("job_1"):
        logging.getLogger("sd35.x").warning("prompt %s", EVIL)
    logging.getLogger("sd35.x").info("after")
    first, second = (json.loads(line) for line in stderr.getvalue().splitlines())
    assert (first["job_id"], first["level"], first["logger"]) == ("job_1", "warning", "sd35.x")
    assert first["event"].startswith("prompt a\\nb\\r")
    assert "job_id" not in second
    assert "\x1b" not in stderr.getvalue()


def test_plain_lines_can_not_be_forged(stderr: io.StringIO) -> None:
    """One line, no escape sequence, no mark that turns text around."""
    configure("plain")
    with about("job_1"):
        logging.getLogger("sd35.x").warning("prompt %s", EVIL)
    (line,) = stderr.getvalue().splitlines()
    assert "job_id=job_1" in line
    assert not {"\x1b", "\u202e", "\r"} & set(line)


def test_an_exception_is_one_object_too(stderr: io.StringIO) -> None:
    """With its traceback inside."""
    configure("json")
    try:
        raise ZeroDivisionError(EVIL)
    except ZeroDivisionError:
        logging.getLogger("sd35.x").exception("it broke")
    (line,) = stderr.getvalue().splitlines()
    assert "Traceback" in json.loads(line)["exception"]


def test_a_server_logs_jobs_as_json(start_server: ServerFactory, capfd: pytest.CaptureFixture[str]) -> None:
    """Each ended job is a line with its id and outcome; so has what is said of it on the way."""
    served = start_server(rough=True, log_format="json")
    good = served.end(served.post()["id"])["id"]
    bad = served.end(served.post(prompt="die")["id"])["id"]
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    ends = {line["job_id"]: line for line in lines if line["event"] == "job ended"}
    assert (ends[good]["outcome"], ends[good]["model"]) == ("succeeded", "demo")
    assert "queue" in ends[good]["seconds"]
    assert (ends[bad]["outcome"], ends[bad]["error"], ends[bad]["attempts"]) == ("failed", "worker_died", 2)
    lost = [line for line in lines if "worker lost over job" in line["event"]]
    assert [line["job_id"] for line in lost] == [bad, bad]


@pytest.mark.parametrize("form", ["plain", "json"])
def test_an_error_tells_no_prompt(stderr: io.StringIO, form: LogFormat) -> None:
    """What broke is told with its lines, and without the values that they worked on."""
    configure(form)

    def draw(prompt: str) -> None:
        raise ValueError("broken")

    try:
        draw("a " + "secret")
    except ValueError:
        logging.getLogger("sd35.x").exception("failed")
    assert "ValueError: broken" in stderr.getvalue()
    assert "a secret" not in stderr.getvalue()
