"""Each inbound event type: its data, and the command or fact that it means."""

from decimal import Decimal
from typing import Any

import pytest

from credit_service.ledger.account import Reference
from credit_service.ledger.commands import (
    Command,
    DisputeClosed,
    GrantTerms,
    OpenAccount,
    OrderPaid,
    OrderRefunded,
    PaymentDisputed,
    PaymentRefunded,
    PaymentSucceeded,
    Post,
    SubscriptionRenewed,
    TrialStarted,
    source_key,
)
from credit_service.ledger.types import MANUAL
from credit_service.messages.faults import Invalid
from credit_service.messages.fields import parse_time
from credit_service.messages.inbound import CATALOGUE, EventContext, Translated, merchant_of, translate
from tests.messages.bodies import MERCHANT

CREATED = "evt.merchant.created"
TRIAL = "evt.billing.trial_started"
PAID = "evt.shopify.webhook.order_paid"
REFUNDED = "evt.shopify.webhook.order_refunded"
PAYMENT = "evt.billing.payment_succeeded"
PAYMENT_REFUNDED = "evt.billing.payment_refunded"
DISPUTED = "evt.billing.payment_disputed"
DISPUTE_CLOSED = "evt.billing.payment_dispute_closed"
RENEWED = "evt.billing.subscription_renewed"
ADJUSTED = "cmd.credits.manual_adjustment"

CONTEXT = EventContext("key:a", "walk", 17)
LEAST: dict[str, dict[str, Any]] = {
    CREATED: {},
    TRIAL: {"trial_id": "t", "credits": 5},
    PAID: {"order_id": "1", "total": "10"},
    REFUNDED: {"refund_id": "r", "order_id": "1", "refund_amount": "10"},
    PAYMENT: {"payment_id": "p", "credits": 5},
    PAYMENT_REFUNDED: {"payment_id": "p", "refund_id": "r", "credits": 5},
    DISPUTED: {"payment_id": "p", "dispute_id": "d"},
    DISPUTE_CLOSED: {"payment_id": "p", "dispute_id": "d", "outcome": "won"},
    RENEWED: {"subscription_id": "s", "period": "2026-01", "credits": 5},
    ADJUSTED: {"adjustment_id": "a", "operation_type": "DECREASE", "credits": 5, "reason": "why", "admin_id": "bo"},
}


def data(type_: str, **changed: Any) -> dict[str, Any]:
    """The minimal data of an event type with changes; None removes a field."""
    values = {"merchant_id": MERCHANT, **LEAST[type_], **changed}
    return {name: value for name, value in values.items() if value is not None}


def one(type_: str, **changed: Any) -> Any:
    (translated,) = translate(type_, data(type_, **changed), CONTEXT)
    assert translated.order_id is None
    return translated.command


def refused(type_: str, said: Any) -> list[tuple[str, str]]:
    with pytest.raises(Invalid) as invalid:
        translate(type_, said, CONTEXT)
    return [(fault.pointer, fault.code) for fault in invalid.value.faults]


def test_every_type_of_the_catalogue_has_an_example() -> None:
    assert set(CATALOGUE) == {*LEAST, "evt.credits.manual_adjustment"}


@pytest.mark.parametrize("type_", LEAST)
def test_every_command_has_the_context_of_its_event(type_: str) -> None:
    command = one(type_, metadata={"b": 1, "a": Decimal("2.0")})
    assert command.merchant_id == MERCHANT
    assert command.actor == ("admin:bo" if type_ == ADJUSTED else "key:a")
    assert (command.correlation_id, command.occurred_at) == ("walk", 17)
    assert command.opens
    assert command.metadata.replace('"admin_id":"bo",', "").startswith('{"a":2,"b":1')
    assert len(command.salt) == 16
    assert len(command.content) == 16


@pytest.mark.parametrize("type_", LEAST)
def test_without_metadata_there_is_no_salt(type_: str) -> None:
    command = one(type_)
    if type_ == ADJUSTED:  # its reason is metadata
        assert command.metadata == '{"admin_id":"bo","reason":"why"}'
    else:
        assert (command.metadata, command.salt) == (None, None)


