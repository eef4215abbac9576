"""What the resources share: routes with a scope and strict JSON, answers with meta, pages and their cursors."""

import base64
import json
import re
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Protocol, TypeVar, cast
from urllib.parse import parse_qsl, urlencode

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

from credit_service.doors.http.call import Answer, Call
from credit_service.doors.http.keys import Keyring
from credit_service.doors.http.problems import CODES, Problem, of_exception, of_faults
from credit_service.doors.shopify_inbox import Inbox
from credit_service.gate.status import Gate
from credit_service.ledger.policy import Policy
from credit_service.messages import patterns, strict_json
from credit_service.messages.faults import Fault, Invalid, of_validation, pointer
from credit_service.messages.fields import Time, format_time
from credit_service.messages.shapes import encode
from credit_service.observability import Metrics
from credit_service.posting import Posting
from credit_service.settings import Settings
from credit_service.storage.accounts import Accounts
from credit_service.storage.engine import Engine
from credit_service.storage.keys import Keys
from credit_service.storage.outbox import Outbox, Position
from credit_service.storage.policies import FailPolicies
from credit_service.storage.shops import Shops
from credit_service.storage.transactions import Transactions
from credit_service.storage.webhooks import WebhookEndpoints
from credit_service.supervision import Supervisor

if TYPE_CHECKING:
    from credit_service.broker import Broker

T = TypeVar("T")
PREFIX = "/api/v1"
_WHOLE = re.compile("-?[0-9]+")


Follow = Callable[[int | None, Position], AsyncGenerator[bytes]]
"""Lines of events after a position, of one account or of all, as they come; empty where there were none for a while."""


class Publishing(Protocol):
    """What publishes events, as far as it is asked. `fault`: why it does not, where that is so."""

    fault: str | None

    async def lag_seconds(self) -> float:
        """How long the oldest event has waited that is not published. Raises StorageError."""
        ...


class Webhooks(Protocol):
    """What sends webhooks, as far as it is asked."""

    async def check_target(self, url: str) -> None:
        """Raise OSError, with a sentence, where no webhook may go."""
        ...

    def changed(self) -> None:
        """An endpoint was registered or changed, or something is to be sent to it."""
        ...


