"""Send one delivery of a webhook again."""

from typing import Annotated

from fastapi import Path

from credit_service.doors.http import api
from credit_service.doors.http.webhook_endpoints.shared import (
    DELIVERY_ID,
    ENDPOINT_ID,
    ENDPOINTS,
    MISSING,
    TAG,
    DeliveryShape,
    send,
)
from credit_service.messages.webhooks import delivery_place
from credit_service.storage.webhooks import WebhookDelivery, WebhookEndpoint, WebhookEndpoints


@api.endpoint(
    "POST",
    ENDPOINTS + "/deliveries/{delivery_id}/redeliver",
    scope="admin",
    tag=TAG,
    answers=api.one(DeliveryShape),
    status_code=202,
    problems=MISSING,
)
async def redeliver_webhook(
    delivery_id: Annotated[str, Path(description="The delivery's id.", examples=[f"{ENDPOINT_ID}-17"])],
    call: api.Call,
    endpoints: WebhookEndpoints,
    sender: api.WebhookSender,
) -> api.Answer:
    """Send an event again now, with the same id: a new delivery, which replaces a pending one."""
    found = await endpoints.delivery(*delivery_place(delivery_id)) if DELIVERY_ID.fullmatch(delivery_id) else None
    if found is None:
        raise api.Problem("endpoint_not_found", "There is no delivery of this id.")
    again = found

    def made(owner: WebhookEndpoint, now: int) -> WebhookDelivery:
        number = owner.deliveries + 1
        return WebhookDelivery(
            owner.id, number, again.type, again.account, again.event, now, now, redelivers=again.number
        )

    return await send(endpoints, sender, call, found.endpoint, made)