@pytest.mark.parametrize(
    ("type_", "key", "expected", "values"),
    [
        (CREATED, f"trial:{MERCHANT}", OpenAccount, {}),
        (TRIAL, f"trial:{MERCHANT}", TrialStarted, {"credits": 5, "trial_id": "t"}),
        (
            PAID,
            "shopify:order:1",
            OrderPaid,
            {"order_id": "1", "credits": None, "total_micros": 10_000_000, "currency": None},
        ),
        (
            REFUNDED,
            "shopify:refund:r",
            OrderRefunded,
            {
                "refund_id": "r",
                "order_id": "1",
                "credits": None,
                "refund_amount_micros": 10_000_000,
                "order_total_micros": None,
                "currency": None,
            },
        ),
        (PAYMENT, "billing:payment:p", PaymentSucceeded, {"credits": 5, "payment_id": "p", "terms": GrantTerms()}),
        (
            PAYMENT_REFUNDED,
            "billing:payment_refund:r",
            PaymentRefunded,
            {"credits": 5, "payment_id": "p", "refund_id": "r"},
        ),
        (DISPUTED, "billing:dispute:d", PaymentDisputed, {"credits": None, "payment_id": "p", "dispute_id": "d"}),
        (DISPUTE_CLOSED, "billing:dispute:d:closed", DisputeClosed, {"dispute_id": "d", "outcome": "won"}),
        (
            RENEWED,
            "billing:subscription:s:2026-01",
            SubscriptionRenewed,
            {"credits": 5, "subscription_id": "s", "expires_at": None},
        ),
        (
            ADJUSTED,
            "manual:a",
            Post,
            {"operation": "DECREASE", "type": MANUAL, "amount": 5, "reference": Reference("adjustment", "a")},
        ),
    ],
)
def test_each_type_becomes_one_command_under_its_natural_key(
    type_: str, key: str, expected: type[Command], values: dict[str, Any]
) -> None:
    command = one(type_)
    assert type(command) is expected
    assert command.key == key
    assert {name: getattr(command, name) for name in values} == values


def test_all_fields_of_an_event_are_kept() -> None:
    order = one(PAID, order_id=7, total=Decimal("149.90"), credits=3, currency="GBP")
    assert (order.order_id, order.credits, order.total_micros, order.currency) == ("7", 3, 149_900_000, "GBP")
    refund = one(REFUNDED, refund_amount=1, order_total="2.5", credits=1, currency="EUR")
    assert (refund.refund_amount_micros, refund.order_total_micros, refund.credits) == (1_000_000, 2_500_000, 1)
    assert refund.currency == "EUR"
    until = "2999-01-01T00:00:00Z"
    assert one(PAYMENT, expires_at=until).terms.expires_at == parse_time(until)
    assert one(RENEWED, expires_at=until).expires_at == parse_time(until)
    assert one(RENEWED, period=None, renewal_id=9).key == "billing:subscription:s:9"
    assert (
        one(ADJUSTED, operation_type="INCREASE", metadata={"reason": "mine"}).metadata
        == '{"admin_id":"bo","reason":"why"}'
    )


@pytest.mark.parametrize(
    ("type_", "field", "prefix"),
    [
        (PAID, "order_id", "shopify:order:"),
        (REFUNDED, "refund_id", "shopify:refund:"),
        (PAYMENT, "payment_id", "billing:payment:"),
        (PAYMENT_REFUNDED, "refund_id", "billing:payment_refund:"),
        (RENEWED, "period", "billing:subscription:s:"),
        (ADJUSTED, "adjustment_id", "manual:"),
    ],
)
@pytest.mark.parametrize("value", [17, 2**53 + 1, 2**64, "gid://shop/Order/1", MERCHANT, "x" * 200])
def test_an_id_may_be_a_text_or_a_number(type_: str, field: str, prefix: str, value: Any) -> None:
    assert one(type_, **{field: value}).key == f"{prefix}{value}"
    assert one(type_, **{field: str(value)}).key == f"{prefix}{value}"


