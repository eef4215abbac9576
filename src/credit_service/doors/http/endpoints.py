"""How an endpoint is declared, and how a request becomes its arguments.

An endpoint is an async function in a file of its own. It turns a request into a command or a question, and an outcome
into an answer. Its parameters say what it needs: `call` is the request, `body` is the JSON body, a name of `Parts` is
that part of the service. Any other name is a parameter of the path, the query or a header, declared as for FastAPI.

FastAPI describes the endpoints (OpenAPI) and calls none of them: it spent more on a read than all the rest
(docs/decisions/0035).
"""

import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import fields
from types import ModuleType
from typing import Any, NamedTuple, get_args
from urllib.parse import parse_qsl

from fastapi import FastAPI, params
from pydantic import BaseModel, TypeAdapter, ValidationError

from credit_service.doors.http.call import JSON, Call, Handler, Result
from credit_service.doors.http.openapi import problems as problem_responses
from credit_service.doors.http.parts import Parts
from credit_service.doors.http.problems import Problem, of_faults
from credit_service.messages import strict_json
from credit_service.messages.fast import decoder
from credit_service.messages.faults import Fault, of_validation, pointer

PREFIX = "/api/v1"
_PARTS = frozenset(field.name for field in fields(Parts))
_NOTHING: Mapping[str, str] = {}


class _Parameter(NamedTuple):
    """A parameter: its name in the function, and where its text is in the request.

    `key` is a name in the query or of a header, or the number of a segment of the path.
    """

    name: str
    where: str
    key: Any
    read: Callable[[Any], Any]
    is_required: bool


class Endpoint:
    """An endpoint, as `endpoint` declares it.

    `scope` is what a caller's key needs, None for public endpoints. `media_types` are those of the body; without any
    the function reads the body itself. `is_large`: the body may be as large as a batch.
    """

    def __init__(
        self,
        function: Callable[..., Awaitable[Result]],
        method: str,
        path: str,
        scope: str | None,
        media_types: Sequence[str],
        *,
        is_fast: bool,
        is_large: bool,
        described: Mapping[str, Any],
    ) -> None:
        self.name = function.__name__
        self.method, self.path, self.scope = method, path, scope
        self.media_types, self.is_large = media_types, is_large
        self._function = function
        self._described = described
        signature = inspect.signature(function)
        self._parts = [name for name in signature.parameters if name in _PARTS]
        self._takes_call = "call" in signature.parameters
        self._sent = [one for name, one in signature.parameters.items() if name != "call" and name not in _PARTS]
        self._defaults = {one.name: one.default for one in self._sent if one.default is not one.empty}
        self._parameters = [self._parameter(one) for one in self._sent if one.name != "body"]
        self._queries = frozenset(one.key for one in self._parameters if one.where == "query")
        self._body: TypeAdapter[Any] | None = None
        self._fast: Callable[[bytes], Any] | None = None
        if "body" in signature.parameters:
            model = signature.parameters["body"].annotation
            self._body = TypeAdapter(model)
            self._fast = decoder(get_args(model)[0]) if is_fast else None
        reads_itself = "requestBody" in (described.get("openapi_extra") or {})
        self._refuses_body = method in ("POST", "PUT", "PATCH") and not (self._body or reads_itself)

    def _parameter(self, parameter: inspect.Parameter) -> _Parameter:
        annotation, name = parameter.annotation, parameter.name
        declared = [one for one in get_args(annotation)[1:] if isinstance(one, params.Param)]
        alias = next((one.alias for one in declared if one.alias), name)
        segment = f"{{{name}}}"
        key: Any = alias
        if segment in self.path:
            where, key = "path", self.path.split("/").index(segment)
        elif any(isinstance(one, params.Header) for one in declared):
            where, key = "header", alias.lower().encode()
        else:
            where = "query"
        read = TypeAdapter(annotation).validator.validate_python
        return _Parameter(name, where, key, read, parameter.default is parameter.empty)

    @property
    def takes_body(self) -> bool:
        """Whether a JSON body is read into a model."""
        return self._body is not None

    def describe(self, app: FastAPI) -> None:
        """Add the endpoint to the OpenAPI document of an application."""

        async def described() -> None:
            raise AssertionError("FastAPI describes endpoints and calls none")

        described.__name__, described.__doc__ = self.name, self._function.__doc__
        signature = inspect.Signature([one.replace(kind=one.KEYWORD_ONLY) for one in self._sent])
        vars(described)["__signature__"] = signature
        app.add_api_route(self.path, described, methods=[self.method], operation_id=self.name, **self._described)

    def handler(self, parts: Parts) -> Handler:
        """The function that answers a call with these parts of the service."""
        given = self._defaults | {name: getattr(parts, name) for name in self._parts}
        function, arguments = self._function, self._arguments

        def handle(call: Call) -> Awaitable[Result]:
            return function(**arguments(call, given.copy()))

        return handle

    def _arguments(self, call: Call, arguments: dict[str, Any]) -> dict[str, Any]:
        """Fill in the arguments of a call. Raises Problem with all faults."""
        if self._takes_call:
            arguments["call"] = call
        # Public endpoints ignore parameters that they do not know: proxies and browsers add some.
        query = self._query(call.query) if call.query and self.scope is not None else _NOTHING
        segments = call.path.split("/")
        faults: list[Fault] = []
        for name, where, key, read, is_required in self._parameters:
            sent: Any = segments[key] if where == "path" else query.get(key) if where == "query" else _header(call, key)
            if sent is not None:
                try:
                    arguments[name] = read(sent)
                except ValidationError as error:
                    faults += of_validation(error, [where, name if where == "path" else key])
            elif is_required:
                faults.append(Fault(pointer([where, key]), "required", "This field is required."))
        if self._body is not None:
            arguments["body"] = self._read_body(self._body, call, faults)
        elif self._refuses_body and call.body and read_json(call, self.media_types) != {}:
            raise of_faults([Fault("", "not_allowed", "This route takes no request body.")])
        if faults:
            raise of_faults(faults)
        return arguments

    def _query(self, query: bytes) -> Mapping[str, str]:
        """The parameters of a query. A filter with a typo must not list everything, so unknown names are refused."""
        given = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
        found = dict(given)
        if len(found) == len(given) and found.keys() <= self._queries:
            return found
        raise of_faults(
            [
                Fault(pointer(["query", name]), "unknown_field", "This parameter is not known.")
                if name not in self._queries
                else Fault(pointer(["query", name]), "duplicate_key", "This parameter came twice.")
                for name, count in Counter(name for name, _ in given).items()
                if name not in self._queries or count > 1
            ]
        )

    def _read_body(self, model: TypeAdapter[Any], call: Call, faults: list[Fault]) -> Any:
        """The body as its model; adds to `faults` what is wrong with it."""
        if self._fast is not None and call.media_type == JSON and (body := self._fast(call.body)) is not None:
            return body
        try:
            value = read_json(call, self.media_types)
        except strict_json.Suspect as suspect:
            faults += suspect.faults
            value = suspect.value
        try:
            return model.validate_python(value)
        except ValidationError as error:
            known = {fault.pointer for fault in faults}
            faults += [fault for fault in of_validation(error) if fault.pointer not in known]


