"""Webhooks as they are told: endpoints and deliveries as JSON, the names of deliveries, the event that is a test."""

from typing import Any, Final

from credit_service.messages.fields import format_time
from credit_service.messages.outbound import PREFIX, encode, event_id
from credit_service.messages.shapes import encode as as_json
from credit_service.storage.outbox import StoredEvent
from credit_service.storage.webhooks import WebhookDelivery, WebhookEndpoint

TEST: Final = "webhook_test"
"""What stands for a type of announcement in a delivery that tells of nothing."""


def delivery_id(endpoint_id: str, number: int) -> str:
    """The name of a delivery."""
    return f"{endpoint_id}-{number}"


def delivery_place(name: str) -> tuple[str, int]:
    """The endpoint and the number in the name of a delivery, whose form was checked."""
    endpoint_id, _, number = name.rpartition("-")
    return endpoint_id, int(number)


def message(delivery: WebhookDelivery, event: StoredEvent | None, source: str) -> tuple[str, bytes]:
    """What a delivery sends: the message's id, the same each time, and the event as JSON."""
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
    """By what receivers know a repeat: the event's id, whichever delivery sends it."""
    if delivery.account is None or delivery.event is None:
        return f"test-{delivery_id(delivery.endpoint, delivery.number)}"
    return event_id(delivery.account, delivery.event)


def endpoint(value: WebhookEndpoint) -> dict[str, Any]:
    """A webhook endpoint. What it is signed with is no part of the value, and so of no shape."""
    return {
        "id": value.id,
        "url": value.url,
        "event_types": None if value.event_types is None else [PREFIX + type_ for type_ in value.event_types],
        "enabled": value.disabled_at is None,
        "disabled_at": _time(value.disabled_at),
        "disabled_reason": value.disabled_reason,
        "failing_since": _time(value.failing_since),
        "created_at": format_time(value.created_at),
    }


def delivery(value: WebhookDelivery) -> dict[str, Any]:
    """A delivery, as the log tells of it."""
    again = value.redelivers
    return {
        "id": delivery_id(value.endpoint, value.number),
        "event_id": message_id(value),
        "event_type": PREFIX + value.type,
        "state": value.state,
        "attempts": value.attempts,
        "next_attempt_at": _time(value.next_at),
        "last_status": value.status,
        "last_error": value.error,
        "redelivers": None if again is None else delivery_id(value.endpoint, again),
        "created_at": format_time(value.created_at),
        "ended_at": _time(value.ended_at),
    }


def _time(micros: int | None) -> str | None:
    return None if micros is None else format_time(micros)