@pytest.mark.parametrize("order_id", [17, "17", " 17", "17 ", "gid://shopify/Order/17", " gid://shopify/Refund/17 "])
def test_L03_spellings_of_one_id_are_the_same(order_id: int | str) -> None:
    assert one(PAID, order_id=order_id).key == "shopify:order:17"
    (item,) = translate(PAID, {"merchant_id": MERCHANT, "order_items": [{"order_id": order_id, "total": "1"}]}, CONTEXT)
    command: Any = item.command
    assert (item.order_id, command.key) == ("17", "shopify:order:17")
    assert one(REFUNDED, order_id=order_id).order_id == "17"
    assert one(PAYMENT_REFUNDED, payment_id=order_id).payment_id == "17"
    assert one(RENEWED, subscription_id=order_id).subscription_id == "17"


def test_a_refund_or_dispute_may_name_a_renewal() -> None:
    renewal = {"payment_id": None, "subscription_id": "s", "period": "2026-01"}
    for type_ in (PAYMENT_REFUNDED, DISPUTED, DISPUTE_CLOSED):
        assert source_key(one(type_, **renewal)) == one(RENEWED, period="2026-01").key


@pytest.mark.parametrize("type_", [TRIAL, PAID, REFUNDED, PAYMENT, PAYMENT_REFUNDED, RENEWED, ADJUSTED])
@pytest.mark.parametrize("name", ["credits", "credits_used", "credits_to_use"])
def test_credits_have_three_names_of_which_one_is_allowed(type_: str, name: str) -> None:
    said = data(type_, **{"credits": None, name: 9})
    (translated,) = translate(type_, said, CONTEXT)
    command: Any = translated.command
    assert (command.amount if type_ == ADJUSTED else command.credits) == 9
    other = "credits" if name != "credits" else "credits_used"
    names = [one for one in ("credits", "credits_used", "credits_to_use") if one in (name, other)]
    assert refused(type_, {**said, other: 9}) == [(f"/data/{one}", "not_allowed") for one in names]


@pytest.mark.parametrize("type_", [TRIAL, PAYMENT, PAYMENT_REFUNDED, RENEWED, ADJUSTED])
def test_credits_are_required_without_another_price(type_: str) -> None:
    assert refused(type_, data(type_, credits=None)) == [("/data/credits", "required")]


