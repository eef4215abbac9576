"""What the resources share: routes with a scope and strict JSON, answers with meta, pages and their cursors."""

import base64
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Sequence
from hashlib import blake2b
from typing import Annotated, Any, ClassVar, cast
from urllib.parse import parse_qsl, urlencode

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

from credit_service.doors.http.keys import Keyring
from credit_service.doors.http.problems import CODES, Problem, of_faults
from credit_service.doors.http.shell import Answer, Call, as_problem
from credit_service.gate.status import Gate
from credit_service.ledger.policy import Policy
from credit_service.messages import patterns, strict_json
from credit_service.messages.faults import Fault, Invalid, of_validation, pointer
from credit_service.messages.fields import Time, format_time
from credit_service.messages.shapes import encode
from credit_service.observability import Metrics
from credit_service.posting import Posting
from credit_service.settings import Settings
from credit_service.storage.base import Store

PREFIX = "/api/v1"
_WHOLE = re.compile("-?[0-9]+")


class Parts:
    """The parts of the running service that routes use."""

    def __init__(
        self,
        store: Store,
        posting: Posting,
        gate: Gate,
        keyring: Keyring,
        policy: Policy,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        self.metrics = metrics
        self.store = store
        self.keyring = keyring
        self.posting = posting
        self.gate = gate
        self.policy = policy
        self.settings = settings


class _Request(Request):
    """A request whose JSON was read strictly, before FastAPI asks for it."""

    async def json(self) -> Any:
        return self.scope["credit.json"]


class ScopedRoute(APIRoute):
    """A route that first asks who calls, then reads JSON strictly, then does what FastAPI does."""

    needed: ClassVar[str | None] = None
    media_types: ClassVar[tuple[str, ...]] = ("application/json",)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        parameters = frozenset(field.alias for field in self.dependant.query_params)

        async def scoped(request: Request) -> Response:
            call = call_of(request)
            try:
                if self.needed is not None:
                    await call.caller(self.needed)
                    _check_query(call.query, parameters)
                if request.method in ("POST", "PUT", "PATCH"):
                    request.scope["credit.json"] = self._json(request, call)
                return await handle(_Request(request.scope, request.receive))
            except (Problem, Invalid, RequestValidationError, HTTPException):
                raise
            except Exception as error:  # left to Starlette, it would be answered in plain text
                raise as_problem(error, call.request_id) from None

        return scoped

    def _json(self, request: Request, call: Call) -> Any:
        media_type = call.media_type.decode("latin-1")
        if media_type not in self.media_types:
            known = " or ".join(self.media_types)
            detail = f"Send {known} (Content-Type), not {media_type or 'a body without a type'}."
            raise Problem("unsupported_media_type", detail)
        try:
            return strict_json.parse(call.body, parts_of(request).settings.json_max_depth)
        except strict_json.Suspect as error:
            raise of_faults([*error.faults, *self._more_faults(error.value, error.faults)]) from None
        except Invalid as error:
            raise of_faults(error.faults) from None

    def _more_faults(self, value: Any, known: Sequence[Fault]) -> list[Fault]:
        """What else is wrong with a body whose JSON is at fault already, so that one answer lists all."""
        if self.body_field is None:
            return []
        model: Any = self.body_field.field_info.annotation
        try:
            TypeAdapter(model).validate_python(value)
        except ValidationError as error:
            places = {fault.pointer for fault in known}
            return [fault for fault in of_validation(error) if fault.pointer not in places]
        return []


def router(scope: str | None, *media_types: str) -> APIRouter:
    """A router whose routes all need a scope, None for those that anybody may call."""
    attributes = {"needed": scope, "media_types": ("application/json", *media_types)}
    route_class = type(f"{(scope or 'public').title()}Route", (ScopedRoute,), attributes)
    responses: dict[int | str, dict[str, Any]] = {422: {"model": ProblemShape}}
    if scope is not None:
        responses |= {401: {"model": ProblemShape}, 403: {"model": ProblemShape}, 503: {"model": ProblemShape}}
    return APIRouter(route_class=route_class, responses=responses)


def _check_query(query: bytes, known: Collection[str]) -> None:
    """Raise Problem for what is not asked for here, or said twice: a filter with a typo must not list everything."""
    if not query:
        return
    given = Counter(name for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True))
    faults = [
        Fault(pointer(["query", name]), "unknown_field", "This parameter is not known.")
        if name not in known
        else Fault(pointer(["query", name]), "duplicate_key", "This parameter came twice.")
        for name, count in given.items()
        if name not in known or count > 1
    ]
    if faults:
        raise of_faults(faults)


def call_of(request: Request) -> Call:
    """The call that the shell made of this request."""
    return cast(Call, request.scope["credit.call"])


def parts_of(request: Request) -> Parts:
    """The parts of the running service."""
    return cast(Parts, request.app.state.parts)


CallOf = Annotated[Call, Depends(call_of)]
PartsOf = Annotated[Parts, Depends(parts_of)]
MerchantId = Annotated[str, Path(pattern=patterns.UUID, description="The merchant's UUID.")]


