"""The meaning of Shopify's deliveries, without a service."""

import json
from base64 import b64encode
from hashlib import sha256
from hmac import digest
from typing import Any

import pytest

from credit_service.doors.shopify import (
    TOPICS,
    Credits,
    DataRequest,
    Delivery,
    Ignored,
    InboundEvent,
    Redaction,
    Uninstalled,
    is_signed,
    read,
)
from credit_service.doors.shopify_bodies import shop_domain
from credit_service.ledger.account import DAY
from credit_service.messages.faults import Invalid
from credit_service.messages.fields import format_time, parse_time
from tests.doors.shopify_bodies import (
    PERSONAL,
    SHOP,
    customer_redact,
    data_request,
    moved,
    order,
    purchase,
    refund,
    shop_redact,
    subscription,
    uninstalled,
)

CREDITS = Credits({"Pro": 500, "lite-plan": 5, "Free": 0}, {"1000 credits": 1000})
PAID = "evt.shopify.webhook.order_paid"
REFUNDED = "evt.shopify.webhook.order_refunded"
RENEWED = "evt.billing.subscription_renewed"
BOUGHT = "evt.billing.payment_succeeded"


def reading(topic: str, body: Any) -> Delivery:
    return read(topic, body if isinstance(body, bytes) else json.dumps(body).encode(), CREDITS, 32)


def order_paid(order_id: Any = 1001, total: Any = "100.00", at: str | None = "2026-11-22T15:45:00Z") -> InboundEvent:
    data = {"order_id": order_id, "total": total, "currency": "GBP"}
    return InboundEvent(PAID, data, None if at is None else parse_time(at))


def back(amount: str, currency: str | None = "GBP") -> InboundEvent:
    data = {"refund_id": 7, "order_id": 1001, "refund_amount": amount, "currency": currency}
    return InboundEvent(REFUNDED, data, parse_time("2026-11-23T10:45:00Z"))


NOT_RETURNED = Ignored("The money of this refund has not been returned.")


def renewed(period: str, credits: int = 500, at: str = "2026-01-01T12:00:05Z") -> InboundEvent:
    data = {"subscription_id": "1029266977", "period": period, "credits": credits}
    window = (parse_time("2026-01-01T12:00:00Z"), parse_time("2026-01-31T12:00:00Z"))
    return InboundEvent(RENEWED, data, parse_time(at), "gid://shopify/AppSubscription/1029266977", window)


MEANT = [
    ("orders/paid", order(), order_paid()),
    ("orders/paid", order(2**53 + 1), order_paid(2**53 + 1)),
    ("orders/paid", order("a-1"), order_paid("a-1")),
    ("orders/paid", order(total_price=12.5), order_paid(total="12.5")),
    ("orders/paid", order(financial_status="refunded"), order_paid()),
    ("orders/paid", order(financial_status=None, processed_at=None, test=None), order_paid(at=None)),
    ("orders/paid", order(test=True), Ignored("A test order costs nothing.")),
    ("refunds/create", refund(7, 1001, moved("41.94")), back("41.94")),
    ("refunds/create", refund(7, 1001, moved("41.90"), moved(0.04), moved(8)), back("49.94")),
    ("refunds/create", refund(7, 1001), back("0", None)),
    ("refunds/create", refund(7, 1001, moved("9", status="pending")), NOT_RETURNED),
    ("refunds/create", refund(7, 1001, moved("9", status="pending"), moved("1")), NOT_RETURNED),
    ("refunds/create", refund(7, 1001, moved("9", status="failure"), moved("9", status="error")), NOT_RETURNED),
    ("refunds/create", refund(7, 1001, moved("9", status="failure"), moved("1")), back("1")),
    ("refunds/create", refund(7, 1001, moved("9", kind="void", status="pending"), moved("1")), back("1")),
    ("refunds/create", refund(7, 1001, moved("9", kind="sale"), moved("9", kind="void"), moved("1")), back("1")),
    ("refunds/create", refund(7, 1001, moved("9", currency=None)), back("9", None)),
    ("refunds/create", refund(7, 1001, moved("9", currency=None), moved("1")), back("10")),
    ("refunds/create", refund(7, 1001, moved("9", test=True), moved("1")), back("10")),
    (
        "refunds/create",
        refund(7, 1001, moved("9", test=True)),
        Ignored("A refund of a test order gives nothing back."),
    ),
    ("app_subscriptions/update", subscription(), renewed("2026-01-01")),
    ("app_subscriptions/update", subscription(plan_handle=None), renewed("2026-01-01")),
    ("app_subscriptions/update", subscription(plan_handle="lite-plan"), renewed("2026-01-01", 5)),
    ("app_subscriptions/update", subscription(name="Free"), renewed("2026-01-01", 0)),
    *[
        ("app_subscriptions/update", subscription(status=status), Ignored("Only an active subscription gives credits."))
        for status in ("PENDING", "CANCELLED", "DECLINED", "EXPIRED", "FROZEN")
    ],
    (
        "app_purchases_one_time/update",
        purchase(),
        InboundEvent(
            BOUGHT,
            {"payment_id": "1017262355", "credits": 1000},
            parse_time("2026-01-01T12:00:05Z"),
            "gid://shopify/AppPurchaseOneTime/1017262355",
        ),
    ),
    (
        "app_purchases_one_time/update",
        purchase(status="PENDING"),
        Ignored("Only an active purchase gives credits."),
    ),
    ("app/uninstalled", uninstalled(), Uninstalled()),
    ("customers/data_request", data_request(299938, 2**53 + 1), DataRequest("9999", ("299938", "9007199254740993"))),
    ("customers/data_request", {**data_request(), "data_request": None}, DataRequest(None, ())),
    ("customers/redact", customer_redact(299938, 280263), Redaction(("299938", "280263"))),
    ("customers/redact", customer_redact(), Redaction(())),
    ("shop/redact", shop_redact(), Redaction(None)),
]


