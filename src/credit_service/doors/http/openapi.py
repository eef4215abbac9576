"""The OpenAPI document: FastAPI makes it of the declarations, and this module adds scopes, problems and examples.

No example copies a shape: the example of an answer is made of the examples of its fields, the example of a problem by
the code that makes problems. The examples of requests stand beside their endpoints.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from fastapi import Body

from credit_service.doors.http.problems import CODES, MEDIA_TYPE, Problem, of_faults, of_refusal
from credit_service.ledger.refusals import Refusal, Refused
from credit_service.messages import patterns
from credit_service.messages.faults import Fault

_SCHEMAS = "#/components/schemas/"
_PROBLEM = {"$ref": f"{_SCHEMAS}ProblemShape"}
_KEY = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "cs_…",
    "description": "An API key. Its scope is status, read, write or admin; each includes those before it.",
}

_FORMATS = {patterns.UUID: "uuid", patterns.TIME: "date-time"}
"""The formats of patterns. Generators of clients make types of them; a date-time also excludes 31 February."""

QUEUED = ("overloaded", "deadline_exceeded", "outcome_unknown")
"""Failures of a posting that its caller did not cause. The caller repeats it with the same key."""

_SCOPED = ("unauthenticated", "scope_missing", "validation_failed", "storage_unavailable")
_WITH_BODY = ("validation_failed", "body_too_large", "unsupported_media_type", "request_timeout")
_ANYWHERE = ("bad_request", "method_not_allowed", "headers_too_large", "internal")

_REQUEST_ID = "77f0a1b2c3d4e5f60718293a4b5c6d7e"
_SENTENCES = {refusal.code: refusal.sentence for refusal in Refusal}
_PROBLEMS = (
    of_faults([Fault("/amount", "out_of_range", "Input should be greater than or equal to 1.")]),
    of_refusal(Refused(Refusal.INSUFFICIENT_CREDITS, {"available": 75, "required": 100})),
)

_HEADERS: dict[str, Any] = {
    "X-Request-ID": {
        "description": "The id of this request, also in logs. Taken from the request, or made.",
        "required": True,
        "schema": {"type": "string", "examples": [_REQUEST_ID]},
    },
    "X-Correlation-ID": {
        "description": "The id of everything that belongs together. Taken from the request, or the request's own id.",
        "required": True,
        "schema": {"type": "string", "examples": [_REQUEST_ID]},
    },
    "Retry-After": {
        "description": "Seconds to wait.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1, "examples": [1]},
    },
    "WWW-Authenticate": {
        "description": "How to authenticate (RFC 9110).",
        "required": True,
        "schema": {"type": "string", "examples": ['Bearer realm="credit-service"']},
    },
    "Idempotency-Replayed": {
        "description": "`true` if this is the first result again, and nothing was posted now.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "ETag": {
        "description": "A value for If-None-Match. It gets 304 until the status changes.",
        "required": True,
        "schema": {"type": "string", "examples": ['"87e427c28550b42401"']},
    },
    "Cache-Control": {
        "description": "Whether a cache may keep the answer.",
        "required": True,
        "schema": {"type": "string", "examples": ["no-cache"]},
    },
}
_OF_STATUS = {"401": ["WWW-Authenticate"], "429": ["Retry-After"], "503": ["Retry-After"]}


def headers(*names: str) -> dict[str, Any]:
    """Headers of a response, by their names in the document."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an endpoint for these problems, one entry for each status. Common problems are added later."""
    responses: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        _may_answer(responses, str(CODES[code].status), code)
    return responses


def examples(**named: Any) -> Any:
    """The body of an endpoint (for `Annotated`), with an example for each name."""
    return Body(
        openapi_examples={
            name: {"summary": name.replace("_", " ").capitalize(), "value": value} for name, value in named.items()
        }
    )


