"""Decodes an event. Its subject names the type, and perhaps the merchant.

NATS decides who may send to which subject, so an event that contradicts its subject is malformed.
"""

from typing import Any, Final

from credit_service.doors.jetstream.subjects import Named, Subjects
from credit_service.messages import envelope, strict_json
from credit_service.messages.content import Limits
from credit_service.messages.faults import Fault, Invalid
from credit_service.settings import Settings

ACTOR: Final = "jetstream"


class TooLarge(Invalid):
    """An event that is larger than every door allows."""


class EventReader:
    """Decodes events of the inbound subjects; `actor` is the actor of their transactions."""

    def __init__(self, subjects: Subjects, settings: Settings, actor: str = ACTOR) -> None:
        self._subjects = subjects
        self._actor = actor
        self._limits = Limits(settings.key_max_length, settings.metadata_max_bytes)
        self._max_depth = settings.json_max_depth
        self._max_bytes = settings.batch_body_max_bytes

    def read(self, named: Named, body: bytes) -> envelope.Read:
        """Decode an event and check it against its subject; the result holds its faults, if any."""
        try:
            if len(body) > self._max_bytes:
                raise TooLarge([Fault("", "too_long", f"An event may have {self._max_bytes} bytes at most.")])
            read = envelope.read_fast(body, self._actor, None, self._limits)
            if read is None:
                read = envelope.read(self.value(named, body), self._actor, None, self._limits)
            if read.invalid is None and (fault := _contradiction(read, named)) is not None:
                raise Invalid([fault])
        except Invalid as invalid:
            return envelope.Read(None, named.type, [], invalid)
        return read

    def value(self, named: Named, body: bytes) -> Any:
        """An event as JSON; a type that is written like a remapped subject becomes our name of it."""
        value = strict_json.parse(body, self._max_depth)
        for field in ("type", "event_type"):
            if isinstance(value, dict) and value.get(field) == named.base != named.type:
                value = {**value, field: named.type}
        return value


def code_of(invalid: Invalid) -> str:
    """The code of a malformed event."""
    if isinstance(invalid, TooLarge):
        return "body_too_large"
    return "event_type_unknown" if isinstance(invalid, envelope.UnknownType) else "validation_failed"


def _contradiction(read: envelope.Read, named: Named) -> Fault | None:
    if read.type != named.type:
        return Fault("/type", "not_allowed", f"Events of this subject are of the type {named.type}.")
    commands = [one.command for one in read.commands if not isinstance(one.command, Invalid)]
    if named.merchant_id is not None and any(command.merchant_id != named.merchant_id for command in commands):
        return Fault("/data/merchant_id", "not_allowed", "This is not the merchant that the subject names.")
    return None
