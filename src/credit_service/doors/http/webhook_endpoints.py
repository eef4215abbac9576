"""Webhook endpoints: register, change, rotate, test, replay, and what each was sent. Sending is left to an outlet."""

import base64
import re
import secrets
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from credit_service.doors.http.keys import new_id
from credit_service.doors.http.openapi import examples, headers, problems
from credit_service.doors.http.problems import Problem, of_faults
from credit_service.doors.http.routes import (
    CallOf,
    Cursor,
    Instant,
    Limit,
    Links,
    Meta,
    Pagination,
    Parts,
    PartsOf,
    Unsaid,
    answer,
    cursor_position,
    cursor_text,
    page,
    page_limit,
    page_of_all,
    respond,
    router,
)
from credit_service.ledger.account import DAY
from credit_service.messages import patterns, webhooks
from credit_service.messages.faults import Fault
from credit_service.messages.fields import Body, Time, format_time, parse_time
from credit_service.messages.outbound import PAYLOADS, PREFIX, event_id
from credit_service.storage.webhooks import WebhookDelivery, WebhookEndpoint

ENDPOINTS = "/credits/webhook-endpoints"
ONE = ENDPOINTS + "/{endpoint_id}"
OVERLAP = DAY
"""How long what was signed with so far is signed with still, after it was rotated (microseconds)."""
MOST_SECRETS = 5
_TYPES = [PREFIX + type_ for type_ in PAYLOADS]
_ENDPOINT_ID = "jw2vk5aqzn3e"
_ID = re.compile(r"[a-z2-7]{12}")
_DELIVERY_ID = re.compile(r"[a-z2-7]{12}-[1-9][0-9]{0,17}")
_NO_STORE = [(b"cache-control", b"no-store")]


def _known_type(type_: str) -> str:
    if type_ not in _TYPES:
        raise ValueError("There is no such type of event.")
    return type_


Url = Annotated[
    str,
    Field(max_length=2048, pattern=patterns.URL, description="Where to.", examples=["https://example.com/credits"]),
]
EventTypes = Annotated[
    list[Annotated[str, Field(json_schema_extra={"enum": _TYPES}), AfterValidator(_known_type)]] | None,
    Field(min_length=1, description="The types of events to be told of; null for all, also for those to come."),
]
EndpointId = Annotated[str, Path(description="The endpoint's id.", examples=[_ENDPOINT_ID])]


class EndpointBody(Body):
    """The endpoint to register."""

    url: Url
    event_types: EventTypes = None


