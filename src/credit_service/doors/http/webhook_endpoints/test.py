"""Send a test to a webhook endpoint."""

from credit_service.doors.http import api
from credit_service.doors.http.webhook_endpoints.shared import ENDPOINT, MISSING, TAG, DeliveryShape, EndpointId, send
from credit_service.messages.webhooks import TEST
from credit_service.storage.webhooks import WebhookDelivery, WebhookEndpoint, WebhookEndpoints


@api.endpoint(
    "POST",
    ENDPOINT + "/test",
    scope="admin",
    tag=TAG,
    answers=api.one(DeliveryShape),
    status_code=202,
    problems=MISSING,
)
async def test_webhook_endpoint(
    endpoint_id: EndpointId, call: api.Call, endpoints: WebhookEndpoints, sender: api.WebhookSender
) -> api.Answer:
    """Send a test once, also to an endpoint that is disabled. Its deliveries show the result."""

    def made(found: WebhookEndpoint, now: int) -> WebhookDelivery:
        return WebhookDelivery(found.id, found.deliveries + 1, TEST, None, None, now, now)

    return await send(endpoints, sender, call, endpoint_id, made)
