"""Every setting by every way, and what is no setting."""

import argparse
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from sd35.cli import serve
from sd35.cli.main import main
from sd35.errors import MissingError, RequestError
from sd35.serving.settings import ServerSettings
from sd35.serving.sources import resolve, shown

NAMES = [setting.name for setting in fields(ServerSettings)]
DEFAULTS = {setting.name: setting.default for setting in fields(ServerSettings)}
# Where any other value than the default will not do.
CHOSEN = {
    "engine": "null", "models": "large", "port": 9000, "log_format": "json", "vram": "20GiB", "ram": "8GiB",
    "pinned": "demo",
}  # fmt: skip


def another(name: str) -> Any:
    """A legal value that is not the default."""
    default = DEFAULTS[name]
    if name in CHOSEN:
        return CHOSEN[name]
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 1
    if isinstance(default, float):
        return default / 2
    return "30d" if name.startswith("keep_") else "elsewhere"


def parsed(*words: str) -> dict[str, Any]:
    """The flags of `sd35 serve`, as they are read."""
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    return vars(parser.parse_args(words))


def as_flag(name: str, value: Any) -> str:
    """A setting on the command line."""
    flag = name.replace("_", "-")
    return f"--{flag if value else 'no-' + flag}" if isinstance(value, bool) else f"--{flag}={value}"


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_a_flag_a_variable_and_a_line(name: str, tmp_path: Path) -> None:
    """Each way gives the same value in the field's own type, says where it is from, and changes no other."""
    value, variable = another(name), f"SD35_SERVE_{name.upper()}"
    file = tmp_path / "sd35.toml"
    file.write_text(f"{name} = {json.dumps(value)}\n")
    ways = {
        as_flag(name, value).partition("=")[0].replace("--no-", "--"): (parsed(as_flag(name, value)), {}),
        variable: (parsed(), {variable: str(value)}),
        str(file): (parsed("--config", str(file)), {}),
    }
    for source, (flags, environment) in ways.items():
        found = resolve(flags, environment)
        got = getattr(found.settings, name)
        assert (got, type(got)) == (value, type(DEFAULTS[name]))
        assert found.sources == {**dict.fromkeys(NAMES, "default"), name: source}


def test_flag_before_variable_before_file(tmp_path: Path) -> None:
    """Each fills what the one before left open; the file may be named by a variable."""
    file = tmp_path / "sd35.toml"
    file.write_text('port = 1\nmax_queued = 2\nmax_images = 3\ndrain_s = 4\nhosts = "a"\n')
    environment = {"SD35_SERVE_PORT": "10", "SD35_SERVE_MAX_QUEUED": "20", "SD35_SERVE_CONFIG": str(file)}
    settings = resolve({"port": 100}, environment).settings
    assert (settings.port, settings.max_queued, settings.max_images, settings.drain_s) == (100, 20, 3, 4.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_queud = 5", "did you mean max_queued"),
        ("[serve]\nport = 1", "serve in .* is no setting"),
        ("port = '8000'", "port in .* give a whole number"),
        ("port = true", "port in .* give a whole number"),
        ("prompt_in_pictures = 1", "give true or false"),
        ("drain_s = 'long'", "give a number"),
        ("port = ", "is no TOML"),
        ("max_images = 0", "max_images is 0"),
    ],
)
def test_a_file_with_nonsense_is_refused(tmp_path: Path, text: str, words: str) -> None:
    """One sentence that names the line's setting and what it should be."""
    file = tmp_path / "sd35.toml"
    file.write_text(text)
    with pytest.raises(RequestError, match=words):
        resolve({"config": str(file)}, {})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """No defaults in place of a file that someone has named."""
    with pytest.raises(MissingError, match=r"no\.toml can't be read"):
        resolve({"config": str(tmp_path / "no.toml")}, {})


def test_a_misspelt_variable_is_refused() -> None:
    """SD35_SERVE_ and something else is a mistake of somebody's."""
    with pytest.raises(RequestError, match=r"SD35_SERVE_MAX_QUEUD .* did you mean max_queued"):
        resolve({}, {"SD35_SERVE_MAX_QUEUD": "5"})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (
            "database",
            "postgresql+psycopg://sd35:word@db:5432/jobs",
            "postgresql+psycopg://sd35:***@db:5432/jobs",
        ),
        ("database", "postgresql://db/jobs?password=word", "postgresql://db/jobs?***"),
        ("alert_webhook", "https://chat.example/hooks/word", "https://chat.example/***"),
        ("s3_endpoint", "https://oss.example", "https://oss.example"),
        ("bucket", "s3://pictures/here", "s3://pictures/here"),
        ("host", "127.0.0.1", "127.0.0.1"),
        ("port", 8000, 8000),
    ],
)
def test_secrets_are_not_shown(name: str, value: Any, expected: Any) -> None:
    """Passwords and a webhook's path stay hidden, and the rest is legible."""
    assert shown(name, value) == expected


def test_what_is_shown_can_be_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The lines of `config show` are a file that gives the same settings again."""
    assert main(["config", "show", "--port=9000", "--drain-s=3", "--prompt-in-pictures", '--hosts=a"b']) == 0
    text = capsys.readouterr().out
    assert "# --port" in text
    assert "max_queued" not in text
    file = tmp_path / "sd35.toml"
    file.write_text(text)
    settings = resolve({"config": str(file)}, {}).settings
    expected = ServerSettings(port=9000, drain_s=3.0, prompt_in_pictures=True, hosts='a"b')
    assert settings == expected


def test_resolved_has_all(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting with its source, as JSON too; the data folder by its name."""
    monkeypatch.setenv("SD35_SERVE_DATABASE", "postgresql://me:word@db/jobs")
    assert main(["config", "show", "--resolved", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert list(rows) == NAMES
    assert rows["port"] == {"value": 8000, "from": "default"}
    assert rows["database"] == {"value": "postgresql://me:***@db/jobs", "from": "SD35_SERVE_DATABASE"}
    assert rows["data_dir"]["value"].endswith("serve")


def test_a_model_that_is_not_here_is_told_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's start names each served checkpoint that jobs would not find, and the null engine none."""
    monkeypatch.setenv("SD35_HOME", str(tmp_path))
    served = ServerSettings(models=f"demo,large,large-turbo={tmp_path}")
    (sentence,) = serve.missing_checkpoints(served)
    assert "'large' is not on this machine" in sentence
    assert not list(serve.missing_checkpoints(replace(served, engine="null")))
