"""Types of fields: what they may hold, as the OpenAPI document tells it, apart from who refuses the rest.

`described` writes bounds into the document alone: the request's own checks refuse what is outside, in better
words than a validator's. Foreign programs send numbers as texts now and then; the types here read both, and
nothing else: true is no number.
"""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from sd35.request import MAX_SEED, MAX_STEPS

_NUMBER = re.compile(r"-?[0-9]{1,19}(\.[0-9]{1,18})?")
BASE64 = r"^(data:[a-z/]*;base64,)?([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
PICTURE: dict[str, Any] = {
    "format": "picture",
    "description": "A PNG, JPEG or WEBP file in base64, bare or as a data: URL.",
}


def described(**schema: Any) -> Any:
    """Schema words for the document."""
    return Field(json_schema_extra=schema)


def _number(value: object) -> object:
    if isinstance(value, bool) or (isinstance(value, str) and not _NUMBER.fullmatch(value)):
        raise PydanticCustomError("number", "Input should be a valid number")
    return value


def _loose(kind: str, texts: str, **bounds: float) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": kind, **bounds}, {"type": "string", "pattern": texts}]})


def _exact(value: object) -> object:
    """Whole numbers only; JSON does not tell 4.0 from 4."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


Exact = Annotated[int, Field(strict=True), BeforeValidator(_exact)]
_read = BeforeValidator(_number)
# Pictures of one job: the operator's bound is put in by `contract.py`.
Count = Annotated[int, _read, _loose("integer", r"^[1-9]$", minimum=1)]
Steps = Annotated[int, _read, _loose("integer", r"^([1-9][0-9]{0,2}|1000)$", minimum=1, maximum=MAX_STEPS)]
Seed = Annotated[int, _read, _loose("integer", r"^[0-9]{1,18}$", minimum=0, maximum=MAX_SEED)]
SeedOrAny = Annotated[int, _read, _loose("integer", r"^-?[0-9]{1,18}$", maximum=MAX_SEED)]
Pixels = Annotated[int, _read, _loose("integer", r"^[0-9]{1,9}$", minimum=0)]
Guidance = Annotated[float, _read, _loose("number", r"^[0-9]{1,2}(\.[0-9]{1,9})?$", minimum=0, maximum=100)]
Strength = Annotated[float, _read, _loose("number", r"^0\.[0-9]{0,9}[1-9]$", exclusiveMinimum=0, maximum=1)]
Percent = Annotated[int, _read, _loose("integer", r"^([0-9]{1,2}|100)$", minimum=0, maximum=100)]
Factor = Annotated[int, Field(ge=0), _read, _loose("integer", r"^[01]$", minimum=0)]  # of a bounded product
Few = Annotated[int, Field(ge=0), _read, _loose("integer", r"^[0-9]{1,9}$", minimum=0)]


def _flag(value: object) -> object:
    if value in ("true", "false") or isinstance(value, bool) or value is None:
        return value
    raise PydanticCustomError("flag", "Input should be true or false")


Flag = Annotated[bool, BeforeValidator(_flag)]  # forms have it as text
