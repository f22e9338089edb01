"""Where settings come from: a flag, else SD35_SERVE_NAME, else a TOML file, else the default.

This file is where the server reads its environment, and nowhere else. Whatever names no setting is refused,
in the file and in the environment alike: a misspelt limit would be no limit.
"""

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from sd35.errors import MissingError, RequestError
from sd35.serving.settings import ServerSettings

ENVIRONMENT = "SD35_SERVE_"
CONFIG = "config"  # the flag, and SD35_SERVE_CONFIG, that name the file
DEFAULT = "default"
HIDDEN = "***"
_WORDS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_FIELDS: dict[str, "Field[Any]"] = {setting.name: setting for setting in fields(ServerSettings)}


@dataclass(frozen=True)
class Resolved:
    """Settings, and for each by name where its value is from: `default`, or the flag, variable or file."""

    settings: ServerSettings
    sources: dict[str, str]


def from_sources(flags: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> ServerSettings:
    """The settings alone; RequestError for nonsense, MissingError where the file can't be read."""
    return resolve(flags, environment).settings


def resolve(flags: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Resolved:
    """Settings from `flags` (None: not given), `environment` (os.environ), the file and the defaults."""
    environment = os.environ if environment is None else environment
    variables = {
        name[len(ENVIRONMENT) :].lower(): name for name in environment if name.startswith(ENVIRONMENT)
    }
    path = flags.get(CONFIG) or environment.get(ENVIRONMENT + CONFIG.upper())
    content = {} if path is None else _read_file(path)
    for name in variables:
        _refuse_unknown(name, variables[name], known=[*_FIELDS, CONFIG])
    given: dict[str, Any] = {}
    sources = dict.fromkeys(_FIELDS, DEFAULT)
    for name, setting in _FIELDS.items():
        if flags.get(name) is not None:
            given[name], sources[name] = flags[name], flag_of(name)
        elif name in variables:
            given[name] = _from_words(setting, variables[name], environment[variables[name]])
            sources[name] = variables[name]
        elif name in content:
            given[name], sources[name] = _from_toml(setting, content[name], str(path)), str(path)
    return Resolved(ServerSettings(**given), sources)


def flag_of(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


def shown(name: str, value: Any) -> Any:
    """The value without secrets: passwords in addresses, and the whole path of a webhook's."""
    if not isinstance(value, str) or "://" not in value:
        return value
    parts = urlsplit(value)
    user, at, host = parts.netloc.rpartition("@")
    login = f"{user.partition(':')[0]}:{HIDDEN}" if ":" in user else user
    if name.endswith("webhook"):
        return f"{parts.scheme}://{login}{at}{host}/{HIDDEN}"
    return urlunsplit(parts._replace(netloc=login + at + host, query=HIDDEN if parts.query else ""))


def _read_file(path: str) -> dict[str, Any]:
    try:
        content = tomllib.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingError(f"{path} can't be read ({error.strerror}): correct --config.") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RequestError(f"{path} is no TOML ({error}): write lines such as `port = 8000`.") from error
    for name in content:
        _refuse_unknown(name, f"{name} in {path}", known=[*_FIELDS])
    return content


def _refuse_unknown(name: str, where: str, known: list[str]) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    remedy = f"did you mean {near[0]}?" if near else "`sd35 config show --resolved` lists them."
    raise RequestError(f"{where} is no setting of the server: {remedy}")


def _from_words(setting: "Field[Any]", variable: str, text: str) -> Any:
    assert setting.default is not MISSING
    kind = type(setting.default)
    if kind is bool:
        if text.lower() not in _WORDS:
            raise RequestError(f"{variable} is {text!r}: give true or false.")
        return _WORDS[text.lower()]
    try:
        return kind(text)
    except ValueError as error:
        raise RequestError(f"{variable} is {text!r}, and it must be a number.") from error


def _from_toml(setting: "Field[Any]", value: Any, path: str) -> Any:
    kind = type(setting.default)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        words = {bool: "true or false", int: "a whole number", float: "a number", str: 'a text in "quotes"'}
        raise RequestError(f"{setting.name} in {path} is {value!r}: give {words[kind]}.")
    return value
