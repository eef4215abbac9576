"""Take inbound events as CloudEvents: the same effect as over a broker, with the results in the answer."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from credit_service.doors.http import api
from credit_service.doors.http.transactions.shared import TransactionShape
from credit_service.ledger.decide import Outcome, Replayed, Waiting
from credit_service.ledger.draft import Posted
from credit_service.ledger.refusals import Refused
from credit_service.ledger.types import BY_TIME
from credit_service.messages import shapes
from credit_service.messages.envelope import (
    BATCH_MEDIA_TYPE,
    MEDIA_TYPE,
    CloudEvent,
    Read,
    UnknownType,
    read,
    read_fast,
)
from credit_service.messages.faults import Fault, Invalid
from credit_service.messages.fields import Time
from credit_service.messages.inbound import CATALOGUE, Translated
from credit_service.observability import Metrics
from credit_service.posting import Posting

EVENTS: Final = api.PREFIX + "/credits/events"
_MEDIA_TYPES = ("application/json", MEDIA_TYPE, BATCH_MEDIA_TYPE)


class EventResult(BaseModel):
    """The result of an event; an event with several orders has one for each."""

    event_id: Annotated[str | None, Field(examples=["e-1"])]
    outcome: Literal["posted", "replayed", "parked", "refused"]
    transactions: list[TransactionShape]
    order_id: Annotated[str | None, api.Unset] = None
    error: Annotated[api.ProblemShape | None, api.Unset] = None


class EventResultsShape(BaseModel):
    """The results of the events, in their order."""

    results: list[EventResult]


class OlderEvent(BaseModel):
    """An event in the platform's older envelope. Of its other fields only `correlation_id` is kept."""

    model_config = ConfigDict(extra="allow")

    event_type: Annotated[str, Field(min_length=1, max_length=255, examples=sorted(CATALOGUE))]
    payload: dict[str, Any]
    event_id: Annotated[str | None, Field(min_length=1, max_length=255)] = None
    timestamp: Time | None = None


def _event(id_: str, type_: str, **data: Any) -> dict[str, Any]:
    data = {"merchant_id": api.MERCHANT, **data}
    return {"specversion": "1.0", "id": id_, "source": "shop", "type": type_, "data": data}


_CREATED = _event("e-1", "evt.merchant.created")
_PAID = _event("e-2", "evt.shopify.webhook.order_paid", order_id=1002, total="149.90", currency="GBP")
_REFUNDED = _event(
    "e-3",
    "evt.shopify.webhook.order_refunded",
    refund_id=9001,
    order_id=1002,
    refund_amount="149.90",
    currency="GBP",
)
_OLDER = {
    "event_type": "evt.shopify.webhook.order_paid",
    "event_id": "e-4",
    "timestamp": "2026-11-22T10:45:00Z",
    "correlation_id": "checkout-77",
    "payload": {"merchant_id": api.MERCHANT, "order_id": 1003, "total": "20.00", "currency": "GBP"},
}
_TYPES = {"enum": list(CATALOGUE)}
_EXTENSION = {
    "propertyNames": {"pattern": "^[a-z0-9]{1,64}$"},
    "additionalProperties": {"type": ["string", "integer", "boolean", "null"]},
}
_MODELS: list[tuple[type[BaseModel], Literal["validation"]]] = [(CloudEvent, "validation"), (OlderEvent, "validation")]
_DEFINED = models_json_schema(_MODELS, ref_template="#/components/schemas/{model}")[1]["$defs"]
_DEFINED["CloudEvent"] |= _EXTENSION
_DEFINED["CloudEvent"]["properties"]["type"] |= _TYPES
_DEFINED["OlderEvent"]["properties"]["event_type"] |= _TYPES
_EVENT = {"$ref": "#/components/schemas/CloudEvent"}


def _content(schema: Any, **named: Any) -> dict[str, Any]:
    """A body of one media type; `openapi.completed` moves its definitions to the other schemas."""
    return {"schema": schema, "examples": {name: {"value": value} for name, value in named.items()}}


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            MEDIA_TYPE: _content(
                {**_EVENT, "$defs": _DEFINED}, merchant_created=_CREATED, order_paid=_PAID, order_refunded=_REFUNDED
            ),
            BATCH_MEDIA_TYPE: _content(
                {"type": "array", "items": _EVENT, "minItems": 1, "maxItems": 1000}, told_again=[_CREATED, _PAID]
            ),
            "application/json": _content({"$ref": "#/components/schemas/OlderEvent"}, older_envelope=_OLDER),
        },
    }
}


