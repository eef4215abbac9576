"""The messages of webhooks: endpoints and deliveries as JSON, ids of deliveries, and the test event."""

from typing import Any, Final

from credit_service.messages.fields import format_time, optional_time
from credit_service.messages.outbound import PREFIX, encode, event_id
from credit_service.messages.shapes import encode as as_json
from credit_service.storage.outbox import StoredEvent
from credit_service.storage.webhooks import WebhookDelivery, WebhookEndpoint

TEST: Final = "webhook_test"
"""The event type of a test delivery, which has no announcement."""


def delivery_id(endpoint_id: str, number: int) -> str:
    return f"{endpoint_id}-{number}"


def delivery_place(name: str) -> tuple[str, int]:
    """The endpoint and the number in the id of a delivery, whose form is validated."""
    endpoint_id, _, number = name.rpartition("-")
    return endpoint_id, int(number)


def message(delivery: WebhookDelivery, event: StoredEvent | None, source: str) -> tuple[str, bytes]:
    """The message of a delivery: its id, the same at each attempt, and the event as JSON."""
    id_ = message_id(delivery)
    if event is not None:
        return id_, encode(event, source)
    test = {
        "specversion": "1.0",
        "id": id_,
        "source": source,
        "type": PREFIX + TEST,
        "time": format_time(delivery.created_at),
        "datacontenttype": "application/json",
        "data": {"endpoint_id": delivery.endpoint, "message": "This is a test. Nothing was posted."},
    }
    return id_, as_json(test)


def message_id(delivery: WebhookDelivery) -> str:
    """The event's id, the same in all of its deliveries, so that receivers can recognise a repeat."""
    if delivery.account is None or delivery.event is None:
        return f"test-{delivery_id(delivery.endpoint, delivery.number)}"
    return event_id(delivery.account, delivery.event)


def endpoint(value: WebhookEndpoint) -> dict[str, Any]:
    """A webhook endpoint, without its secrets."""
    return {
        "id": value.id,
        "url": value.url,
        "event_types": None if value.event_types is None else [PREFIX + type_ for type_ in value.event_types],
        "enabled": value.disabled_at is None,
        "disabled_at": optional_time(value.disabled_at),
        "disabled_reason": value.disabled_reason,
        "failing_since": optional_time(value.failing_since),
        "created_at": format_time(value.created_at),
    }


def delivery(value: WebhookDelivery) -> dict[str, Any]:
    """A delivery, for the log of deliveries."""
    again = value.redelivers
    return {
        "id": delivery_id(value.endpoint, value.number),
        "event_id": message_id(value),
        "event_type": PREFIX + value.type,
        "state": value.state,
        "attempts": value.attempts,
        "next_attempt_at": optional_time(value.next_at),
        "last_status": value.status,
        "last_error": value.error,
        "redelivers": None if again is None else delivery_id(value.endpoint, again),
        "created_at": format_time(value.created_at),
        "ended_at": optional_time(value.ended_at),
    }
