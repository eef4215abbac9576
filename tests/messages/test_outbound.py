"""Outbound events: CloudEvents of the ledger's announcements, always with the same bytes."""

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, get_args
from uuid import UUID

import jsonschema_rs
import msgspec
import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given

from credit_service.ledger import announcements
from credit_service.ledger.account import Announcement, Reference
from credit_service.ledger.addresses import EVENT, Address, parse
from credit_service.ledger.announcements import OF_A_TRANSACTION
from credit_service.ledger.types import ANNOUNCED, TransactionType, announced_by
from credit_service.messages.outbound import (
    PAYLOADS,
    PREFIX,
    OfTransaction,
    OutboundEvent,
    encode,
    event_id,
    event_type,
)
from credit_service.storage.outbox import StoredEvent
from tests.laws.stories import Step, play, stories
from tests.ledger.book import Book
from tests.ledger.telling import MERCHANT, T0, add, days, opening, order, use
from tests.storage.values import NUMBER, transaction

SOURCE = "credits.example"


def outbox(book: Book) -> Iterator[StoredEvent]:
    """The outbox after all postings of a book."""
    for told in book.announcements:
        cause = None if told.sequence is None else book.transactions[told.sequence - 1]
        number = book.account.number if book.account else 0
        yield StoredEvent(0, told.number, number, MERCHANT, told, cause)


def events(book: Book) -> list[Any]:
    """The events of a book, as a consumer receives them."""
    return [json.loads(encode(stored, SOURCE)) for stored in outbox(book)]


@lru_cache
def schema_of(type_: str) -> Any:
    """A validator for events of a type."""
    event: Any = OutboundEvent
    return jsonschema_rs.validator_for(msgspec.json.schema(event[PAYLOADS[type_]]), validate_formats=True)


def test_each_announcement_of_the_ledger_has_one_payload() -> None:
    constants = {value for name, value in vars(announcements).items() if name.isupper() and isinstance(value, str)}
    constants -= {"open", "frozen", "closed"}
    assert set(PAYLOADS) == constants | set(ANNOUNCED)


@pytest.mark.parametrize("type_", PAYLOADS)
def test_a_transactions_payload_lists_its_possible_types(type_: str) -> None:
    payload = PAYLOADS[type_]
    assert issubclass(payload, OfTransaction) == (type_ in OF_A_TRANSACTION)
    if type_ in OF_A_TRANSACTION:
        said = next(field.type for field in msgspec.structs.fields(payload) if field.name == "transaction_type")
        assert set(get_args(said)) == set(announced_by(type_)) <= set(get_args(TransactionType))


@given(stories)
def test_every_event_matches_its_schema_and_cloudevents(story: list[Step]) -> None:
    told = [encode(stored, SOURCE) for stored in outbox(play(Book(), story))]
    for number, body in enumerate(told, 1):
        event = json.loads(body)
        schema_of(event["type"].removeprefix(PREFIX)).validate(event)
        parsed = JSONFormat().read(CloudEvent, body)
        assert (parsed.get_type(), parsed.get_source(), parsed.get_subject()) == (event["type"], SOURCE, str(MERCHANT))
        assert (parsed.get_extension("sequence"), parsed.get_data()) == (str(number), event["data"])
        assert json.loads(JSONFormat().write(parsed)) == event | {
            "time": json.loads(JSONFormat().write(parsed))["time"]
        }


def test_the_event_of_a_spend_has_its_transactions_fields() -> None:
    book = Book()
    book.tell(opening(), use(25, correlation_id="checkout-77", reference=Reference("message", "1001")))
    spent = events(book)[-1]
    account = "48d159e2-6af3-87bc-8"
    assert spent == {
        "specversion": "1.0",
        "id": f"{account}300-000000000004",
        "source": SOURCE,
        "type": "evt.credits.consumed",
        "subject": str(MERCHANT),
        "time": "2026-01-01T00:00:00.000000Z",
        "sequence": "4",
        "correlationid": "checkout-77",
        "datacontenttype": "application/json",
        "data": {
            "merchant_id": str(MERCHANT),
            "account_id": f"{account}000-000000000000",
            "transaction_id": f"{account}100-000000000002",
            "transaction_sequence": 2,
            "transaction_type": "USAGE",
            "amount": 25,
            "shortfall": 0,
            "balance_before": 100,
            "balance_after": 75,
            "available": 75,
            "reference": {"type": "message", "id": "1001"},
            "correlation_id": "checkout-77",
        },
    }


def test_an_event_without_a_transaction_has_nulls() -> None:
    book = Book()
    book.tell(opening())
    created = events(book)[0]
    assert "correlationid" not in created
    assert {name for name, value in created["data"].items() if value is not None} == {
        "merchant_id",
        "account_id",
        "available",
    }


def test_the_detail_of_an_announcement_is_in_the_data() -> None:
    book = Book()
    book.tell(opening(), add(5, expires_at=days(30), priority=200), order("1", 90))
    book.wait(23)
    book.tell(order("2", 15))
    told = {event["type"].removeprefix(PREFIX): event["data"] for event in events(book)}
    common = set(told["account.created"])
    own = {type_: {name: data[name] for name in set(data) - common} for type_, data in told.items()}
    assert {type_: said for type_, said in own.items() if said} == {
        "low_balance_reached": {"low_threshold": 20},
        "expiring_soon": {
            "grant_id": "48d159e2-6af3-87bc-8200-000000000002",
            "remaining": 5,
            "expires_at": "2026-01-31T00:00:00.000000Z",
        },
        "plugin_status_changed": {
            "previous_status": "enabled",
            "current_status": "disabled",
            "reason": "exhausted",
        },
    }


def test_an_event_id_is_the_address_of_its_announcement() -> None:
    told = Announcement(7, "recharged", 1, 5, T0)
    stored = StoredEvent(3, 17, NUMBER, MERCHANT, told, transaction())
    identifier = json.loads(encode(stored, SOURCE))["id"]
    assert identifier == event_id(NUMBER, 7)
    assert parse(UUID(identifier)) == Address(NUMBER, EVENT, 7)
    assert encode(stored, SOURCE) == encode(stored, SOURCE)
    assert event_type(stored) == "evt.credits.recharged"