@pytest.mark.parametrize(("topic", "body", "meaning"), MEANT)
def test_delivery_has_this_meaning(topic: str, body: Any, meaning: Any) -> None:
    found = reading(topic, body).meaning
    if isinstance(found, InboundEvent):  # a number with a fraction stays exact
        found = found._replace(data={name: str(v) if name == "total" else v for name, v in found.data.items()})
    assert found == meaning


@pytest.mark.parametrize(("topic", "body", "meaning"), MEANT)
def test_kept_part_has_the_same_meaning_and_nothing_personal(topic: str, body: Any, meaning: Any) -> None:
    found = reading(topic, body)
    assert PERSONAL in json.dumps(body) or "customer" not in body
    assert not any(text in found.kept for text in (PERSONAL, "191167", "555-625"))
    again = reading(topic, found.kept.encode())
    assert again.kept == found.kept
    assert repr(again.meaning).replace("Decimal('12.5')", "'12.5'") == repr(found.meaning).replace(
        "Decimal('12.5')", "'12.5'"
    )


def test_every_topic_is_tried() -> None:
    assert {topic for topic, _, _ in MEANT} == set(TOPICS)


@pytest.mark.parametrize(
    ("updated_at", "interval", "period"),
    [
        ("2026-01-01T12:00:00Z", "every_30_days", "2026-01-01"),
        ("2026-01-31T11:59:59.999999Z", "every_30_days", "2026-01-01"),
        ("2026-01-31T12:00:00Z", "EVERY_30_DAYS", "2026-01-31"),
        ("2026-03-02T07:00:00-05:00", "every_30_days", "2026-03-02"),
        ("2027-12-31T12:00:00Z", "every_30_days", "2027-12-22"),
        ("2026-12-31T12:00:00Z", "annual", "2026-01-01"),
        ("2027-01-01T12:00:00Z", "ANNUAL", "2027-01-01"),
        ("2025-12-31T12:00:00Z", "annual", "2026-01-01"),  # the clocks may differ
    ],
)
def test_L11_period_is_named_by_its_first_day(updated_at: str, interval: str, period: str) -> None:
    found = reading("app_subscriptions/update", subscription(updated_at=updated_at, interval=interval)).meaning
    assert isinstance(found, InboundEvent)
    assert found.window is not None
    begins, ends = found.window
    assert found == renewed(period, at=updated_at)._replace(window=(begins, ends))
    assert (format_time(begins)[:10], ends - begins) == (period, (365 if interval.lower() == "annual" else 30) * DAY)


def without(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != name}


@pytest.mark.parametrize(
    ("topic", "body", "pointer"),
    [
        *[("orders/paid", without(order(), name), f"/{name}") for name in ("id", "total_price", "currency")],
        *[
            ("orders/paid", order(total_price=wrong), "/total_price")
            for wrong in ("-1", "1e3", None, True, "1.1234567")
        ],
        *[("orders/paid", order(wrong), "/id") for wrong in (None, True, 1.5, "", "\x00")],
        *[
            ("orders/paid", order(financial_status=status), "/financial_status")
            for status in ("authorized", "pending", "partially_paid", "voided", "")
        ],
        ("orders/paid", order(currency="pounds"), "/currency"),
        ("orders/paid", order(processed_at="yesterday"), "/processed_at"),
        ("orders/paid", refund(7, 1001, moved("1")), "/total_price"),
        ("refunds/create", without(refund(7, 1001), "transactions"), "/transactions"),
        ("refunds/create", without(refund(7, 1001), "order_id"), "/order_id"),
        ("refunds/create", refund(7, 1001, moved("-1")), "/transactions/0/amount"),
        ("refunds/create", refund(7, 1001, moved("1"), moved("1", currency="EUR")), "/transactions"),
        ("app_subscriptions/update", {}, "/app_subscription"),
        ("app_subscriptions/update", subscription(admin_graphql_api_id="17"), "/app_subscription/admin_graphql_api_id"),
        ("app_subscriptions/update", subscription(interval=None), "/app_subscription/interval"),
        ("app_subscriptions/update", subscription(interval="weekly"), "/app_subscription/interval"),
        ("app_subscriptions/update", subscription(name="Unheard of"), "/app_subscription/name"),
        ("app_purchases_one_time/update", purchase(name="Unheard of"), "/app_purchase_one_time/name"),
        ("app_purchases_one_time/update", subscription(), "/app_purchase_one_time"),
        ("app/uninstalled", order(), "/myshopify_domain"),
        ("customers/redact", data_request(1), "/orders_to_redact"),
        ("customers/redact", shop_redact(), "/orders_to_redact"),
        ("customers/data_request", customer_redact(1), "/orders_requested"),
        # A header cannot turn the request of one customer into a request about all of them.
        ("shop/redact", customer_redact(1), "/customer"),
        ("shop/redact", data_request(1), "/customer"),
        ("shop/redact", uninstalled(), "/shop_domain"),
        ("orders/paid", b'"my secret message"', ""),
        ("orders/paid", b"[]", ""),
        ("orders/paid", b"", ""),
        ("orders/paid", b"{", ""),
        ("orders/paid", b"\xff", ""),
        ("orders/paid", b"[" * 33 + b"]" * 33, ""),
        ("orders/paid", b'{"id": NaN}', ""),
    ],
)
def test_body_of_another_topic_is_malformed(topic: str, body: Any, pointer: str) -> None:
    with pytest.raises(Invalid) as refused:
        reading(topic, body)
    assert pointer in [fault.pointer for fault in refused.value.faults]


