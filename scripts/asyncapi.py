"""Make docs/asyncapi.json: one AsyncAPI 3 document of all events, in and out. scripts.pages writes the file."""

import json
from typing import Any, Final

import msgspec
from pydantic.json_schema import models_json_schema

from credit_service import __version__
from credit_service.messages.catalogue import CATALOGUE, IN, OUT, EventType
from credit_service.messages.envelope import MEDIA_TYPE, CloudEvent
from credit_service.messages.fields import Body
from credit_service.messages.outbound import OutboundEvent, Payload
from scripts.examples import example

_SCHEMAS: Final = "#/components/schemas/"
_DESCRIPTION: Final = """The events that credit-service receives and sends. Each event is a CloudEvent 1.0 in JSON \
(structured mode). On NATS its subject is its type. Over HTTP, GET /api/v1/credits/events returns outgoing events in \
pages or as a stream of server-sent events, and POST /api/v1/credits/events receives incoming events."""
_HEADERS: Final = {
    "type": "object",
    "properties": {"Nats-Msg-Id": {"type": "string", "description": "The id of the event, on NATS."}},
}


def document() -> dict[str, Any]:
    """Return the document."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "credit-service",
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "Apache License 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": MEDIA_TYPE,
        "channels": {kind.name: _channel(kind) for kind in CATALOGUE},
        "operations": {kind.name: _operation(kind) for kind in CATALOGUE},
        "components": {"messages": {kind.name: _message(kind) for kind in CATALOGUE}, "schemas": _schemas()},
    }


def text() -> str:
    """Return the text of docs/asyncapi.json."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


def _channel(kind: EventType) -> dict[str, Any]:
    return {"address": kind.name, "messages": {kind.name: {"$ref": f"#/components/messages/{kind.name}"}}}


def _operation(kind: EventType) -> dict[str, Any]:
    channel = f"#/channels/{kind.name}"
    return {
        "action": "receive" if kind.direction == "in" else "send",
        "channel": {"$ref": channel},
        "summary": kind.meaning,
        "messages": [{"$ref": f"{channel}/messages/{kind.name}"}],
    }


def _message(kind: EventType) -> dict[str, Any]:
    envelope = CloudEvent if kind.direction == "in" else OutboundEvent
    typed = {
        "type": "object",
        "properties": {"type": {"const": kind.name}, "data": {"$ref": _SCHEMAS + kind.data.__name__}},
    }
    message = {
        "name": kind.name,
        "title": kind.meaning,
        "contentType": MEDIA_TYPE,
        "correlationId": {"location": "$message.payload#/correlationid"},
        "payload": {"allOf": [{"$ref": _SCHEMAS + envelope.__name__}, typed]},
        "examples": [{"payload": example(kind)}],
    }
    return message if kind.direction == "in" else message | {"headers": _HEADERS}


def _schemas() -> dict[str, Any]:
    """Return the schemas of all `data` objects and of both envelopes, by name."""
    models = [kind.data for kind in IN if issubclass(kind.data, Body)]
    models_and_modes = [(model, "validation") for model in (CloudEvent, *models)]
    received: dict[str, Any] = models_json_schema(models_and_modes, ref_template=_SCHEMAS + "{model}")[1]["$defs"]  # type: ignore[arg-type]
    structs = [OutboundEvent[Payload], *(kind.data for kind in OUT)]
    _, sent = msgspec.json.schema_components(structs, ref_template=_SCHEMAS + "{name}")
    sent["OutboundEvent"] = sent.pop("OutboundEvent_Payload_") | {"title": "OutboundEvent"}
    both = set(received) & set(sent)
    assert not both, f"two schemas have the same name: {both}"
    return received | sent
