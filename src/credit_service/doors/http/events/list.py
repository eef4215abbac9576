"""List the announcements of all accounts or of one, oldest first, or begin to stream them."""

from typing import Annotated, Any, Literal

from fastapi import Header, Query
from pydantic import BaseModel, Field

from credit_service.doors.http import api
from credit_service.doors.http.events.post import EVENTS
from credit_service.doors.http.events.stream import STREAM, Start, event_stream
from credit_service.doors.http.keys import Keyring
from credit_service.ledger.account import MAX_CREDITS
from credit_service.messages import patterns
from credit_service.messages.catalogue import OUT
from credit_service.messages.faults import Fault
from credit_service.messages.fields import merchant_text
from credit_service.messages.outbound import cloud_event
from credit_service.settings import Settings
from credit_service.storage.outbox import Outbox, StoredEvent


class EventShape(BaseModel):
    """An announcement, as a CloudEvent. The schema of its type describes its data."""

    specversion: Literal["1.0"]
    id: Annotated[str, Field(examples=["a7800de5-8bd6-8a69-9300-000000000004"], json_schema_extra={"format": "uuid"})]
    source: Annotated[str, Field(examples=["credit-service"])]
    type: Annotated[str, Field(json_schema_extra={"enum": [kind.name for kind in OUT]}, examples=[OUT[2].name])]
    subject: api.MerchantText
    time: api.Instant
    sequence: Annotated[str, Field(pattern="^[1-9][0-9]*$", examples=["4"])]
    correlationid: api.RequestId | None = None
    datacontenttype: Literal["application/json"]
    data: Annotated[dict[str, Any], Field(examples=[{"merchant_id": api.MERCHANT, "amount": 25, "available": 75}])]


MerchantFilter = Annotated[
    str | None, Query(pattern=patterns.MERCHANT, description="Of this merchant alone.", examples=[api.MERCHANT])
]
After = Annotated[
    Annotated[int, Field(ge=0, le=MAX_CREDITS), api.WHOLE] | None,
    Query(description="With merchant_id: from the event after this `sequence` on."),
]
FromNow = Annotated[
    Literal["now"] | None, Query(description="Begin with what is announced from now on, not with the first.")
]
LastEventId = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID",
        max_length=200,
        description="For a stream: the `id` after which it goes on, whatever the query says.",
    ),
]
_STREAMED = {
    "schema": {"type": "string"},
    "example": f"id: AAAAAAAAAAA\nevent: {OUT[2].name}\ndata: {{…}}\n\n",
}


@api.endpoint(
    "GET",
    EVENTS,
    scope="read",
    tag="events",
    answers=api.page_of(EventShape),
    responses={200: {"content": {STREAM: _STREAMED}}},
    problems=("account_not_found", "cursor_invalid"),
)
async def list_events(
    call: api.Call,
    ledger: api.Ledger,
    outbox: Outbox,
    settings: Settings,
    follow: api.Follow,
    keyring: Keyring,
    merchant_id: MerchantFilter = None,
    after: After = None,
    start: FromNow = None,
    cursor: api.Cursor = None,
    limit: api.Limit = None,
    last_event_id: LastEventId = None,
) -> api.Result:
    """List events, oldest first, or follow them, with `Accept: text/event-stream`. Each page has a `next_cursor`."""
    merchant = None if merchant_id is None else merchant_text(merchant_id)
    pager = api.Pager(call, limit, **_bound(merchant))
    _check_start(merchant, after, start, cursor)
    is_streamed = _asks_for_stream(call)
    # A browser that comes back repeats the query, too.
    resumed = last_event_id if is_streamed and last_event_id else cursor
    account, last = None, None
    if merchant_id is not None:
        stored = (await ledger.load(merchant_id, await ledger.now())).account
        account, last = stored.number, stored.announced
    lanes = outbox.lanes if account is None else 1
    if resumed is not None:
        place = pager.place(resumed, lanes) or ()
    elif after is not None:
        place = (after,)
    elif start is not None:
        place = await outbox.end() if last is None else (last,)
    else:
        place = (0,) * lanes
    if is_streamed:
        call.is_stream = True
        return event_stream(call, keyring, follow, Start(account, place))
    if account is None:
        found = await outbox.events(place, pager.limit + 1)
    else:
        found = await outbox.events_of(account, place[0], pager.limit + 1)
    return pager.page(
        await ledger.now(),
        found,
        lambda stored: cloud_event(stored, settings.service_source),
        lambda stored: place,
        has_previous=cursor is not None,
        end=_end(account, place, found[: pager.limit]),
    )


def cursor_at(merchant_id: str | None, place: api.Place) -> str:
    """The cursor of a place in the events of a merchant, or of all."""
    return api.cursor_of(place, **_bound(merchant_id))


def _bound(merchant_id: str | None) -> dict[str, Any]:
    return {"list": "events", "merchant": merchant_id}


def _asks_for_stream(call: api.Call) -> bool:
    """Whether the caller asks for a stream, and not for JSON. HEAD never does: its answer ends."""
    accepted = [part.partition(b";")[0].strip().lower() for part in call.headers.get(b"accept", b"").split(b",")]
    return STREAM.encode() in accepted and b"application/json" not in accepted and not call.is_head


def _check_start(merchant: str | None, after: int | None, start: str | None, cursor: str | None) -> None:
    """Raise Problem unless there is one place to begin at."""
    given = {"after": after, "start": start, "cursor": cursor}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        message = "after, start and cursor each say where to begin: give one of them."
        raise api.of_faults([Fault(f"/query/{name}", "not_allowed", message) for name in names])
    if after is not None and merchant is None:
        raise api.of_faults(
            [Fault("/query/after", "not_allowed", "A sequence is an account's: give merchant_id, too.")]
        )


def _end(account: int | None, begin: api.Place, shown: list[StoredEvent]) -> api.Place:
    """The place after these events."""
    if account is not None:
        return (shown[-1].announcement.number,) if shown else begin
    place = list(begin)
    for stored in shown:
        place[stored.lane] = stored.id
    return tuple(place)
