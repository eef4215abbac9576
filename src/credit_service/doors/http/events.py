"""Inbound events as CloudEvents: the same effect as over a broker, with the results in the answer."""

from collections.abc import Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from credit_service.doors.http.problems import Problem, of_faults, of_refusal
from credit_service.doors.http.routes import (
    CallOf,
    Meta,
    Parts,
    PartsOf,
    ProblemShape,
    answer,
    respond,
    router,
)
from credit_service.doors.http.shell import Answer, Call
from credit_service.doors.http.transactions import TransactionShape
from credit_service.ledger.account import EXPIRY
from credit_service.ledger.decide import Outcome, Replayed, Waiting
from credit_service.ledger.draft import Posted
from credit_service.ledger.refusals import Refused
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

EVENTS = "/credits/events"


class EventResult(BaseModel):
    """What became of an event; of an event with several orders, one for each."""

    event_id: str | None
    outcome: Literal["posted", "replayed", "parked", "refused"]
    transactions: list[TransactionShape]
    order_id: str | None = None
    error: ProblemShape | None = None


class EventResultsShape(BaseModel):
    """What became of the events, in their order."""

    results: list[EventResult]


class EventResults(BaseModel):
    """What became of what was sent."""

    data: EventResultsShape
    meta: Meta


async def _take(parts: Parts, call: Call, events: Sequence[Read], *, single: bool) -> Answer:
    """Submit all that the events mean, in their order, and answer what became of each."""
    if single and events[0].invalid is not None:
        raise _malformed(events[0].invalid)
    commands = [
        translated.command
        for event in events
        for translated in event.commands
        if not isinstance(translated.command, Invalid)
    ]
    outcomes = iter(await parts.posting.submit_many(commands))
    results: list[dict[str, Any]] = []
    for event in events:
        first = len(results)
        if event.invalid is not None:
            results.append(_refused(event.id, _malformed(event.invalid)))
        for translated in event.commands:
            if isinstance(translated.command, Invalid):
                result = _refused(event.id, _malformed(translated.command))
            else:
                result = _result(event.id, next(outcomes))
            if translated.order_id is not None:
                result["order_id"] = translated.order_id
            results.append(result)
        for result in results[first:]:
            parts.metrics.consumed(event.type, result["outcome"])
    return answer(call, await parts.store.now(), {"results": results})


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


async def hot_event(parts: Parts, call: Call) -> Answer | None:
    """POST one event, where it is plainly well formed; None leaves it to FastAPI."""
    await call.caller("write")
    if call.query:
        return None
    event = read_fast(call.body, call.actor, call.correlation_id, call.limits)
    return None if event is None else await _take(parts, call, [event], single=True)


write = router("write", MEDIA_TYPE, BATCH_MEDIA_TYPE)
_SCHEMA = CloudEvent.model_json_schema()
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            MEDIA_TYPE: {"schema": _SCHEMA},
            BATCH_MEDIA_TYPE: {"schema": {"type": "array", "items": _SCHEMA, "minItems": 1, "maxItems": 1000}},
        },
    }
}


@write.post(
    EVENTS,
    operation_id="post_events",
    response_model=EventResults,
    openapi_extra=_BODY,
    tags=["events"],
    responses={402: {"model": ProblemShape}, 404: {"model": ProblemShape}},
)
async def post_events(request: Request, call: CallOf, parts: PartsOf) -> Response:
    """Tell of one event, or of up to 1,000. A repeat is known by what happened, not by the event's id."""
    value = request.scope["credit.json"]
    single = call.media_type != BATCH_MEDIA_TYPE.encode()
    if not single:
        most = parts.settings.batch_max_items
        if not isinstance(value, list) or not 1 <= len(value) <= most:
            raise of_faults([Fault("", "wrong_type", f"A batch is an array of 1 to {most} events.")])
    events = [read(entry, call.actor, call.correlation_id, call.limits) for entry in ([value] if single else value)]
    return respond(await _take(parts, call, events, single=single))


ROUTERS: tuple[APIRouter, ...] = (write,)