def completed(
    make: Callable[[], dict[str, Any]], scopes: Mapping[str, str | None], raw: Collection[str]
) -> dict[str, Any]:
    """The document that `make` makes, with the scope, all problems and the examples of each operation.

    `scopes`: the scope of each operation, None for public ones. `raw`: operations that take a body of any media type.
    """
    document = make()
    components = document["components"]
    if "securitySchemes" in components:  # FastAPI returns the same document again
        return document
    components |= {"securitySchemes": {"apiKey": _KEY}, "headers": _HEADERS, "responses": {}}
    used: set[str] = set()
    for path, methods in document["paths"].items():
        for operation in methods.values():
            scope = scopes[operation["operationId"]]
            operation["security"] = [] if scope is None else [{"apiKey": [scope]}]
            for content in operation.get("requestBody", {}).get("content", {}).values():
                components["schemas"] |= content["schema"].pop("$defs", {})
            responses = operation["responses"]
            left_out = "unsupported_media_type" if operation["operationId"] in raw else None
            for code in [code for code in _shared(path, operation, scope) if code != left_out]:
                _may_answer(responses, str(CODES[code].status), code)
            for code in _ANYWHERE:
                _may_answer(responses, "default", code)
            for status, response in responses.items():
                names = ["X-Request-ID", "X-Correlation-ID", *_OF_STATUS.get(status, ())]
                response["headers"] = {**response.get("headers", {}), **headers(*names)}
                for content in response.get("content", {}).values():
                    codes = list(content.get("examples", ()))
                    used.update(codes)
                    if not codes and "example" not in content:
                        content["example"] = _example(content["schema"], components["schemas"])
                    elif status == "default" or len(codes) == 1:  # equal in all operations
                        name = "problem" if status == "default" else codes[0]
                        components["responses"][name] = response
                        responses[status] = {"$ref": f"#/components/responses/{name}"}
    _name_formats(document)
    components["examples"] = {
        code: {"summary": CODES[code].title, "value": _told(code)} for code in CODES if code in used
    }
    return document


def _name_formats(part: Any) -> None:
    if isinstance(part, dict):
        if part.get("pattern") in _FORMATS:
            part["format"] = _FORMATS[part["pattern"]]
        for inner in part.values():
            _name_formats(inner)
    elif isinstance(part, list):
        for inner in part:
            _name_formats(inner)


def _shared(path: str, operation: Mapping[str, Any], scope: str | None) -> list[str]:
    """The problems that an operation shares with others: those of keys, bodies, parameters and rate limits."""
    codes = list(_SCOPED if scope is not None else ())
    if "parameters" in operation:
        codes.append("validation_failed")
    if "requestBody" in operation:
        codes += _WITH_BODY
    if path != "/livez":
        codes.append("rate_limited")
    return codes


def _may_answer(responses: dict[Any, dict[str, Any]], status: str, code: str) -> None:
    response = responses.setdefault(status, {})
    content = response.setdefault("content", {}).setdefault(MEDIA_TYPE.decode(), {"schema": _PROBLEM, "examples": {}})
    content["examples"][code] = {"$ref": f"#/components/examples/{code}"}
    titles = ". ".join(CODES[code].title for code in content["examples"])
    response["description"] = "Any other problem; its code says which." if status == "default" else f"{titles}."


def _told(code: str) -> dict[str, Any]:
    """An example of the problem with this code."""
    found = next((problem for problem in _PROBLEMS if problem.code == code), None)
    return (found or Problem(code, _SENTENCES.get(code, f"{CODES[code].title}."))).shape(_REQUEST_ID)


def _example(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Any:
    """An example of a schema, made of the examples of its parts. It leaves out optional fields that are null.

    Raises LookupError for a text without an example.
    """
    match schema:
        case {"examples": [first, *_]}:
            return first
        case {"const": only}:
            return only
        case {"enum": [first, *_]}:
            return first
        case {"$ref": reference}:
            return _example(schemas[reference.removeprefix(_SCHEMAS)], schemas)
        case {"anyOf": [first, *_]}:
            return _example(first, schemas)
        case {"type": "array", "items": items}:
            return [_example(items, schemas)]
        case {"type": "object", "properties": properties}:
            made = {name: _example(part, schemas) for name, part in properties.items()}
            required = schema.get("required", ())
            return {name: part for name, part in made.items() if name in required or part is not None}
        case {"type": "integer"}:
            return 0
        case {"type": "boolean"}:
            return False
    raise LookupError(f"this schema needs an example: {schema}")
