"""The OpenAPI document: what FastAPI makes of the routes, and what it cannot know about the shell around them."""

from collections.abc import Callable, Mapping
from typing import Any

from credit_service.doors.http.problems import MEDIA_TYPE

_PROBLEM = {"$ref": "#/components/schemas/ProblemShape"}
_KEY = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "cs_…",
    "description": "An API key. Its scope is read, write or admin; each includes those before it.",
}


def completed(make: Callable[[], dict[str, Any]], scopes: Mapping[str, str | None]) -> dict[str, Any]:
    """The document that `make` makes, with who may call each operation, and errors of their media type.

    `scopes`: the scope that each operation needs, None for those that anybody may call.
    """
    document = make()
    document["components"]["securitySchemes"] = {"apiKey": _KEY}
    for methods in document["paths"].values():
        for operation in methods.values():
            scope = scopes[operation["operationId"]]
            operation["security"] = [] if scope is None else [{"apiKey": [scope]}]
            responses = operation["responses"]
            responses["default"] = {"description": "Any other problem; its code says which."}
            for status, response in responses.items():
                if status >= "400":
                    response["content"] = {MEDIA_TYPE.decode(): {"schema": _PROBLEM}}
    return document
