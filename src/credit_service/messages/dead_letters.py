"""Dead letters: events that can never be applied, in the forms that storage, broker, people and replay need.

Storage keeps an inbound event byte for byte. A refund whose order never arrived is kept as its fact; this module makes
an event of it that means the same.
"""

import json
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import fields
from decimal import Decimal
from typing import Any, Final

import msgspec

from credit_service.ledger.commands import REFUNDS, Command
from credit_service.messages.fields import format_time, optional_time
from credit_service.messages.inbound import CATALOGUE
from credit_service.messages.shapes import encode
from credit_service.storage.letters import Letter, LetterQuery, Undeliverable

SUBJECT: Final = "dlq.credits."
"""The prefix of the subject under which the dead letter of an event is published."""
_LONGEST_REASON = 2_000
_MICROS = Decimal(1_000_000)
_SUBJECTS: Final = {kind: next(subject for subject in CATALOGUE if subject.endswith(f".{kind}")) for kind in REFUNDS}
"""The event that brought a parked refund, by the kind that storage gives it."""
_COMMON: Final = {field.name for field in fields(Command)}


def undeliverable(subject: str, original: bytes, faults: Iterable[tuple[str, str]], at: int) -> Undeliverable:
    """The dead letter of an event with these faults (code and reason); the first fault gives the letter its code.

    `at`: the time of its arrival, in microseconds since 1970.
    """
    codes, reasons = zip(*faults, strict=True)
    # A reason may quote the event, and the database cannot store every text.
    reason = "; ".join(reasons).encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    return Undeliverable(subject, original, codes[0], reason[:_LONGEST_REASON], at)


def about(code: str | None, subject: str | None, *, unreplayed: bool = False) -> LetterQuery:
    """The query for dead letters with this code and this subject."""
    kinds = {name: kind for kind, name in _SUBJECTS.items()}
    return LetterQuery(code, subject, None if subject is None else kinds.get(subject), unreplayed)


def subject_of(letter: Letter) -> str:
    """The subject of a dead letter's event."""
    return letter.subject or _SUBJECTS[letter.fact.kind]


def original_of(letter: Letter) -> bytes:
    """The event of a dead letter: the original bytes, or an event that means the same."""
    return _event(letter) if letter.original is None else letter.original


def published(letter: Letter, *, with_original: bool = True) -> bytes:
    """A dead letter as the broker receives it; the caller leaves out an original that is too large for the broker."""
    message = {
        "code": letter.code,
        "reason": letter.reason,
        "subject": subject_of(letter),
        "original": b64encode(original_of(letter)).decode() if with_original else None,
        "received_at": format_time(letter.at),
    }
    return encode(message)


def shape(letter: Letter) -> dict[str, Any]:
    """A dead letter as JSON for people and their tools, without the event itself."""
    return {
        "id": letter.id,
        "code": letter.code,
        "reason": letter.reason,
        "subject": subject_of(letter),
        "received_at": format_time(letter.at),
        "published_at": optional_time(letter.published_at),
        "replayed_at": optional_time(letter.replayed_at),
    }


def _event(letter: Letter) -> bytes:
    fact = letter.fact
    envelope = {
        "specversion": "1.0",
        "id": f"dead-letter-{letter.id}",
        "source": "credit-service",
        "type": subject_of(letter),
        "subject": str(fact.merchant_id),
        "time": optional_time(fact.occurred_at),
        "correlationid": fact.correlation_id,
        "data": _without_nulls(_data(fact)),
    }
    return encode(_without_nulls(envelope))


def _without_nulls(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _data(fact: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "merchant_id": str(fact.merchant_id),
        "metadata": None if fact.metadata is None else msgspec.Raw(fact.metadata.encode()),
    }
    for name in [field.name for field in fields(fact) if field.name not in _COMMON]:
        value = getattr(fact, name)
        data[name.removesuffix("_micros")] = _money(value) if name.endswith("_micros") else value
    return data


def _money(micros: int | None) -> str | None:
    return None if micros is None else f"{micros / _MICROS:f}"


def readable(original: bytes) -> Any:
    """The event for a person to read: its JSON value, or else its text with invalid bytes escaped."""
    try:
        return json.loads(original)
    except (ValueError, RecursionError):
        return original.decode("utf-8", "backslashreplace")
