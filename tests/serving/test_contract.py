"""The OpenAPI document, and schemathesis, which tries to catch the server at something else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sd35.serving.keys import KeyStore
from sd35.serving.problems import Problem

from .conftest import Served, ServerFactory

ROOT = Path(__file__).parents[2]
HOOKS = "tests.serving.data.contract_hooks"
EXAMPLES = 3  # a property; with the boundaries of all fields about 1,800 requests


def tried(served: Served, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """All routes but the one that ends the server, with all checks, the same each time."""
    program = [
        *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{served.url}/openapi.json"),
        *("--exclude-path", "/api/v1/drain", "--max-examples", str(EXAMPLES), "--generation-deterministic"),
        *("--continue-on-failure", "--no-color", *options),
    ]
    env = {
        **os.environ,
        "SCHEMATHESIS_HOOKS": HOOKS,
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    }
    return subprocess.run(program, cwd=folder, env=env, capture_output=True, text=True, timeout=240)


@pytest.mark.server
def test_schemathesis_finds_nothing(start_server: ServerFactory, tmp_path: Path) -> None:
    """Every answer is as the document says, what breaks it is refused, what keeps to it is accepted."""
    found = tried(start_server(max_queued=100_000), tmp_path)
    assert found.returncode == 0, found.stdout
    assert "Tested: 54" in found.stdout


@pytest.mark.server
def test_schemathesis_finds_nothing_behind_a_key(start_server: ServerFactory, tmp_path: Path) -> None:
    """With a key needed, nothing opens without it that says it needs one."""
    secret = KeyStore(tmp_path / "data").add("tests", ["generate", "read", "admin"])[1]
    served = start_server(max_queued=100_000)
    found = tried(served, tmp_path, "--header", f"Authorization: Bearer {secret}", "--phases", "coverage")
    assert found.returncode == 0, found.stdout
    assert "Tested: 54" in found.stdout


def test_every_refusal_is_described(served: Served) -> None:
    """Each problem of the table has its status at some route, in that face's shape."""
    found = served.client.get("/openapi.json").json()
    operations = [operation for item in found["paths"].values() for operation in item.values()]
    statuses = {status for operation in operations for status in operation["responses"]}
    assert {str(problem.status) for problem in Problem} - {"405"} <= statuses
    wrong = served.client.post("/v2beta/stable-image/generate/sd3", data={"prompt": "a fox", "seed": "x"})
    responses = found["paths"]["/v2beta/stable-image/generate/sd3"]["post"]["responses"]
    shape = responses[str(wrong.status_code)]["content"]["application/json"]["schema"]
    assert set(shape["required"]) == set(wrong.json())


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_no_page_asks_a_stranger_for_scripts(served: Served, path: str) -> None:
    """FastAPI's pages of the document would, so there are none."""
    assert served.client.get(path).status_code == 404


def test_bounds_are_those_of_this_server(start_server: ServerFactory) -> None:
    """Pictures of one job, and the longest side that its models draw."""
    found = start_server(max_images=3).client.get("/openapi.json").json()
    fields = found["components"]["schemas"]["JobBody"]["properties"]
    assert (fields["n"]["maximum"], fields["width"]["anyOf"][0]["maximum"]) == (3, 512)
    assert "HTTPValidationError" not in json.dumps(found)


def test_keys_are_described_where_they_are_needed(start_server: ServerFactory, tmp_path: Path) -> None:
    """Without keys nothing asks for one; with the first one all but the open routes do, by either way."""
    served = start_server()
    assert "securitySchemes" not in served.client.get("/openapi.json").json()["components"]
    KeyStore(tmp_path / "data").add("tests", ["generate"])
    found = served.client.get("/openapi.json").json()
    assert {one["scheme"] for one in found["components"]["securitySchemes"].values()} == {"bearer", "basic"}
    security = {path: item["get"]["security"] for path, item in found["paths"].items() if "get" in item}
    assert [path for path, needed in security.items() if not needed] == ["/livez", "/readyz", "/files/{name}"]


def test_refused_methods_name_those_that_work(served: Served) -> None:
    """405 tells all methods of the path, though several routes share it."""
    for path, allowed in (("/api/v1/jobs", "GET, HEAD, POST"), ("/api/v1/jobs/x", "DELETE, GET, HEAD, PUT")):
        answer = served.client.patch(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [("n", "2", 200), ("n", 2.0, 200), ("n", True, 400), ("n", "two", 400), ("seed", "1_0", 400)],
)
def test_numbers_may_come_as_texts(served: Served, field: str, value: object, status: int) -> None:
    """As programs send them; but true is no number, nor is a word."""
    body = {"prompt": "a fox", "size": "64x64", field: value}
    assert served.client.post("/v1/images/generations", json=body).status_code == status
