"""What the endpoints of webhooks share: paths, shapes, and the look-up of a webhook endpoint."""

import base64
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Literal

from fastapi import Path
from pydantic import AfterValidator, BaseModel, Field

from credit_service.doors.http import api
from credit_service.messages import outbound, patterns, webhooks
from credit_service.messages.faults import Fault
from credit_service.storage.webhooks import WebhookDelivery, WebhookEndpoint, WebhookEndpoints

ENDPOINTS: Final = api.PREFIX + "/credits/webhook-endpoints"
ENDPOINT: Final = ENDPOINTS + "/{endpoint_id}"
TAG: Final = "webhooks"
MISSING: Final = ("endpoint_not_found",)
NO_STORE: Final = [(b"cache-control", b"no-store")]
SECRET: Final[dict[str, Any]] = {"headers": api.headers("Cache-Control")}
"""An answer that holds a secret, for the OpenAPI document."""
ENDPOINT_ID: Final = "jw2vk5aqzn3e"
"""The id of the endpoint of every example."""
DELIVERY_ID: Final = re.compile("[a-z2-7]{12}-[1-9][0-9]{0,17}")
_ID: Final = re.compile("[a-z2-7]{12}")
_TYPES: Final = [outbound.PREFIX + type_ for type_ in outbound.PAYLOADS]


def _known_type(type_: str) -> str:
    if type_ not in _TYPES:
        raise ValueError("There is no such type of event.")
    return type_


Url = Annotated[
    str,
    Field(max_length=2048, pattern=patterns.URL, description="The receiver.", examples=["https://example.com/credits"]),
]
EventTypes = Annotated[
    list[Annotated[str, Field(json_schema_extra={"enum": _TYPES}), AfterValidator(_known_type)]] | None,
    Field(min_length=1, description="The types of events to send; null for all, also for types to come."),
]
EndpointId = Annotated[str, Path(description="The endpoint's id.", examples=[ENDPOINT_ID])]


class EndpointShape(BaseModel):
    """A webhook endpoint, without the secret that signs its deliveries."""

    id: Annotated[str, Field(pattern=f"^{_ID.pattern}$", examples=[ENDPOINT_ID])]
    url: Annotated[str, Field(examples=["https://example.com/credits"])]
    event_types: Annotated[list[str] | None, Field(examples=[[f"{outbound.PREFIX}plugin_status_changed"]])]
    enabled: Annotated[bool, Field(examples=[True])]
    disabled_at: Annotated[api.Instant | None, api.Unset]
    disabled_reason: Annotated[str | None, api.Unset]
    failing_since: Annotated[api.Instant | None, api.Unset]
    created_at: api.Instant


class NewEndpointShape(EndpointShape):
    """A webhook endpoint with its new secret, which is shown this once."""

    secret: Annotated[str, Field(examples=[f"whsec_{'…' * 44}"])]


class DeliveryShape(BaseModel):
    """A delivery of an event to an endpoint, with its attempts."""

    id: Annotated[str, Field(pattern=f"^{DELIVERY_ID.pattern}$", examples=[f"{ENDPOINT_ID}-17"])]
    event_id: Annotated[str, Field(examples=[outbound.event_id(0x1E0005DE5BD60A69, 4)])]
    event_type: Annotated[str, Field(examples=[f"{outbound.PREFIX}plugin_status_changed"])]
    state: Annotated[Literal["pending", "delivered", "failed"], Field(examples=["delivered"])]
    attempts: Annotated[int, Field(examples=[1])]
    next_attempt_at: Annotated[api.Instant | None, api.Unset]
    last_status: Annotated[int | None, Field(examples=[204])]
    last_error: Annotated[str | None, api.Unset]
    redelivers: Annotated[str | None, api.Unset]
    created_at: api.Instant
    ended_at: api.Instant | None


async def find(endpoints: WebhookEndpoints, endpoint_id: str) -> WebhookEndpoint:
    """A webhook endpoint by its id. Raises Problem if there is none."""
    found = await endpoints.get(endpoint_id) if _ID.fullmatch(endpoint_id) else None
    if found is None:
        raise api.Problem("endpoint_not_found", "There is no webhook endpoint of this id.")
    return found


async def check_url(sender: api.WebhookSender, url: str) -> None:
    """Raise Problem if no webhook may go to a URL."""
    try:
        await sender.check_target(url)
    except OSError as refused:
        raise api.of_faults([Fault("/url", "not_allowed", str(refused))]) from None


def stored_types(types: Sequence[str] | None) -> tuple[str, ...] | None:
    """Types of events as they are stored: without prefix, each once."""
    return None if types is None else tuple(dict.fromkeys(type_.removeprefix(outbound.PREFIX) for type_ in types))


def new_secret() -> str:
    return f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"


async def send(
    endpoints: WebhookEndpoints,
    sender: api.WebhookSender,
    call: api.Call,
    endpoint_id: str,
    make: Callable[[WebhookEndpoint, int], WebhookDelivery],
) -> api.Answer:
    """Add a delivery that the caller asked for. It tries again if another process added one meanwhile."""
    while True:
        endpoint, now = await find(endpoints, endpoint_id), await endpoints.now()
        made = make(endpoint, now)
        if await endpoints.add_deliveries(endpoint, [made]):
            sender.changed()
            return api.answer(call, now, webhooks.delivery(made), 202)
