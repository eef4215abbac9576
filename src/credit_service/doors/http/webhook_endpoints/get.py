"""Read one webhook endpoint."""

from credit_service.doors.http import api
from credit_service.doors.http.webhook_endpoints.shared import ENDPOINT, MISSING, TAG, EndpointId, EndpointShape, find
from credit_service.messages import webhooks
from credit_service.storage.webhooks import WebhookEndpoints


@api.endpoint("GET", ENDPOINT, scope="admin", tag=TAG, answers=api.one(EndpointShape), problems=MISSING)
async def get_webhook_endpoint(endpoint_id: EndpointId, call: api.Call, endpoints: WebhookEndpoints) -> api.Answer:
    """Read an endpoint. One that failed for too long, or is gone, says so."""
    found = await find(endpoints, endpoint_id)
    return api.answer(call, await endpoints.now(), webhooks.endpoint(found))
