"""The tree of errors."""

import pytest

from sd35.cli.main import exit_code
from sd35.errors import (
    CheckpointError,
    DeviceError,
    LibraryError,
    MissingError,
    NetworkError,
    OutputError,
    PromptError,
    RequestError,
    Sd35Error,
    SourceError,
)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (RequestError, 2),
        (CheckpointError, 3),
        (PromptError, 3),
        (SourceError, 3),
        (MissingError, 4),
        (OutputError, 4),
        (NetworkError, 4),
        (LibraryError, 4),
        (DeviceError, 4),
    ],
)
def test_exit_codes(kind: type[Sd35Error], code: int) -> None:
    """Every leaf of the tree has the exit code that the documentation gives."""
    assert exit_code(kind("no")) == code


def test_codes_are_distinct() -> None:
    """Programs can tell all errors apart by their `code`."""
    kinds = [Sd35Error]
    for kind in kinds:
        kinds += kind.__subclasses__()
    codes = [kind.code for kind in kinds if kind.__module__ == "sd35.errors"]
    assert len(codes) > 8
    assert len(set(codes)) == len(codes)
