"""Dead letters: the kept event, and the event that is built from a fact."""

import json
from base64 import b64decode
from dataclasses import replace

import pytest

from credit_service.ledger.account import MAX_CREDITS
from credit_service.ledger.commands import ClawBack, OrderRefunded
from credit_service.messages import dead_letters
from credit_service.messages.envelope import read
from credit_service.messages.strict_json import parse
from credit_service.storage.letters import Letter, LetterQuery
from tests.ledger.telling import MERCHANT, T0
from tests.storage import values

REFUNDED = "evt.shopify.webhook.order_refunded"
OF_EVENT = Letter(7, "validation_failed", "No.", T0, None, "evt.x", b"\xff{", None, None)


def told(event: dict[str, object]) -> OrderRefunded | ClawBack:
    """Return the command that every door reads from this event."""
    (translated,) = read(event, "someone", None).commands
    assert isinstance(translated.command, OrderRefunded | ClawBack)
    return translated.command


def _event(type_: str, **data: object) -> dict[str, object]:
    event = {"specversion": "1.0", "id": "e", "source": "s", "type": type_, "time": "2026-01-02T03:04:05.000006Z"}
    return event | {"correlationid": "c-1", "data": {"merchant_id": str(MERCHANT), **data}}


@pytest.mark.parametrize(
    "event",
    [
        _event(REFUNDED, refund_id="R", order_id=2**60, refund_amount="0.000001", order_total="3", currency="EUR"),
        _event(REFUNDED, refund_id="R", order_id="o", refund_amount="1000000000000", metadata={"ä": [1, None, "\x01"]}),
        _event(REFUNDED, refund_id="R", credits=MAX_CREDITS),
        _event("evt.billing.payment_refunded", refund_id=9, payment_id="P", credits=0),
        _event("evt.billing.payment_disputed", dispute_id="D", subscription_id="S", period="2026-01"),
        _event("evt.billing.payment_dispute_closed", dispute_id="D", payment_id="P", outcome="lost", credits=3),
    ],
    ids=str,
)
def test_event_built_from_a_dead_fact_reads_as_the_same_fact(event: dict[str, object]):
    fact = told(event)
    letter = Letter(7, "order_unknown", "It never came.", T0, fact)
    again = parse(dead_letters.original_of(letter), 32)
    # Only the actor and the salt of the metadata differ.
    assert replace(told(again), actor=fact.actor, salt=fact.salt) == fact
    assert dead_letters.subject_of(letter) == event["type"] == again["type"]


def test_an_inbound_event_is_published_byte_for_byte():
    assert json.loads(dead_letters.published(OF_EVENT)) == {
        "code": "validation_failed",
        "reason": "No.",
        "subject": "evt.x",
        "original": "/3s=",
        "received_at": "2026-01-01T00:00:00.000000Z",
    }


def test_a_dead_fact_is_published_as_its_event():
    shown = json.loads(dead_letters.published(Letter(7, "order_unknown", "No.", T0, values.FULL_REFUND)))
    assert shown["subject"] == REFUNDED
    event = json.loads(b64decode(shown["original"]))
    assert (event["id"], event["subject"]) == ("dead-letter-7", str(MERCHANT))


def test_the_first_fault_gives_the_code_of_a_letter():
    letter = dead_letters.undeliverable("s", b"x", [("a", "One."), ("b", "Two.")], T0)
    assert letter == ("s", b"x", "a", "One.; Two.", T0)


def test_reason_is_escaped_and_shortened():
    letter = dead_letters.undeliverable("s", b"x", [("a", "\0\ud800" + "n" * 10_000)], T0)
    assert letter.reason.startswith("\\0\\ud800nnn")
    assert len(letter.reason) == 2_000


def test_a_dead_fact_is_found_by_the_subject_of_its_event():
    assert dead_letters.about("c", REFUNDED) == LetterQuery("c", REFUNDED, "order_refunded")
    assert dead_letters.about(None, "evt.merchant.created") == LetterQuery(None, "evt.merchant.created", None)
    assert dead_letters.about(None, None, unreplayed=True) == LetterQuery(unreplayed=True)


@pytest.mark.parametrize(
    ("original", "shown"),
    [(b'{"a": 1}', {"a": 1}), (b"\xffno JSON", "\\xffno JSON"), (b"[" * 100_000, "[" * 100_000)],
    ids=["JSON", "no text", "too deep"],
)
def test_any_original_is_readable(original: bytes, shown: object):
    assert dead_letters.readable(original) == shown


def test_a_letter_shows_its_times():
    shown = dead_letters.shape(OF_EVENT._replace(published_at=T0, replayed_at=T0 + 1))
    times = [shown[f"{what}_at"] for what in ("received", "published", "replayed")]
    assert times == [f"2026-01-01T00:00:00.00000{micros}Z" for micros in (0, 0, 1)]
    assert dead_letters.shape(OF_EVENT)["replayed_at"] is None
