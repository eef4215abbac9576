"""docs/asyncapi.json: every event, in and out, as one AsyncAPI 3 document. Written by scripts.pages."""

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
_DESCRIPTION: Final = """The events that credit-service understands and tells. Each is a CloudEvent 1.0 in JSON \
(structured mode), whose type is its subject over NATS. What goes out can be read over HTTP, too: GET \
/api/v1/credits/events, in pages or as a stream of server-sent events; what comes in can be posted there."""
_HEADERS: Final = {
    "type": "object",
    "properties": {"Nats-Msg-Id": {"type": "string", "description": "The event's id, over NATS."}},
}


def document() -> dict[str, Any]:
    """The document."""
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
    """The document as it is committed."""
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
    said = {
        "type": "object",
        "properties": {"type": {"const": kind.name}, "data": {"$ref": _SCHEMAS + kind.data.__name__}},
    }
    message = {
        "name": kind.name,
        "title": kind.meaning,
        "contentType": MEDIA_TYPE,
        "correlationId": {"location": "$message.payload#/correlationid"},
        "payload": {"allOf": [{"$ref": _SCHEMAS + envelope.__name__}, said]},
        "examples": [{"payload": example(kind)}],
    }
    return message if kind.direction == "in" else message | {"headers": _HEADERS}


def _schemas() -> dict[str, Any]:
    """The schemas of all data and of both envelopes, by name."""
    models = [kind.data for kind in IN if issubclass(kind.data, Body)]
    read = [(model, "validation") for model in (CloudEvent, *models)]
    understood: dict[str, Any] = models_json_schema(read, ref_template=_SCHEMAS + "{model}")[1]["$defs"]  # type: ignore[arg-type]
    structs = [OutboundEvent[Payload], *(kind.data for kind in OUT)]
    _, told = msgspec.json.schema_components(structs, ref_template=_SCHEMAS + "{name}")
    told["OutboundEvent"] = told.pop("OutboundEvent_Payload_") | {"title": "OutboundEvent"}
    both = set(understood) & set(told)
    assert not both, f"two schemas of one name: {both}"
    return understood | told