@pytest.mark.parametrize(
    ("type_", "changed", "fault"),
    [
        (CREATED, {"merchant_id": "-17"}, ("/data/merchant_id", "malformed")),
        (CREATED, {"metadata": []}, ("/data/metadata", "wrong_type")),
        (CREATED, {"metadata": {"a": "x" * 9000}}, ("/data/metadata", "too_long")),
        (CREATED, {"credits": 5}, ("/data/credits", "unknown_field")),
        (TRIAL, {"trial_id": None}, ("/data/trial_id", "required")),
        (TRIAL, {"credits": -1}, ("/data/credits", "out_of_range")),
        (TRIAL, {"credits": 2**53}, ("/data/credits", "out_of_range")),
        (TRIAL, {"credits": "5"}, ("/data/credits", "wrong_type")),
        (TRIAL, {"credits": True}, ("/data/credits", "wrong_type")),
        (TRIAL, {"credits": Decimal("5.0")}, ("/data/credits", "wrong_type")),
        (PAID, {"order_id": None}, ("/data/order_id", "required")),
        (PAID, {"order_id": True}, ("/data/order_id", "wrong_type")),
        (PAID, {"order_id": Decimal(1)}, ("/data/order_id", "wrong_type")),
        (PAID, {"order_id": ""}, ("/data/order_id", "too_short")),
        (PAID, {"order_id": 10**300}, ("/data", "too_long")),
        (PAID, {"total": None}, ("/data/total", "required")),
        (PAID, {"total": -1}, ("/data/total", "malformed")),
        (PAID, {"total": "1.1234567"}, ("/data/total", "malformed")),
        (PAID, {"total": 10**13}, ("/data/total", "malformed")),
        (PAID, {"total": True}, ("/data/total", "wrong_type")),
        (PAID, {"currency": "gbp"}, ("/data/currency", "malformed")),
        (PAID, {"order_items": []}, ("/data/order_items", "too_short")),
        (PAID, {"order_items": [{}] * 1001}, ("/data/order_items", "too_long")),
        (PAID, {"order_items": {}}, ("/data/order_items", "wrong_type")),
        (REFUNDED, {"refund_id": None}, ("/data/refund_id", "required")),
        (REFUNDED, {"refund_amount": None}, ("/data/refund_amount", "required")),
        (REFUNDED, {"order_id": None}, ("/data/credits", "required")),
        (REFUNDED, {"order_total": "x"}, ("/data/order_total", "malformed")),
        (PAYMENT, {"payment_id": None}, ("/data/payment_id", "required")),
        (PAYMENT, {"expires_at": "soon"}, ("/data/expires_at", "malformed")),
        (PAYMENT_REFUNDED, {"refund_id": None}, ("/data/refund_id", "required")),
        (PAYMENT_REFUNDED, {"payment_id": None}, ("/data/payment_id", "required")),
        (PAYMENT_REFUNDED, {"subscription_id": "s"}, ("/data/payment_id", "required")),
        (DISPUTED, {"payment_id": None, "subscription_id": "s"}, ("/data/payment_id", "required")),
        (DISPUTED, {"payment_id": None, "period": "1"}, ("/data/payment_id", "required")),
        (DISPUTED, {"dispute_id": None}, ("/data/dispute_id", "required")),
        (DISPUTE_CLOSED, {"outcome": None}, ("/data/outcome", "required")),
        (DISPUTE_CLOSED, {"outcome": "drawn"}, ("/data/outcome", "not_allowed")),
        (RENEWED, {"period": None}, ("/data/period", "required")),
        (RENEWED, {"renewal_id": 1}, ("/data/period", "required")),
        (RENEWED, {"subscription_id": None}, ("/data/subscription_id", "required")),
        (RENEWED, {"subscription_id": "x" * 200, "period": "y" * 100}, ("/data", "too_long")),
        (ADJUSTED, {"credits": 0}, ("/data/credits", "out_of_range")),
        (ADJUSTED, {"operation_type": "decrease"}, ("/data/operation_type", "not_allowed")),
        (ADJUSTED, {"reason": ""}, ("/data/reason", "too_short")),
        (ADJUSTED, {"reason": None}, ("/data/reason", "required")),
        (ADJUSTED, {"admin_id": "é"}, ("/data/admin_id", "malformed")),
        (ADJUSTED, {"credits": None, "credits_used": 0}, ("/data/credits_used", "out_of_range")),
        (PAID, {"order_id": " "}, ("/data/order_id", "malformed")),
    ],
)
def test_invalid_combinations_of_fields_are_refused(
    type_: str, changed: dict[str, Any], fault: tuple[str, str]
) -> None:
    assert refused(type_, data(type_, **changed)) == [fault]


@pytest.mark.parametrize("type_", LEAST)
@pytest.mark.parametrize("said", [None, [], "text", 1])
def test_data_must_be_an_object(type_: str, said: Any) -> None:
    assert refused(type_, said) == [("/data", "wrong_type")]


@pytest.mark.parametrize("type_", LEAST)
def test_an_unknown_field_is_refused(type_: str) -> None:
    assert refused(type_, data(type_, surprise=1)) == [("/data/surprise", "unknown_field")]


def items(*entries: Any, **changed: Any) -> list[Translated]:
    said = {"merchant_id": MERCHANT, "order_items": list(entries), **changed}
    return translate(PAID, said, CONTEXT)


def test_each_order_of_an_event_is_one_fact() -> None:
    first, second = items(
        {"order_id": 1, "total": 5}, {"order_id": "b", "credits": 2, "currency": "EUR"}, currency="GBP"
    )
    assert isinstance(first.command, OrderPaid)
    assert isinstance(second.command, OrderPaid)
    assert (first.order_id, first.command.key, first.command.currency) == ("1", "shopify:order:1", "GBP")
    assert (second.order_id, second.command.key, second.command.currency) == ("b", "shopify:order:b", "EUR")
    assert (first.command.occurred_at, first.command.correlation_id) == (17, "walk")


def test_an_invalid_order_does_not_stop_the_others() -> None:
    bad: list[Any] = [
        {},
        None,
        [],
        5,
        {"order_id": []},
        {"order_id": 1, "total": "x"},
        {"order_id": 1, "credits": 1, "x": 1},
    ]
    found = items(*bad, {"order_id": "good", "credits": 1}, {"order_id": 2, "total": 1, "metadata": {"a": "x" * 9000}})
    refusals = [translated.command for translated in found if isinstance(translated.command, Invalid)]
    assert [fault.pointer for refusal in refusals for fault in refusal.faults] == [
        "/data/order_items/0/order_id",
        "/data/order_items/1",
        "/data/order_items/2",
        "/data/order_items/3",
        "/data/order_items/4/order_id",
        "/data/order_items/5/total",
        "/data/order_items/6/x",
        "/data/order_items/8/metadata",
    ]
    assert [translated.order_id for translated in found] == [None, None, None, None, None, "1", "1", "good", "2"]


