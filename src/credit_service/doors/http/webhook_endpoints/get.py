"""Read one webhook endpoint."""

from credit_service.doors.http.answers import answer, one
from credit_service.doors.http.call import Answer, Call
from credit_service.doors.http.endpoints import endpoint
from credit_service.doors.http.webhook_endpoints.shared import ENDPOINT, MISSING, TAG, EndpointId, EndpointShape, find
from credit_service.messages import webhooks
from credit_service.storage.webhooks import WebhookEndpoints


@endpoint("GET", ENDPOINT, scope="admin", tag=TAG, answers=one(EndpointShape), problems=MISSING)
async def get_webhook_endpoint(endpoint_id: EndpointId, call: Call, endpoints: WebhookEndpoints) -> Answer:
    """Read an endpoint. One that failed for too long, or is gone, says so."""
    found = await find(endpoints, endpoint_id)
    return answer(call, await endpoints.now(), webhooks.endpoint(found))
