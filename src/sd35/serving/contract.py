"""The OpenAPI document: what FastAPI reads off the routes, and what it can't know.

That is: the answers by which each face says no (one table, `problems.py`, in four shapes), the keys, the
bounds that come with the models, and how pictures travel in forms. What a field may hold is written beside
it (`described` in its annotation) and checked by the request's own sentences, so that a mistake is answered
in words rather than in a validator's. Programs made from this document, and those that try to break it, find
the server as it is described.
"""

from copy import deepcopy
from typing import Any

from fastapi import FastAPI

from sd35.serving.gateway import Gateway
from sd35.serving.pictures import PICTURE_TYPES
from sd35.serving.problems import Problem
from sd35.serving.settings import ServerSettings
from sd35.variants import PIXELS_PER_TOKEN

METHODS = ("get", "put", "post", "delete")
DRAWING = ("/api/v1/jobs", "/v1/images/", "/sdapi/v1/txt2img", "/sdapi/v1/img2img", "/v2beta/")
# A server that stops, a database that doesn't answer, a bug; and a caller who may not.
ANYWHERE = (400, 401, 403, 404, 500, 503)
WITH_A_BODY = (413,)
WHILE_DRAWING = (409, 429, 499, 504)

_TEXT = {"type": "string"}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


_CODES = {"type": "string", "enum": sorted(problem.code for problem in Problem)}
EVENT = {"type": "object", "properties": dict.fromkeys(("id", "event", "data"), _TEXT)}
NATIVE = _object(error=_object(code=_CODES, message=_TEXT))
ERRORS = {
    "/v1/": _object(error=_object(message=_TEXT, type=_TEXT, param={"type": ["string", "null"]}, code=_TEXT)),
    "/sdapi/": _object(error=_CODES, detail=_TEXT, body=_TEXT, errors=_TEXT),
    "/v2beta/": _object(id=_TEXT, name=_TEXT, errors={"type": "array", "items": _TEXT}),
}


def complete(app: FastAPI, gateway: Gateway) -> None:
    """Have the application describe itself so; the document is made at the first request for it."""
    plain = app.openapi
    bare: dict[str, Any] = {}

    def document() -> dict[str, Any]:
        if not bare:
            bare.update(_described(deepcopy(plain()), gateway.settings))
        return bare if gateway.keys.is_open else _locked(deepcopy(bare))

    app.openapi = document  # type: ignore[method-assign]


def _described(found: dict[str, Any], settings: ServerSettings) -> dict[str, Any]:
    for path, operations in found["paths"].items():
        for method in METHODS:
            if method in operations:
                _add_refusals(path, operations[method])
    schemas = found["components"]["schemas"]
    for schema in schemas.values():
        for name, field in schema.get("properties", {}).items():
            _bound(name, field, settings)
        if "batch_size" in schema.get("properties", {}):
            schema["anyOf"] = _products(settings.max_images)
    for operation in _operations(found):
        form = operation.get("requestBody", {}).get("content", {}).get("multipart/form-data")
        if form is not None:
            _describe_form(form, schemas[form["schema"]["$ref"].rpartition("/")[2]])
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return found


def _operations(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [item[method] for item in found["paths"].values() for method in METHODS if method in item]


def _add_refusals(path: str, operation: dict[str, Any]) -> None:
    """Each status of the table that this operation can answer with, in its face's shape."""
    statuses = [*ANYWHERE, *(WITH_A_BODY if "requestBody" in operation else ())]
    if path.startswith(DRAWING):
        statuses += WHILE_DRAWING
    shape = next((shape for prefix, shape in ERRORS.items() if path.startswith(prefix)), NATIVE)
    responses = operation["responses"]
    events = responses.get("200", {}).get("content", {}).get("text/event-stream")
    if events is not None:
        events["schema"] = EVENT
    if "HTTPValidationError" in str(responses.get("422")):  # we answer that with 400, in the face's shape
        del responses["422"]
    for status in statuses:
        said = sorted(problem.code for problem in Problem if problem.status == status)
        content = {"application/json": {"schema": shape}}
        responses.setdefault(str(status), {"description": ", ".join(said), "content": content})


def _bound(name: str, field: dict[str, Any], settings: ServerSettings) -> None:
    """What depends on the models and the operator, for fields of this name in any body."""
    longest = max(model.variant.max_size for model in settings.catalogue().values())
    counts = range(1, settings.max_images + 1)
    for kind in _kinds(field):
        if "multipleOf" in kind:  # elsewhere sides are brought to the nearest
            kind["maximum"] = longest
        if name == "n" and kind.get("type") == "integer":
            kind["maximum"] = settings.max_images
        if name == "n" and kind.get("type") == "string":
            kind["pattern"] = f"^({'|'.join(map(str, counts))})$"
        if name == "size" and kind.get("type") == "string":
            sides = "|".join(map(str, range(PIXELS_PER_TOKEN, longest + 1, PIXELS_PER_TOKEN)))
            kind["pattern"] = f"^(auto|({sides})x({sides}))$"


def _products(most: int) -> list[dict[str, Any]]:
    """AUTOMATIC1111 draws batch_size x n_iter pictures, of which the product is bounded."""
    return [
        {"properties": {"n_iter": {"maximum": times}, "batch_size": {"maximum": most // times}}}
        for times in range(1, most + 1)
    ]


def _kinds(field: dict[str, Any]) -> list[dict[str, Any]]:
    """A field's schema, and all that it may be one of."""
    return [field, *(kind for one in field.get("anyOf", ()) for kind in _kinds(one))]


def _describe_form(form: dict[str, Any], schema: dict[str, Any]) -> None:
    """A form has no null, an empty text is a field that is left out, and files say what they are."""
    for name, field in schema["properties"].items():
        kinds = [kind for kind in field.pop("anyOf", ()) if kind.get("type") != "null"]
        if len(kinds) == 1:
            field.update(kinds[0])
        elif kinds:
            field["anyOf"] = kinds
        if field.get("default", "") is None:
            del field["default"]
        if _describe_files(field):
            form.setdefault("encoding", {})[name] = {"contentType": ", ".join(PICTURE_TYPES)}
        elif name in schema.get("required", ()):
            field["minLength"] = 1
        else:
            own = {word: field.pop(word) for word in ("type", "enum", "pattern") if word in field}
            field["anyOf"] = [*field.pop("anyOf", [own]), {"const": ""}]


def _describe_files(field: dict[str, Any]) -> bool:
    """A file by the name that programs know it by, and a list of one as that one; whether it is any."""
    if "contentMediaType" not in {**field, **field.get("items", {})}:
        return False
    for word in ("contentMediaType", "items", "minItems", "maxItems", "default"):
        field.pop(word, None)
    field |= {"type": "string", "format": "binary"}
    return True


def _locked(found: dict[str, Any]) -> dict[str, Any]:
    """The same where keys are needed; what needs none says so by `security: []`."""
    found["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer"},
        "password": {"type": "http", "scheme": "basic", "description": "The key as the password."},
    }
    for path, item in found["paths"].items():
        for method in METHODS:
            if method in item:
                is_public = path in ("/livez", "/readyz") or path.startswith("/files/")
                item[method]["security"] = [] if is_public else [{"key": []}, {"password": []}]
    return found