class FaultShape(BaseModel):
    """One fault of a request."""

    pointer: str
    code: str
    message: str


class ProblemShape(BaseModel):
    """An error (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: Annotated[str, Field(json_schema_extra={"enum": list(CODES)})]
    request_id: str | None
    errors: list[FaultShape]


class Meta(BaseModel):
    """What is said about an answer."""

    request_id: str
    correlation_id: str
    timestamp: str


class Pagination(BaseModel):
    """Where a page stands. `page` and `total` where pages are numbered."""

    limit: int
    next_cursor: str | None
    has_next: bool
    has_previous: bool
    page: int | None = None
    total: int | None = None


class Links(BaseModel):
    """Where to go from a page."""

    self: str
    next: str | None
    prev: str | None


def answer(call: Call, now: int, data: Any, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()) -> Answer:
    """A successful answer: data and meta."""
    return Answer(status, encode({"data": data, "meta": _meta(call, now)}), list(headers))


def _meta(call: Call, now: int) -> dict[str, str]:
    return {"request_id": call.request_id, "correlation_id": call.correlation_id, "timestamp": format_time(now)}


def respond(made: Answer) -> Response:
    """An answer as FastAPI wants it."""
    response = Response(made.body, made.status, media_type=made.media_type.decode())
    for name, value in made.headers:
        response.headers.append(name.decode(), value.decode())
    return response


def page(
    call: Call,
    now: int,
    data: Sequence[Any],
    *,
    limit: int,
    next_cursor: str | None,
    has_previous: bool,
    number: int | None = None,
    total: int | None = None,
) -> Response:
    """A page of a list. With a `number` the links go by it, else by cursor."""
    asked = dict(parse_qsl(call.query.decode("latin-1"), keep_blank_values=True))

    def link(**changed: str) -> str:
        query = {name: value for name, value in (asked | changed).items() if name != "cursor" or "page" not in changed}
        return f"{call.path}?{urlencode(query)}" if query else call.path

    has_next = next_cursor is not None if number is None else number * limit < (total or 0)
    previous = number - 1 if number is not None and number > 1 else None
    following = None
    if has_next:
        following = link(cursor=str(next_cursor)) if number is None else link(page=str(number + 1))
    pagination: dict[str, Any] = {
        "limit": limit,
        "next_cursor": next_cursor,
        "has_next": has_next,
        "has_previous": has_previous,
    }
    if number is not None:
        pagination |= {"page": number, "total": total}
    links = {"self": link(), "next": following, "prev": link(page=str(previous)) if previous else None}
    shape = {"data": data, "pagination": pagination, "links": links, "meta": _meta(call, now)}
    return respond(Answer(200, encode(shape)))


def _whole(value: Any) -> Any:
    if isinstance(value, str) and not _WHOLE.fullmatch(value):
        raise ValueError("Must be a whole number.")
    return value


WHOLE = BeforeValidator(_whole)
"""For whole numbers in a query: written with digits alone, where pydantic would also take 1_0 and 1.0."""
_Entries = Annotated[int, Field(ge=1), WHOLE]
Limit = Annotated[_Entries | None, Query(description="Entries on a page, 50 where it is not said.")]
Cursor = Annotated[str | None, Query(max_length=200, description="Where to go on: `next_cursor` of the page before.")]


Since = Annotated[Time | None, Query(description="From this instant on (RFC 3339).")]
Until = Annotated[Time | None, Query(description="Before this instant (RFC 3339).")]


def page_limit(limit: int | None, settings: Settings) -> int:
    """The asked limit. Raises Problem beyond the largest."""
    most = settings.page_max_limit
    if limit is None:
        return min(50, most)
    if limit > most:
        raise of_faults([Fault("/query/limit", "out_of_range", f"A page has {most} entries at most.")])
    return limit


def cursor_text(position: int | bytes, **query: Any) -> str:
    """An opaque cursor: a position, bound to the query it was made for."""
    raw = position if isinstance(position, bytes) else position.to_bytes(8, "big")
    return base64.urlsafe_b64encode(_binding(query) + raw).decode().rstrip("=")


def cursor_bytes(cursor: str, size: int, **query: Any) -> bytes:
    """The position in a cursor, of `size` bytes. Raises Problem when it was not made for this query."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True)
    except ValueError:
        raw = b""
    if raw[:8] != _binding(query) or len(raw) != 8 + size:
        raise _cursor_invalid()
    return raw[8:]


def cursor_position(cursor: str, **query: Any) -> int:
    """As `cursor_bytes`, for positions that are numbers."""
    position = int.from_bytes(cursor_bytes(cursor, 8, **query), "big")
    if position >> 63:
        raise _cursor_invalid()
    return position


def _cursor_invalid() -> Problem:
    detail = "This cursor was not given out for this query. Start again without it."
    return Problem("cursor_invalid", detail, errors=[Fault("/query/cursor", "malformed", detail)])


def _binding(query: dict[str, Any]) -> bytes:
    return blake2b(json.dumps(query, sort_keys=True, default=str).encode(), digest_size=8).digest()
