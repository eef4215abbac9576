"""The endpoints that manage webhooks. An outlet sends them."""

from credit_service.doors.http.endpoints import declared_in
from credit_service.doors.http.webhook_endpoints import (
    change,
    create,
    delete,
    deliveries,
    get,
    list,
    redeliver,
    replay,
    rotate,
    test,
)

ENDPOINTS = declared_in(create, list, get, change, delete, rotate, test, replay, deliveries, redeliver)
