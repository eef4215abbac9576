"""List the deliveries of a webhook endpoint."""

from credit_service.doors.http import api
from credit_service.doors.http.webhook_endpoints.shared import ENDPOINT, MISSING, TAG, DeliveryShape, EndpointId, find
from credit_service.messages import webhooks
from credit_service.storage.webhooks import WebhookEndpoints


@api.endpoint(
    "GET",
    ENDPOINT + "/deliveries",
    scope="admin",
    tag=TAG,
    answers=api.page_of(DeliveryShape),
    problems=(*MISSING, "cursor_invalid"),
)
async def list_webhook_deliveries(
    endpoint_id: EndpointId,
    call: api.Call,
    endpoints: WebhookEndpoints,
    limit: api.Limit = None,
    cursor: api.Cursor = None,
) -> api.Answer:
    """List the deliveries of an endpoint, newest first. Those that ended are kept for 30 days."""
    pager = api.Pager(call, limit, deliveries=endpoint_id)
    await find(endpoints, endpoint_id)
    before = pager.place(cursor)
    found = await endpoints.deliveries(endpoint_id, before[0] if before else None, pager.limit + 1)
    now = await endpoints.now()
    return pager.page(now, found, webhooks.delivery, lambda one: (one.number,), has_previous=before is not None)