class EndpointChanges(Body):
    """What to change of an endpoint; what is not said stays."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    # By factories, since what is left out has no default: it stays.
    url: Url = Field(default_factory=str)
    event_types: EventTypes = None
    enabled: bool = Field(
        default_factory=bool, description="Whether it is told of events; enabled again, it goes on where it stood."
    )


class ReplayBody(Body):
    """From when on events are sent once more."""

    from_: Annotated[Time, Field(alias="from")]


class EndpointShape(BaseModel):
    """An endpoint, without what its deliveries are signed with."""

    id: Annotated[str, Field(pattern=f"^{_ID.pattern}$", examples=[_ENDPOINT_ID])]
    url: Annotated[str, Field(examples=["https://example.com/credits"])]
    event_types: Annotated[list[str] | None, Field(examples=[[f"{PREFIX}plugin_status_changed"]])]
    enabled: Annotated[bool, Field(examples=[True])]
    disabled_at: Annotated[Instant | None, Unsaid]
    disabled_reason: Annotated[str | None, Unsaid]
    failing_since: Annotated[Instant | None, Unsaid]
    created_at: Instant


class NewEndpointShape(EndpointShape):
    """An endpoint with its new secret, which is shown this once."""

    secret: Annotated[str, Field(examples=[f"whsec_{'…' * 44}"])]


class RotatedEndpointShape(NewEndpointShape):
    """An endpoint with its new secret, and until when deliveries are signed with the one before, too."""

    previous_secret_until: Instant


class DeliveryShape(BaseModel):
    """What became of an event that was sent, or is to be."""

    id: Annotated[str, Field(pattern=f"^{_DELIVERY_ID.pattern}$", examples=[f"{_ENDPOINT_ID}-17"])]
    event_id: Annotated[str, Field(examples=[event_id(0x1E0005DE5BD60A69, 4)])]
    event_type: Annotated[str, Field(examples=[f"{PREFIX}plugin_status_changed"])]
    state: Annotated[Literal["pending", "delivered", "failed"], Field(examples=["delivered"])]
    attempts: Annotated[int, Field(examples=[1])]
    next_attempt_at: Annotated[Instant | None, Unsaid]
    last_status: Annotated[int | None, Field(examples=[204])]
    last_error: Annotated[str | None, Unsaid]
    redelivers: Annotated[str | None, Unsaid]
    created_at: Instant
    ended_at: Instant | None


class OneEndpoint(BaseModel):
    """An endpoint."""

    data: EndpointShape
    meta: Meta


class OneNewEndpoint(BaseModel):
    """A new endpoint."""

    data: NewEndpointShape
    meta: Meta


class OneRotated(BaseModel):
    """An endpoint with a new secret."""

    data: RotatedEndpointShape
    meta: Meta


class OneDelivery(BaseModel):
    """A delivery."""

    data: DeliveryShape
    meta: Meta


class EndpointPage(BaseModel):
    """A page of endpoints, newest first."""

    data: list[EndpointShape]
    pagination: Pagination
    links: Links
    meta: Meta


class DeliveryPage(BaseModel):
    """A page of deliveries, newest first."""

    data: list[DeliveryShape]
    pagination: Pagination
    links: Links
    meta: Meta


admin = router("admin")
_tags: list[Any] = ["webhooks"]
_missing = problems("endpoint_not_found")
_secret = {"headers": headers("Cache-Control")}
_ENDPOINT = examples(
    of_all_events={"url": "https://example.com/credits"},
    of_some_events={
        "url": "https://example.com/credits",
        "event_types": [f"{PREFIX}plugin_status_changed", f"{PREFIX}low_balance_reached"],
    },
)
_CHANGES = examples(go_on={"enabled": True}, move={"url": "https://example.com/v2/credits"})
_REPLAY = examples(since_a_day={"from": "2026-11-21T10:45:00Z"})


async def _endpoint(parts: Parts, endpoint_id: str) -> WebhookEndpoint:
    found = await parts.endpoints.get(endpoint_id) if _ID.fullmatch(endpoint_id) else None
    if found is None:
        raise Problem("endpoint_not_found", "There is no webhook endpoint of this id.")
    return found


async def _judge(parts: Parts, url: str) -> None:
    try:
        await parts.webhooks.check_target(url)
    except OSError as refused:
        raise of_faults([Fault("/url", "not_allowed", str(refused))]) from None


def _types(said: list[str] | None) -> tuple[str, ...] | None:
    return None if said is None else tuple(dict.fromkeys(type_.removeprefix(PREFIX) for type_ in said))


def _new_secret() -> str:
    return f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"


@admin.post(
    ENDPOINTS,
    operation_id="create_webhook_endpoint",
    status_code=201,
    response_model=OneNewEndpoint,
    tags=_tags,
    responses={201: _secret},
)
async def create_webhook_endpoint(body: Annotated[EndpointBody, _ENDPOINT], call: CallOf, parts: PartsOf) -> Response:
    """Register an endpoint: it is told of events from now on. The answer holds the secret that signs, this once."""
    await _judge(parts, body.url)
    secret, now = _new_secret(), await parts.now()
    position = await parts.outbox.end()
    made = WebhookEndpoint(new_id(), body.url, _types(body.event_types), now, position)
    await parts.endpoints.add(made, secret)
    parts.webhooks.changed()
    return respond(answer(call, now, {**webhooks.endpoint(made), "secret": secret}, 201, _NO_STORE))


@admin.get(
    ENDPOINTS,
    operation_id="list_webhook_endpoints",
    response_model=EndpointPage,
    tags=_tags,
    responses=problems("cursor_invalid"),
)
async def list_webhook_endpoints(call: CallOf, parts: PartsOf, limit: Limit = None, cursor: Cursor = None) -> Response:
    """List the endpoints, newest first."""
    read, shape = parts.endpoints.all, webhooks.endpoint
    return await page_of_all(call, parts, read, shape, limit=limit, cursor=cursor, list="webhook endpoints")


@admin.get(ONE, operation_id="get_webhook_endpoint", response_model=OneEndpoint, tags=_tags, responses=_missing)
async def get_webhook_endpoint(endpoint_id: EndpointId, call: CallOf, parts: PartsOf) -> Response:
    """Read an endpoint; one that failed for too long, or is gone, says so."""
    found = await _endpoint(parts, endpoint_id)
    return respond(answer(call, await parts.now(), webhooks.endpoint(found)))


@admin.patch(ONE, operation_id="change_webhook_endpoint", response_model=OneEndpoint, tags=_tags, responses=_missing)
async def change_webhook_endpoint(
    endpoint_id: EndpointId, body: Annotated[EndpointChanges, _CHANGES], call: CallOf, parts: PartsOf
) -> Response:
    """Change an endpoint. One that was disabled goes on where it stood once it is enabled: nothing is left out."""
    said = body.model_dump(include=body.model_fields_set)
    if not said:
        raise of_faults([Fault("", "required", f"Say what to change: {', '.join(EndpointChanges.model_fields)}.")])
    before = await _endpoint(parts, endpoint_id)
    now = await parts.now()
    if "url" in said:
        await _judge(parts, said["url"])
    if "event_types" in said:
        said["event_types"] = _types(said["event_types"])
    enabled = said.pop("enabled", None)
    if enabled is False and before.disabled_at is None:
        said |= {"disabled_at": now, "disabled_reason": f"It was disabled by {call.actor}."}
    if said:
        await parts.endpoints.change(endpoint_id, **said)
    if enabled and before.disabled_at is not None:
        await parts.endpoints.enable(endpoint_id, now)
    parts.webhooks.changed()
    return respond(answer(call, now, webhooks.endpoint(await _endpoint(parts, endpoint_id))))


@admin.delete(ONE, operation_id="delete_webhook_endpoint", response_model=OneEndpoint, tags=_tags, responses=_missing)
async def delete_webhook_endpoint(endpoint_id: EndpointId, call: CallOf, parts: PartsOf) -> Response:
    """Delete an endpoint, with all it was sent. Nothing more is sent to it, but for what is under way."""
    found, now = await _endpoint(parts, endpoint_id), await parts.now()
    await parts.endpoints.delete(endpoint_id, now)
    parts.webhooks.changed()
    return respond(answer(call, now, webhooks.endpoint(found)))


@admin.post(
    ONE + "/rotate",
    operation_id="rotate_webhook_secret",
    response_model=OneRotated,
    tags=_tags,
    responses={200: _secret, **_missing},
)
async def rotate_webhook_secret(endpoint_id: EndpointId, call: CallOf, parts: PartsOf) -> Response:
    """Make a new secret, shown this once. For 24 hours deliveries carry a signature by each of the two."""
    found, now, secret = await _endpoint(parts, endpoint_id), await parts.now(), _new_secret()
    await parts.endpoints.rotate(endpoint_id, secret, now, now + OVERLAP, MOST_SECRETS)
    rotated = {"secret": secret, "previous_secret_until": format_time(now + OVERLAP)}
    return respond(answer(call, now, webhooks.endpoint(found) | rotated, 200, _NO_STORE))


@admin.post(
    ONE + "/test",
    operation_id="test_webhook_endpoint",
    status_code=202,
    response_model=OneDelivery,
    tags=_tags,
    responses=_missing,
)
async def test_webhook_endpoint(endpoint_id: EndpointId, call: CallOf, parts: PartsOf) -> Response:
    """Send a test, once, also to an endpoint that is disabled. What came of it is told among its deliveries."""

    def made(endpoint: WebhookEndpoint, now: int) -> WebhookDelivery:
        return WebhookDelivery(endpoint.id, endpoint.deliveries + 1, webhooks.TEST, None, None, now, now)

    return await _send(parts, call, endpoint_id, made)


@admin.post(
    ONE + "/replay",
    operation_id="replay_webhook_endpoint",
    status_code=202,
    response_model=OneEndpoint,
    tags=_tags,
    responses=_missing,
)
async def replay_webhook_endpoint(
    endpoint_id: EndpointId, body: Annotated[ReplayBody, _REPLAY], call: CallOf, parts: PartsOf
) -> Response:
    """Send all events since a time once more, of the types that it wants, each with the same id as before."""
    await _endpoint(parts, endpoint_id)
    since, now = parse_time(body.from_), await parts.now()
    if since > now:
        raise of_faults([Fault("/from", "not_allowed", "from lies in the future.")])
    await parts.endpoints.change(endpoint_id, position=await parts.outbox.position_at(since))
    parts.webhooks.changed()
    return respond(answer(call, now, webhooks.endpoint(await _endpoint(parts, endpoint_id)), 202))


@admin.get(
    ONE + "/deliveries",
    operation_id="list_webhook_deliveries",
    response_model=DeliveryPage,
    tags=_tags,
    responses=problems("endpoint_not_found", "cursor_invalid"),
)
async def list_webhook_deliveries(
    endpoint_id: EndpointId, call: CallOf, parts: PartsOf, limit: Limit = None, cursor: Cursor = None
) -> Response:
    """List what an endpoint was sent, or is to be, newest first. What has ended is kept for 30 days."""
    limit = page_limit(limit, parts.settings)
    await _endpoint(parts, endpoint_id)
    before = None if cursor is None else cursor_position(cursor, deliveries=endpoint_id)
    found = await parts.endpoints.deliveries(endpoint_id, before, limit + 1)
    shown = found[:limit]
    return page(
        call,
        await parts.now(),
        [webhooks.delivery(one) for one in shown],
        limit=limit,
        next_cursor=cursor_text(shown[-1].number, deliveries=endpoint_id) if len(found) > limit else None,
        has_previous=before is not None,
    )


@admin.post(
    ENDPOINTS + "/deliveries/{delivery_id}/redeliver",
    operation_id="redeliver_webhook",
    status_code=202,
    response_model=OneDelivery,
    tags=_tags,
    responses=_missing,
)
async def redeliver_webhook(
    delivery_id: Annotated[str, Path(description="The delivery's id.", examples=[f"{_ENDPOINT_ID}-17"])],
    call: CallOf,
    parts: PartsOf,
) -> Response:
    """Send an event again, now, with the same id; a new delivery, which takes the place of one that is pending."""
    found = None
    if _DELIVERY_ID.fullmatch(delivery_id):
        found = await parts.endpoints.delivery(*webhooks.delivery_place(delivery_id))
    if found is None:
        raise Problem("endpoint_not_found", "There is no delivery of this id.")
    again = found

    def made(endpoint: WebhookEndpoint, now: int) -> WebhookDelivery:
        number = endpoint.deliveries + 1
        return WebhookDelivery(
            endpoint.id, number, again.type, again.account, again.event, now, now, redelivers=again.number
        )

    return await _send(parts, call, found.endpoint, made)


async def _send(
    parts: Parts, call: CallOf, endpoint_id: str, make: Callable[[WebhookEndpoint, int], WebhookDelivery]
) -> Response:
    """Keep a delivery that somebody asked for, whatever others make meanwhile."""
    while True:
        endpoint, now = await _endpoint(parts, endpoint_id), await parts.now()
        made = make(endpoint, now)
        if await parts.endpoints.add_deliveries(endpoint, [made]):
            parts.webhooks.changed()
            return respond(answer(call, now, webhooks.delivery(made), 202))


ROUTERS: tuple[APIRouter, ...] = (admin,)
