"""The envelope of an event: CloudEvents 1.0 in its JSON format, structured mode."""

import re
from typing import Any, Literal, NamedTuple

import msgspec
from pydantic import ConfigDict, Field, ValidationError, model_validator

from credit_service.messages.content import DEFAULT_LIMITS, Limits
from credit_service.messages.faults import Fault, Invalid, of_validation
from credit_service.messages.fields import Body, Time, parse_time
from credit_service.messages.inbound import CATALOGUE, EventContext, Translated, translate, translate_fast
from credit_service.messages.patterns import JSON_TYPE

MEDIA_TYPE = "application/cloudevents+json"
BATCH_MEDIA_TYPE = "application/cloudevents-batch+json"
_EXTENSION = re.compile(r"^[a-z0-9]{1,64}$")
_CORRELATION = re.compile(r"^[\x21-\x7e]{1,128}$")


class CloudEvent(Body):
    """An event. It may have extension attributes; the transaction keeps `correlationid`, and the others are ignored."""

    model_config = ConfigDict(extra="allow")

    specversion: Literal["1.0"]
    id: str = Field(min_length=1, max_length=255)
    source: str = Field(min_length=1, max_length=1024)
    type: str = Field(min_length=1, max_length=255, examples=sorted(CATALOGUE))
    subject: str | None = Field(default=None, min_length=1, max_length=255)
    time: Time | None = None
    datacontenttype: str | None = Field(default=None, pattern=JSON_TYPE)
    dataschema: str | None = None
    data: dict[str, Any]

    @model_validator(mode="after")
    def _extensions_are_plain(self) -> "CloudEvent":
        for name, value in (self.model_extra or {}).items():
            if not _EXTENSION.fullmatch(name) or not isinstance(value, str | int | None):
                raise ValueError(f"{name!r} is not an extension attribute that CloudEvents 1.0 allows.")
        return self


class UnknownType(Invalid):
    """The event has a type that the service does not know."""


class Read(NamedTuple):
    """The result of reading an event: its id, its type, and its commands or its faults."""

    id: str | None
    type: str  # a type of the catalogue, or "unknown"
    commands: list[Translated]
    invalid: Invalid | None = None


def read(
    value: Any,
    actor: str,
    correlation_id: str | None,
    limits: Limits = DEFAULT_LIMITS,
    *,
    authenticated: bool = False,
) -> Read:
    """Read an event from its JSON value, in either envelope.

    `correlation_id`: used if the event has none. `authenticated`: see `inbound.EventContext`.
    """
    id_ = type_ = None
    if isinstance(value, dict):
        id_ = _text(value, "id") or _text(value, "event_id")
        if "event_type" in value and "specversion" not in value:
            value = _modern(value)
        type_ = _text(value, "type")
    known_type = type_ if type_ is not None and type_ in CATALOGUE else "unknown"
    try:
        event = CloudEvent.model_validate(value)
        own = (event.model_extra or {}).get("correlationid")
        if isinstance(own, str) and _CORRELATION.fullmatch(own):
            correlation_id = own
        if event.type not in CATALOGUE:
            known = f"This event type is not known. Known types: {', '.join(CATALOGUE)}."
            raise UnknownType([Fault("/type", "not_allowed", known)])
        occurred_at = None if event.time is None else parse_time(event.time)
        context = EventContext(actor, correlation_id, occurred_at, limits, authenticated)
        return Read(id_, known_type, translate(event.type, event.data, context))
    except ValidationError as error:
        return Read(id_, known_type, [], Invalid(of_validation(error)))
    except Invalid as error:
        return Read(id_, known_type, [], error)


def _text(value: dict[str, Any], name: str) -> str | None:
    named = value.get(name)
    return named if isinstance(named, str) else None


_OLDER = {
    "event_type": "type",
    "event_id": "id",
    "payload": "data",
    "timestamp": "time",
    "correlation_id": "correlationid",
}


def _modern(older: dict[str, Any]) -> dict[str, Any]:
    """The platform's older envelope as a CloudEvent: {"event_type": the subject, "payload", "correlation_id", …}.

    Its other fields are dropped. Faults use the names of CloudEvents.
    """
    event = {name: older[old] for old, name in _OLDER.items() if older.get(old) is not None}
    return {"specversion": "1.0", "id": "older", "source": "older", **event}


class _FastEvent(msgspec.Struct, forbid_unknown_fields=True):
    specversion: Literal["1.0"]
    id: str
    source: str
    type: str
    data: msgspec.Raw
    subject: str | None = None
    time: str | None = None
    datacontenttype: str | None = None


_decode_fast = msgspec.json.Decoder(_FastEvent).decode
_TIME = re.compile(r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z$")


def read_fast(
    body: bytes,
    actor: str,
    correlation_id: str | None,
    limits: Limits = DEFAULT_LIMITS,
    *,
    authenticated: bool = False,
) -> Read | None:
    """As `read`, from the bytes of a plain, well-formed event; None if only `read` can judge it."""
    if b"\\" in body or b"null" in body:
        return None
    try:
        event = _decode_fast(body)
        data = bytes(event.data)
        texts = [event.id, event.source, event.type, event.subject, event.time, event.datacontenttype]
        given = [text for text in texts if text is not None]
        # Strings outside of data: a name and a value for each text, specversion with its value, and the name of data.
        # A duplicate field would add some.
        if (body.count(b'"') - data.count(b'"')) // 2 != 2 * len(given) + 3 or not all(
            0 < len(text) < 256 for text in given
        ):
            return None
        if event.type not in CATALOGUE or event.datacontenttype not in (None, "application/json"):
            return None
        if event.time is not None and not _TIME.fullmatch(event.time):
            return None
        occurred_at = None if event.time is None else parse_time(event.time)
        context = EventContext(actor, correlation_id, occurred_at, limits, authenticated)
        commands = translate_fast(event.type, data, context)
        return None if commands is None else Read(event.id, event.type, commands)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
        return None