@pytest.mark.parametrize("name", ["order_id", "total", "credits", "credits_used", "credits_to_use", "metadata"])
def test_order_items_exclude_the_fields_of_one_order(name: str) -> None:
    value = {"order_id": 1, "total": 1, "metadata": {}}.get(name, 1)
    said = {"merchant_id": MERCHANT, "order_items": [{"order_id": 1, "total": 1}], name: value}
    assert refused(PAID, said) == [(f"/data/{name}", "not_allowed")]


@pytest.mark.parametrize("reason", [None, "", " ", "\u200b", "\x07", "\ufeff\u2060"])
def test_an_adjustment_needs_a_visible_reason(reason: str | None) -> None:
    ((pointer, _),) = refused(ADJUSTED, data(ADJUSTED, reason=reason))
    assert pointer == "/data/reason"


def test_an_authenticated_adjustment_has_its_caller_as_actor() -> None:
    by_broker, by_http = (CONTEXT._replace(authenticated=known) for known in (False, True))
    one, other = (translate(ADJUSTED, data(ADJUSTED), source)[0].command for source in (by_broker, by_http))
    assert isinstance(one, Post)
    assert isinstance(other, Post)
    assert (one.actor, other.actor) == ("admin:bo", "key:a")
    assert one.metadata == other.metadata == '{"admin_id":"bo","reason":"why"}'
    assert one.content == other.content


def test_the_content_of_an_adjustment_excludes_the_envelope() -> None:
    def content(context: EventContext = CONTEXT, **changed: Any) -> tuple[bytes, str | None]:
        (translated,) = translate(ADJUSTED, data(ADJUSTED, **changed), context)
        assert isinstance(translated.command, Post)
        return translated.command.content, translated.command.metadata

    assert (
        content()
        == content(EventContext("key:b", None, None))
        == content(EventContext("key:b", None, None, authenticated=True))
    )
    assert content() == content(EventContext("key:b", None, None))
    assert content() == content(EventContext("key:b", None, None, authenticated=True))
    assert content() == content(merchant_id=MERCHANT.upper())
    changes: list[dict[str, Any]] = [
        {"credits": 6},
        {"operation_type": "INCREASE"},
        {"reason": "another"},
        {"metadata": {"a": 1}},
        {"adjustment_id": "b"},
        {"admin_id": "jo"},
    ]
    contents = [content(), *(content(**changed) for changed in changes)]
    assert len(set(contents)) == len(contents)


@pytest.mark.parametrize(
    ("type_", "changed"),
    [
        (PAID, {"total": 11}),
        (PAID, {"currency": "GBP"}),
        (PAYMENT, {"credits": 6}),
        (PAYMENT, {"expires_at": "2999-01-01T00:00:00Z"}),
        (REFUNDED, {"order_id": 2}),
        (RENEWED, {"credits": 6}),
        (TRIAL, {"trial_id": "u"}),
    ],
)
def test_other_data_give_a_fact_another_fingerprint(type_: str, changed: dict[str, Any]) -> None:
    assert one(type_).content != one(type_, **changed).content
    assert one(type_).content == one(type_).content


def test_L15_a_fingerprint_excludes_metadata() -> None:
    assert one(PAID).content == one(PAID, metadata={"email": "a@b.c"}).content
    (adjusted, other) = (one(ADJUSTED, reason=reason).content for reason in ("a@b.c", "x@y.z"))
    assert adjusted == other


def test_merchant_of_finds_the_merchant_of_valid_data() -> None:
    assert merchant_of({"merchant_id": MERCHANT.upper()}) == MERCHANT
    assert merchant_of({"merchant_id": 17}) == "17"
    nobody: list[Any] = [None, [], {}, {"merchant_id": True}, {"merchant_id": 1.5}, {"merchant_id": None}]
    for said in nobody:
        assert merchant_of(said) is None