def endpoint(
    method: str,
    path: str,
    *,
    scope: str | None,
    tag: str,
    answers: Any = None,
    problems: Sequence[str] = (),
    responses: Mapping[int | str, Any] | None = None,
    media_types: Sequence[str] = ("application/json",),
    is_fast: bool = False,
    is_large: bool = False,
    **described: Any,
) -> Callable[[Callable[..., Awaitable[Result]]], Endpoint]:
    """Declare the endpoint of a method and a path.

    `answers` is the model of a successful answer. `problems` are the codes of this endpoint, beside those of
    every endpoint. `is_fast`: the fast decoder reads a body that is plainly well formed. FastAPI's `add_api_route`
    receives the other keywords. `Endpoint` explains the rest.
    """
    described |= {
        "response_model": answers,
        "tags": [tag],
        # With a default response FastAPI describes no errors of its own; `openapi.completed` fills it in.
        "responses": {"default": {}, **problem_responses(*problems), **(responses or {})},
    }

    def declared(function: Callable[..., Awaitable[Result]]) -> Endpoint:
        return Endpoint(
            function, method, path, scope, media_types, is_fast=is_fast, is_large=is_large, described=described
        )

    return declared


def declared_in(*modules: ModuleType) -> list[Endpoint]:
    """The endpoints that modules declare, in their order."""
    return [one for module in modules for one in vars(module).values() if isinstance(one, Endpoint)]


def read_json(call: Call, media_types: Sequence[str]) -> Any:
    """The JSON value of a body, read strictly. Raises Problem for another media type, and Invalid."""
    media_type = call.media_type.decode("latin-1")
    if media_type not in media_types:
        detail = f"Send {' or '.join(media_types)} (Content-Type), not {media_type or 'a body without a type'}."
        raise Problem("unsupported_media_type", detail)
    return strict_json.parse(call.body, call.limits.depth)


def _header(call: Call, name: bytes) -> str | None:
    sent = call.headers.get(name)
    return None if sent is None else sent.decode("latin-1")


def changes(body: BaseModel) -> dict[str, Any]:
    """The fields that a body sets. Raises Problem if it sets none."""
    found = body.model_dump(include=body.model_fields_set)
    if not found:
        message = f"Say what to change: {', '.join(type(body).model_fields)}."
        raise of_faults([Fault("", "required", message)])
    return found