@api.endpoint(
    "POST",
    EVENTS,
    scope="write",
    tag="events",
    answers=api.one(EventResultsShape),
    problems=("event_type_unknown", *api.QUEUED),
    media_types=_MEDIA_TYPES,
    openapi_extra=_BODY,
    is_large=True,
)
async def post_events(call: api.Call, posting: Posting, ledger: api.Ledger, metrics: Metrics) -> api.Answer:
    """Post one event, or up to 1,000. A repeat is known by its natural key, not by the event's id.

    A manual adjustment needs scope admin.
    """
    is_batch = call.media_type == BATCH_MEDIA_TYPE.encode()
    events = _read(call, is_batch=is_batch)
    if not is_batch and events[0].invalid is not None:
        raise _malformed(events[0].invalid)
    asked = [
        (event, translated, _refusal(event, translated, call)) for event in events for translated in event.commands
    ]
    if not is_batch and asked[0][2] is not None and asked[0][2].code == "scope_missing":
        raise asked[0][2]
    outcomes = await posting.submit_many(
        [one.command for _, one, refusal in asked if refusal is None and not isinstance(one.command, Invalid)]
    )
    results = list(_results(events, asked, outcomes))
    for type_, result in results:
        metrics.consumed(type_, result["outcome"])
    return api.answer(call, await ledger.now(), {"results": [result for _, result in results]})


def _read(call: api.Call, *, is_batch: bool) -> Sequence[Read]:
    """The events of a body. Raises Problem or Invalid if it is neither an event nor a batch."""
    if call.media_type == MEDIA_TYPE.encode():
        event = read_fast(call.body, call.actor, call.correlation_id, call.limits, authenticated=True)
        if event is not None:
            return [event]
    value = api.read_json(call, _MEDIA_TYPES)
    if is_batch and (not isinstance(value, list) or not 1 <= len(value) <= call.limits.batch):
        raise api.of_faults([Fault("", "wrong_type", f"A batch is an array of 1 to {call.limits.batch} events.")])
    return [
        read(entry, call.actor, call.correlation_id, call.limits, authenticated=True)
        for entry in (value if is_batch else [value])
    ]


_Asked = tuple[Read, Translated, api.Problem | None]
"""An event, one of its commands, and why that is refused before it is submitted."""


def _refusal(event: Read, translated: Translated, call: api.Call) -> api.Problem | None:
    if isinstance(translated.command, Invalid):
        return _malformed(translated.command)
    try:
        call.require(CATALOGUE[event.type].scope)
    except api.Problem as problem:
        return problem
    return None


def _malformed(invalid: Invalid) -> api.Problem:
    if isinstance(invalid, UnknownType):
        return api.Problem("event_type_unknown", invalid.faults[0].message, errors=invalid.faults)
    return api.of_faults(invalid.faults)


def _results(
    events: Sequence[Read], asked: Sequence[_Asked], outcomes: Sequence[Outcome]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The results of the events in their order, each with the type of its event."""
    left, decided = iter(asked), iter(outcomes)
    for event in events:
        if event.invalid is not None:
            yield event.type, _refused(event.id, _malformed(event.invalid))
        for _ in event.commands:
            _, translated, refusal = next(left)
            result = _refused(event.id, refusal) if refusal is not None else _result(event.id, next(decided))
            if translated.order_id is not None:
                result["order_id"] = translated.order_id
            yield event.type, result


def _refused(event_id: str | None, problem: api.Problem) -> dict[str, Any]:
    return {"event_id": event_id, "outcome": "refused", "transactions": [], "error": problem.shape(None)}


def _result(event_id: str | None, outcome: Outcome) -> dict[str, Any]:
    match outcome:
        case Posted(transaction=own, transactions=transactions):
            # Expiries that the posting settled on its way are the account's, not the event's.
            caused = [one for one in transactions if one is own or one.type not in BY_TIME]
            return _shape(event_id, "posted", [shapes.transaction(transaction) for transaction in caused])
        case Replayed(first=first):
            return _shape(event_id, "replayed", [] if first is None else [shapes.transaction(first)])
        case Waiting():
            return _shape(event_id, "parked", [])
        case Refused():
            return _refused(event_id, api.of_refusal(outcome))


def _shape(event_id: str | None, outcome: str, transactions: list[shapes.TransactionJson]) -> dict[str, Any]:
    return {"event_id": event_id, "outcome": outcome, "transactions": transactions}
