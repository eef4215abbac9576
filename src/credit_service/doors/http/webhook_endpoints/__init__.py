"""The endpoints that manage webhooks. An outlet sends them."""

from credit_service.doors.http.webhook_endpoints.change import change_webhook_endpoint
from credit_service.doors.http.webhook_endpoints.create import create_webhook_endpoint
from credit_service.doors.http.webhook_endpoints.delete import delete_webhook_endpoint
from credit_service.doors.http.webhook_endpoints.deliveries import list_webhook_deliveries
from credit_service.doors.http.webhook_endpoints.get import get_webhook_endpoint
from credit_service.doors.http.webhook_endpoints.list import list_webhook_endpoints
from credit_service.doors.http.webhook_endpoints.redeliver import redeliver_webhook
from credit_service.doors.http.webhook_endpoints.replay import replay_webhook_endpoint
from credit_service.doors.http.webhook_endpoints.rotate import rotate_webhook_secret
from credit_service.doors.http.webhook_endpoints.test import test_webhook_endpoint

ENDPOINTS = (
    create_webhook_endpoint,
    list_webhook_endpoints,
    get_webhook_endpoint,
    change_webhook_endpoint,
    delete_webhook_endpoint,
    rotate_webhook_secret,
    test_webhook_endpoint,
    replay_webhook_endpoint,
    list_webhook_deliveries,
    redeliver_webhook,
)
