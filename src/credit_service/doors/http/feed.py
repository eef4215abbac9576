"""Events out: what was announced, in pages or as a stream of server-sent events, from the start or from any point."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Final, Literal, NamedTuple
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.types import Send

from credit_service.doors.http.call import Call
from credit_service.doors.http.events import EVENTS
from credit_service.doors.http.keys import credential_of
from credit_service.doors.http.openapi import problems
from credit_service.doors.http.problems import Problem, of_faults
from credit_service.doors.http.routes import (
    MERCHANT,
    WHOLE,
    CallOf,
    Cursor,
    Instant,
    Limit,
    Links,
    MerchantText,
    Meta,
    Pagination,
    Parts,
    PartsOf,
    RequestId,
    cursor_place,
    cursor_text,
    page,
    page_limit,
    router,
)
from credit_service.ledger.account import MAX_CREDITS
from credit_service.messages import patterns
from credit_service.messages.catalogue import OUT
from credit_service.messages.faults import Fault
from credit_service.messages.fields import uuid
from credit_service.messages.outbound import cloud_event
from credit_service.storage.engine import StorageError
from credit_service.storage.outbox import Position, StoredEvent

STREAM: Final = "text/event-stream"
HEARTBEAT_SECONDS = 15.0
"""How long a stream is silent at most: proxies close what is silent for a minute."""
CHECK_SECONDS = 0.25
"""How often the key of a stream is looked at; with what a keyring remembers, a revocation is in force within 5 s."""
_RETRY_MILLISECONDS: Final = 2_000
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nothing on the way is to hold it back


class ToldEvent(BaseModel):
    """An event, as a CloudEvent. What its data says, its schema tells."""

    specversion: Literal["1.0"]
    id: Annotated[str, Field(examples=["a7800de5-8bd6-8a69-9300-000000000004"], json_schema_extra={"format": "uuid"})]
    source: Annotated[str, Field(examples=["credit-service"])]
    type: Annotated[str, Field(json_schema_extra={"enum": [kind.name for kind in OUT]}, examples=[OUT[2].name])]
    subject: MerchantText
    time: Instant
    sequence: Annotated[str, Field(pattern="^[1-9][0-9]*$", examples=["4"])]
    correlationid: RequestId | None = None
    datacontenttype: Literal["application/json"]
    data: Annotated[dict[str, Any], Field(examples=[{"merchant_id": MERCHANT, "amount": 25, "available": 75}])]


class EventPage(BaseModel):
    """A page of events, oldest first."""

    data: list[ToldEvent]
    pagination: Pagination
    links: Links
    meta: Meta


class _From(NamedTuple):
    """Where to read on: after a position, in one account or in all."""

    account: int | None
    position: Position


def cursor_at(merchant_id: UUID | None, position: Position) -> str:
    """The cursor of a position in the events of a merchant, or of all."""
    return cursor_text(position, **_bound(merchant_id))


def _bound(merchant_id: UUID | None) -> dict[str, Any]:
    return {"list": "events", "merchant": merchant_id}


read = router("read")
_STREAMED = {
    "schema": {"type": "string"},
    "example": f"id: AAAAAAAAAAA\nevent: {OUT[2].name}\ndata: {{…}}\n\n",
}


@read.get(
    EVENTS,
    operation_id="list_events",
    response_model=EventPage,
    tags=["events"],
    responses={200: {"content": {STREAM: _STREAMED}}, **problems("account_not_found", "cursor_invalid")},
)
async def list_events(
    request: Request,
    call: CallOf,
    parts: PartsOf,
    merchant_id: Annotated[
        str | None, Query(pattern=patterns.UUID, description="Of this merchant alone.", examples=[MERCHANT])
    ] = None,
    after: Annotated[
        Annotated[int, Field(ge=0, le=MAX_CREDITS), WHOLE] | None,
        Query(description="With merchant_id: from the event after this `sequence` on."),
    ] = None,
    start: Annotated[
        Literal["now"] | None, Query(description="Begin with what is announced from now on, not with the first.")
    ] = None,
    cursor: Cursor = None,
    limit: Limit = None,
    last_event_id: Annotated[
        str | None,
        Header(
            alias="Last-Event-ID",
            max_length=200,
            description="Of a stream: the `id` to go on after, whatever the query says.",
        ),
    ] = None,
) -> Response:
    """List events, oldest first, or follow them, with `Accept: text/event-stream`. Each page has a `next_cursor`."""
    limit = page_limit(limit, parts.settings)
    merchant = None if merchant_id is None else uuid(merchant_id)
    streamed = _asks_for_stream(request, call)
    _one_start(merchant, after, start, cursor)
    # A browser that comes back repeats the query, too.
    resumed = last_event_id if streamed and last_event_id else cursor
    begin = await _begin(parts, merchant, after, start, resumed)
    if streamed:
        call.is_stream = True
        return _EventStream(_lines(parts, call, begin), media_type=STREAM, headers=_HEADERS)
    return await _page(parts, call, merchant, begin, limit, is_first=cursor is None)


def _asks_for_stream(request: Request, call: Call) -> bool:
    """Whether a stream is asked for, and not JSON. To HEAD there is only an answer that ends."""
    accepted = [part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "").split(",")]
    return STREAM in accepted and "application/json" not in accepted and not call.is_head


def _one_start(merchant: UUID | None, after: int | None, start: str | None, cursor: str | None) -> None:
    """Raise Problem unless there is one place to begin at."""
    given = {"after": after, "start": start, "cursor": cursor}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        message = "after, start and cursor each say where to begin: give one of them."
        raise of_faults([Fault(f"/query/{name}", "not_allowed", message) for name in names])
    if after is not None and merchant is None:
        raise of_faults([Fault("/query/after", "not_allowed", "A sequence is an account's: give merchant_id, too.")])


async def _begin(
    parts: Parts, merchant: UUID | None, after: int | None, start: str | None, resumed: str | None
) -> _From:
    """Where to begin. Raises Problem where there is no such account, or the cursor is of another query."""
    account, last = None, None
    if merchant is not None:
        held = (await parts.accounts.load([merchant], await parts.now())).get(merchant)
        if held is None:
            raise Problem("account_not_found", "This merchant has no account.")
        account, last = held.account.number, held.account.announced
    lanes = parts.outbox.lanes if account is None else 1
    if resumed is not None:
        return _From(account, cursor_place(resumed, lanes, **_bound(merchant)))
    if after is not None:
        return _From(account, (after,))
    if start is not None:
        return _From(account, await parts.outbox.end() if last is None else (last,))
    return _From(account, (0,) * lanes)


async def _page(
    parts: Parts, call: Call, merchant: UUID | None, begin: _From, limit: int, *, is_first: bool
) -> Response:
    if begin.account is None:
        found = await parts.outbox.events(begin.position, limit + 1)
    else:
        found = await parts.outbox.events_of(begin.account, begin.position[0], limit + 1)
    shown = found[:limit]
    end = _behind(begin, shown)
    return page(
        call,
        await parts.now(),
        [cloud_event(stored, parts.settings.service_source) for stored in shown],
        limit=limit,
        next_cursor=cursor_at(merchant, end),
        has_previous=not is_first,
        has_next=len(found) > limit,
    )


def _behind(begin: _From, shown: list[StoredEvent]) -> Position:
    """The position after these events."""
    if begin.account is not None:
        return (shown[-1].announcement.number,) if shown else begin.position
    position = list(begin.position)
    for stored in shown:
        position[stored.lane] = stored.id
    return tuple(position)


class _EventStream(StreamingResponse):
    """A stream that lets go of the outbox at once, however it ends."""

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self.body_iterator):  # type: ignore[type-var]
            await super().stream_response(send)


async def _lines(parts: Parts, call: Call, begin: _From) -> AsyncGenerator[bytes]:
    """Events as they come, and a comment where there are none, for as long as the key is valid."""
    clock = asyncio.get_running_loop().time
    yield b"retry: %d\n\n" % _RETRY_MILLISECONDS
    checked = spoken = clock()
    async with aclosing(parts.follow(begin.account, begin.position)) as told:
        async for lines in told:
            now = clock()
            if now - checked >= CHECK_SECONDS:
                checked = now
                if not await _may_listen(parts, call):
                    return
            if lines or now - spoken >= HEARTBEAT_SECONDS:
                spoken = now
                yield lines or b":\n\n"


async def _may_listen(parts: Parts, call: Call) -> bool:
    """Whether the key of a stream is still valid. While the store is away it has no news for the stream either."""
    given = credential_of(call.sent(b"authorization"))
    try:
        return given is not None and await parts.keyring.valid(given) is not None
    except StorageError:
        return True


ROUTERS: tuple[APIRouter, ...] = (read,)
