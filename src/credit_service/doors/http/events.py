"""Inbound events as CloudEvents: the same effect as over a broker, with the results in the answer."""

from collections.abc import Coroutine, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from credit_service.doors.http.call import Answer, Call
from credit_service.doors.http.openapi import QUEUED, problems
from credit_service.doors.http.problems import Problem, of_faults, of_refusal
from credit_service.doors.http.routes import (
    MERCHANT,
    CallOf,
    Meta,
    Parts,
    PartsOf,
    ProblemShape,
    Unsaid,
    answer,
    respond,
    router,
)
from credit_service.doors.http.transactions import TransactionShape
from credit_service.ledger.decide import Outcome, Replayed, Waiting
from credit_service.ledger.draft import Posted
from credit_service.ledger.refusals import Refused
from credit_service.ledger.types import EXPIRY
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
from credit_service.messages.inbound import CATALOGUE

EVENTS = "/credits/events"


class EventResult(BaseModel):
    """What became of an event; of an event with several orders, one for each."""

    event_id: Annotated[str | None, Field(examples=["e-1"])]
    outcome: Literal["posted", "replayed", "parked", "refused"]
    transactions: list[TransactionShape]
    order_id: Annotated[str | None, Unsaid] = None
    error: Annotated[ProblemShape | None, Unsaid] = None


class EventResultsShape(BaseModel):
    """What became of the events, in their order."""

    results: list[EventResult]


class EventResults(BaseModel):
    """What became of what was sent."""

    data: EventResultsShape
    meta: Meta


async def _take(parts: Parts, call: Call, events: Sequence[Read], *, single: bool) -> Answer:
    """Submit the commands of all events in their order, and answer the result of each."""
    if single and events[0].invalid is not None:
        raise _malformed(events[0].invalid)
    lacking = await _lacking_scope(call, events)
    if single and lacking is not None:
        raise lacking
    commands = [
        translated.command
        for event in events
        if not (lacking and _is_for_admins(event))
        for translated in event.commands
        if not isinstance(translated.command, Invalid)
    ]
    outcomes = iter(await parts.posting.submit_many(commands))
    results: list[dict[str, Any]] = []
    for event in events:
        first = len(results)
        if event.invalid is not None:
            results.append(_refused(event.id, _malformed(event.invalid)))
        refused = lacking if _is_for_admins(event) else None
        for translated in event.commands:
            if isinstance(translated.command, Invalid):
                result = _refused(event.id, _malformed(translated.command))
            elif refused is not None:
                result = _refused(event.id, refused)
            else:
                result = _result(event.id, next(outcomes))
            if translated.order_id is not None:
                result["order_id"] = translated.order_id
            results.append(result)
        for result in results[first:]:
            parts.metrics.consumed(event.type, result["outcome"])
    return answer(call, await parts.now(), {"results": results})


def _is_for_admins(event: Read) -> bool:
    return event.type in CATALOGUE and CATALOGUE[event.type].scope == "admin"


async def _lacking_scope(call: Call, events: Sequence[Read]) -> Problem | None:
    """The problem if one of these events needs a scope that the caller's key lacks."""
    if any(map(_is_for_admins, events)):
        try:
            call.require("admin")
        except Problem as problem:
            return problem
    return None


def _malformed(invalid: Invalid) -> Problem:
    if isinstance(invalid, UnknownType):
        return Problem("event_type_unknown", invalid.faults[0].message, errors=invalid.faults)
    return of_faults(invalid.faults)


def _refused(event_id: str | None, problem: Problem) -> dict[str, Any]:
    return {"event_id": event_id, "outcome": "refused", "transactions": [], "error": problem.shape(None)}


def _result(event_id: str | None, outcome: Outcome) -> dict[str, Any]:
    match outcome:
        case Posted(transaction=own, transactions=transactions):
            # Expiries that the posting settled on its way are the account's, not the event's.
            caused = [t for t in transactions if t is own or t.type != EXPIRY]
            return _told(event_id, "posted", [shapes.transaction(transaction) for transaction in caused])
        case Replayed(first=first):
            return _told(event_id, "replayed", [] if first is None else [shapes.transaction(first)])
        case Waiting():
            return _told(event_id, "parked", [])
        case Refused():
            return _refused(event_id, of_refusal(outcome))


def _told(event_id: str | None, outcome: str, transactions: list[dict[str, Any]]) -> dict[str, Any]:
    return {"event_id": event_id, "outcome": outcome, "transactions": transactions}


def hot_event(parts: Parts, call: Call) -> Coroutine[Any, Any, Answer] | None:
    """POST one event, where it is plainly well formed; None leaves it to FastAPI."""
    if call.query:
        return None
    event = read_fast(call.body, call.actor, call.correlation_id, call.limits, authenticated=True)
    return None if event is None else _take(parts, call, [event], single=True)


write = router("write", MEDIA_TYPE, BATCH_MEDIA_TYPE)


class OlderEvent(BaseModel):
    """An event in the platform's older envelope. Of what else it carries only `correlation_id` is kept."""

    model_config = ConfigDict(extra="allow")

    event_type: Annotated[str, Field(min_length=1, max_length=255, examples=sorted(CATALOGUE))]
    payload: dict[str, Any]
    event_id: Annotated[str | None, Field(min_length=1, max_length=255)] = None
    timestamp: Time | None = None


def _event(id_: str, type_: str, **data: Any) -> dict[str, Any]:
    data = {"merchant_id": MERCHANT, **data}
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
    "payload": {"merchant_id": MERCHANT, "order_id": 1003, "total": "20.00", "currency": "GBP"},
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


def _sent(schema: Any, **named: Any) -> dict[str, Any]:
    """What may be sent as one media type; `openapi.completed` moves definitions to where all schemas are."""
    return {"schema": schema, "examples": {name: {"value": value} for name, value in named.items()}}


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            MEDIA_TYPE: _sent(
                {**_EVENT, "$defs": _DEFINED}, merchant_created=_CREATED, order_paid=_PAID, order_refunded=_REFUNDED
            ),
            BATCH_MEDIA_TYPE: _sent(
                {"type": "array", "items": _EVENT, "minItems": 1, "maxItems": 1000}, told_again=[_CREATED, _PAID]
            ),
            "application/json": _sent({"$ref": "#/components/schemas/OlderEvent"}, older_envelope=_OLDER),
        },
    }
}


@write.post(
    EVENTS,
    operation_id="post_events",
    response_model=EventResults,
    openapi_extra=_BODY,
    tags=["events"],
    responses=problems("event_type_unknown", *QUEUED),
)
async def post_events(request: Request, call: CallOf, parts: PartsOf) -> Response:
    """Tell of one event, or of up to 1,000. A repeat is known by what happened, not by the event's id."""
    value = request.scope["credit.json"]
    single = call.media_type != BATCH_MEDIA_TYPE.encode()
    if not single:
        most = parts.settings.batch_max_items
        if not isinstance(value, list) or not 1 <= len(value) <= most:
            raise of_faults([Fault("", "wrong_type", f"A batch is an array of 1 to {most} events.")])
    events = [
        read(entry, call.actor, call.correlation_id, call.limits, authenticated=True)
        for entry in ([value] if single else value)
    ]
    return respond(await _take(parts, call, events, single=single))


ROUTERS: tuple[APIRouter, ...] = (write,)