class Parts:
    """The parts of the running service that routes use."""

    def __init__(
        self,
        engine: Engine,
        posting: Posting,
        gate: Gate,
        keyring: Keyring,
        policy: Policy,
        settings: Settings,
        metrics: Metrics,
        is_stopping: Callable[[], bool],
        follow: Follow,
        webhooks: Webhooks,
        inbox: Inbox,
        supervisor: Supervisor,
        broker: "Broker | None" = None,
        publishing: Publishing | None = None,
        check_redis: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.publishing = publishing
        self.follow = follow
        self.webhooks = webhooks
        self.inbox = inbox
        self.supervisor = supervisor
        self.broker = broker
        self.check_redis = check_redis  # raises an error while it is away; None where there is none
        self.is_stopping = is_stopping
        self.metrics = metrics
        self.now = engine.now
        self.check_storage = engine.check
        self.accounts = Accounts(engine)
        self.transactions = Transactions(engine)
        self.outbox = Outbox(engine)
        self.keys = Keys(engine)
        self.endpoints = WebhookEndpoints(engine)
        self.shops = Shops(engine)
        self.fail_policies = FailPolicies(engine)
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
    """A route that needs a scope and reads JSON strictly; admission has checked the scope before.

    Without media types it takes its body as it is.
    """

    needed: ClassVar[str | None] = None
    media_types: ClassVar[tuple[str, ...]] = ("application/json",)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        parameters = frozenset(field.alias for field in self.dependant.query_params)
        takes_body = self.body_field is not None or "requestBody" in (self.openapi_extra or {})

        async def scoped(request: Request) -> Response:
            call = call_of(request)
            try:
                if self.needed is not None:
                    _check_query(call.query, parameters)
                if request.method in ("POST", "PUT", "PATCH") and self.media_types and (takes_body or call.body):
                    request.scope["credit.json"] = value = self._json(request, call)
                    if not takes_body and value != {}:
                        raise of_faults([Fault("", "not_allowed", "Nothing is to be said here.")])
                return await handle(_Request(request.scope, request.receive))
            except (Problem, Invalid, RequestValidationError, HTTPException):
                raise
            except Exception as error:  # left to Starlette, it would be answered in plain text
                raise of_exception(error) from None

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


def router(scope: str | None, *media_types: str, raw: bool = False) -> APIRouter:
    """A router whose routes all need a scope, None for those that anybody may call.

    They read JSON, by these media types too, unless they want bodies as they are (`raw`).
    """
    attributes = {"needed": scope, "media_types": () if raw else ("application/json", *media_types)}
    route_class = type(f"{(scope or 'public').title()}Route", (ScopedRoute,), attributes)
    # Filled in by `openapi.completed`; where it is, FastAPI does not describe errors of its own.
    return APIRouter(route_class=route_class, responses={"default": {}})


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

# What stands in answers: how it is written, and what the examples of answers are made of.


def _text(example: str, form: str | None = None) -> Any:
    extra: dict[str, Any] = {} if form is None else {"format": form}
    return Field(examples=[example], json_schema_extra=extra)


MERCHANT: Final = "6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11"
"""The merchant of every example."""
MerchantId = Annotated[str, Path(pattern=patterns.UUID, description="The merchant's UUID.", examples=[MERCHANT])]
MerchantText = Annotated[str, _text(MERCHANT, "uuid")]
AccountText = Annotated[str, _text("a7800de5-8bd6-8a69-9000-000000000000", "uuid")]
TransactionText = Annotated[str, _text("a7800de5-8bd6-8a69-9100-000000000002", "uuid")]
GrantText = Annotated[str, _text("a7800de5-8bd6-8a69-9200-000000000001", "uuid")]
Instant = Annotated[str, _text("2026-11-22T10:45:00.000000Z", "date-time")]
RequestId = Annotated[str, _text("77f0a1b2c3d4e5f60718293a4b5c6d7e")]
Unsaid = Field(examples=[None])
"""For what is left out of examples, or null there."""


class FaultShape(BaseModel):
    """One fault of a request."""

    pointer: Annotated[str, _text("/amount")]
    code: Annotated[str, _text("out_of_range")]
    message: Annotated[str, _text("Input should be greater than or equal to 1.")]


class ProblemShape(BaseModel):
    """An error (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    detail: str
    code: Annotated[str, Field(json_schema_extra={"enum": list(CODES)})]
    request_id: str | None
    errors: list[FaultShape]


class Meta(BaseModel):
    """What is said about an answer."""

    request_id: RequestId
    correlation_id: RequestId
    timestamp: Instant


class Pagination(BaseModel):
    """Where a page stands. `page` and `total` where pages are numbered."""

    limit: Annotated[int, Field(examples=[50])]
    next_cursor: Annotated[str | None, Unsaid]
    has_next: bool
    has_previous: bool
    page: Annotated[int | None, Unsaid] = None
    total: Annotated[int | None, Unsaid] = None


class Links(BaseModel):
    """Where to go from a page."""

    self: Annotated[str, _text(f"{PREFIX}/…?limit=50")]
    next: Annotated[str | None, Unsaid]
    prev: Annotated[str | None, Unsaid]


def answer(call: Call, now: int, data: Any, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()) -> Answer:
    """A successful answer: data and meta."""
    return Answer(status, encode({"data": data, "meta": _meta(call, now)}), headers)


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
    has_next: bool | None = None,
) -> Response:
    """A page of a list. With a `number` the links go by it, else by cursor.

    `has_next`: whether there is more, of a list whose pages all have a next cursor.
    """
    asked = dict(parse_qsl(call.query.decode("latin-1"), keep_blank_values=True))

    def link(**changed: str) -> str:
        query = {name: value for name, value in (asked | changed).items() if name != "cursor" or "page" not in changed}
        return f"{call.path}?{urlencode(query)}" if query else call.path

    if has_next is None:
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
_Entries = Annotated[
    int, Field(ge=1, json_schema_extra={"maximum": Settings.model_fields["page_max_limit"].default}), WHOLE
]
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


def cursor_text(position: int | bytes | tuple[int, ...], **query: Any) -> str:
    """An opaque cursor: a position, bound to the query it was made for."""
    if isinstance(position, int):
        position = (position,)
    raw = position if isinstance(position, bytes) else b"".join([part.to_bytes(8, "big") for part in position])
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


def cursor_place(cursor: str, parts: int, **query: Any) -> tuple[int, ...]:
    """As `cursor_bytes`, for positions that are so many numbers."""
    raw = cursor_bytes(cursor, 8 * parts, **query)
    place = tuple([int.from_bytes(raw[start : start + 8], "big") for start in range(0, len(raw), 8)])
    if any(part >> 63 for part in place):
        raise _cursor_invalid()
    return place


def cursor_position(cursor: str, **query: Any) -> int:
    """As `cursor_bytes`, for positions that are one number."""
    return cursor_place(cursor, 1, **query)[0]


def _cursor_invalid() -> Problem:
    detail = "This cursor was not given out for this query. Start again without it."
    return Problem("cursor_invalid", detail, errors=[Fault("/query/cursor", "malformed", detail)])


def _binding(query: dict[str, Any]) -> bytes:
    return blake2b(json.dumps(query, sort_keys=True, default=str).encode(), digest_size=8).digest()


async def page_of_all(
    call: Call,
    parts: Parts,
    read: Callable[[], Awaitable[Sequence[T]]],
    shape: Callable[[T], dict[str, Any]],
    *,
    limit: int | None,
    cursor: str | None,
    **bound: Any,
) -> Response:
    """A page of a list that is short enough to be read whole; `bound` names the list, as of `cursor_text`."""
    limit = page_limit(limit, parts.settings)
    start = 0 if cursor is None else cursor_position(cursor, **bound)
    found = (await read())[start : start + limit + 1]
    return page(
        call,
        await parts.now(),
        [shape(one) for one in found[:limit]],
        limit=limit,
        next_cursor=cursor_text(start + limit, **bound) if len(found) > limit else None,
        has_previous=start > 0,
    )