@pytest.mark.parametrize("note", ["\x00", "\ud800", "ä" * 1000])
def test_faults_in_unused_fields_are_ignored(note: str) -> None:
    body = json.dumps(order(note=note, test=None)).encode()
    assert reading("orders/paid", body).meaning == order_paid()
    assert reading("orders/paid", body[:-1] + b', "note": 1e999, "tags": "", "tags": ""}').meaning == order_paid()


def test_lone_surrogate_can_be_kept() -> None:
    found = reading("app_subscriptions/update", subscription(interval="annual", plan_handle="\ud800\x00"))
    assert reading("app_subscriptions/update", found.kept.encode()).meaning == found.meaning


def test_unused_topic_is_ignored_whatever_its_body() -> None:
    assert isinstance(reading("products/update", b"\xff").meaning, Ignored)


PAGE = f"https://{SHOP}/74392404278/orders/2979b599ca9a25049397820ac12aaf87/authenticate?key=secret"


@pytest.mark.parametrize(
    ("topic", "body", "shop"),
    [
        ("orders/paid", order(), None),
        ("orders/paid", order(order_status_url=PAGE), SHOP),
        ("orders/paid", order(order_status_url=PAGE.replace(SHOP, "shop.example")), None),
        ("orders/paid", order(order_status_url=f"https://{SHOP}.evil.example/1/orders/x"), None),
        ("orders/paid", order(order_status_url="nonsense"), None),
        ("refunds/create", refund(7, 1001), None),
        ("app_subscriptions/update", subscription(), None),
        ("app_purchases_one_time/update", purchase(), None),
        ("app/uninstalled", uninstalled("Example.MyShopify.com"), SHOP),
        ("customers/data_request", data_request(), SHOP),
        ("customers/redact", customer_redact(), SHOP),
        ("customers/redact", customer_redact(shop="{shop}.myshopify.com"), None),
        ("shop/redact", shop_redact(), SHOP),
    ],
)
def test_body_names_its_shop(topic: str, body: Any, shop: str | None) -> None:
    found = reading(topic, body)
    assert found.shop == shop
    assert "key=secret" not in found.kept


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        (SHOP, SHOP),
        ("A-1.MyShopify.COM", "a-1.myshopify.com"),
        *[
            (wrong, None)
            for wrong in (
                *(None, "", "myshopify.com", ".myshopify.com", "-a.myshopify.com", "a.b.myshopify.com"),
                *("a.myshopify.com.evil.example", "a.myshopify.com\n", "ä.myshopify.com", "a.myshopifyxcom"),
                *("https://a.myshopify.com", "a" * 64 + ".myshopify.com"),
            )
        ],
    ],
)
def test_shop_is_named_by_its_myshopify_domain(text: str | None, domain: str | None) -> None:
    assert shop_domain(text) == domain


def test_published_signature_vector_is_valid() -> None:
    """The vector is from bold-commerce/go-shopify."""
    body, signature = b'"my secret message"', b"hMTq0K2x7oyOjoBwGYeTj5oxfnaVYXzbanUG9aajpKI="
    assert is_signed(body, [signature], ["hush"])
    assert is_signed(body, [signature], ["new", "hush"])
    assert is_signed(body, [signature], ["hush", "old"])


def test_other_signatures_are_invalid() -> None:
    body = b"{}"
    good = b64encode(digest(b"hush", body, sha256))
    wrong: list[list[bytes]] = [
        [],
        [b""],
        [good, good],
        [good[:-1]],
        [good + b"="],
        [good.lower()],
        [digest(b"hush", body, sha256).hex().encode()],
        [b64encode(digest(b"hush", body + b"\n", sha256))],
        [b64encode(digest(b"", body, sha256))],
        [b"\xff"],
    ]
    assert is_signed(body, [good], ["hush"])
    assert not any(is_signed(body, one, ["hush", "old"]) for one in wrong)
    assert not is_signed(body, [good], [])
