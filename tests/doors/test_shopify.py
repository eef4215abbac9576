"""Shopify's deliveries through the route: the outcome of each, also early, late, repeated or forged."""

import asyncio
import json
from base64 import b64decode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from structlog.testing import capture_logs

from credit_service.doors.shopify import Credits
from credit_service.doors.shopify_inbox import Inbox
from credit_service.ledger.proof import verify
from credit_service.messages.dead_letters import published
from credit_service.posting import Overloaded
from credit_service.storage.engine import BadRow, OutcomeUnknown, StorageUnavailable
from credit_service.storage.erasing import Erasing
from credit_service.storage.letters import Letter, LetterQuery, Letters
from credit_service.storage.shops import Shops
from tests.doors.running import Running, delivery, new_merchant
from tests.doors.shopify_bodies import (
    PERSONAL,
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
from tests.storage.engines import Ledgers

SECRET, PREVIOUS = "hush", "hush-hush"
DAY = 86_400 * 1_000_000
SETTINGS: dict[str, Any] = {
    "shopify_webhook_secret": SECRET,
    "shopify_webhook_secret_previous": PREVIOUS,
    "shopify_plan_credits": {"Pro": 500},
    "shopify_purchase_credits": {"1000 credits": 1000},
    "order_credit_fixed_amount": 0,
    "order_credit_percentage": 10,
    "sweep_seconds": 86_400,  # it catches up once at the start, before any delivery
}


@pytest.fixture(scope="module")
def running(ledgers: Ledgers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service that takes Shopify's deliveries. Tests share it, each with shops and merchants of its own."""
    with (
        ledgers.new(tmp_path_factory.mktemp("shopify")) as url,
        Running(database_url=url, **SETTINGS) as service,
    ):
        yield service


class Shop:
    """A shop of one test, with methods that deliver as Shopify does."""

    def __init__(self, running: Running, *, linked: bool = True) -> None:
        self.running = running
        self.domain = f"{uuid4().hex}.myshopify.com"
        self.merchant = new_merchant()
        self.number = uuid4().int % 10**18
        if linked:
            self.link()

    def link(self, merchant: str | None = None) -> httpx2.Response:
        body = {"merchant_id": merchant or self.merchant}
        answer = self.running.call("PUT", f"/credits/shops/{self.domain}", json=body)
        assert answer.status_code == 200, answer.text
        return answer

    def shown(self) -> Any:
        answer = self.running.get(f"/credits/shops/{self.domain}", "admin")
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def send(self, topic: str | None, body: Any, secret: str = SECRET, **more: Any) -> httpx2.Response:
        """Deliver a body; `more` are headers, and None removes one."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = delivery(topic, raw, secret, self.domain) | {"content-type": "application/json"}
        for name, value in more.items():
            headers.pop(name.replace("_", "-"), None)
            if value is not None:
                headers[name.replace("_", "-")] = value
        return self.running.call("POST", "/webhooks/shopify", None, content=raw, headers=headers)

    def outcome(self, topic: str, body: Any, **more: Any) -> str:
        """The outcome of a delivery that was answered 200."""
        answer = self.send(topic, body, **more)
        assert answer.status_code == 200, answer.text
        assert list(answer.json()) == ["data", "meta"]
        return str(answer.json()["data"]["outcome"])

    def history(self) -> list[Any]:
        """The transactions of the merchant, oldest first."""
        answer = self.running.get("/credits/transactions", params={"merchant_id": self.merchant, "limit": 200})
        return [] if answer.status_code == 404 else list(reversed(answer.json()["data"]))

    def keys(self) -> list[str]:
        return [transaction["idempotency_key"] for transaction in self.history()]

    def letters(self) -> list[Letter]:
        """The dead letters of this shop, oldest first."""
        found = self.running.run(Letters(self.running.service.engine).page(LetterQuery(), None, 1000))
        return [one for one in reversed(found) if one.original is not None and self.domain.encode() in one.original]

    @property
    def inbox(self) -> Inbox:
        return self.running.service.inbox

    def bought(self, body: dict[str, Any]) -> dict[str, Any]:
        """A purchase or subscription with an id of this shop's own."""
        ((name, kind),) = body.items()
        gid = kind["admin_graphql_api_id"].rpartition("/")[0]
        return {name: {**kind, "admin_graphql_api_id": f"{gid}/{self.number}"}}

    def catch_up(self) -> None:
        """Run one round of the job that catches up."""
        self.running.run(self.inbox.catch_up())


@pytest.fixture
def shop(running: Running) -> Shop:
    """A linked shop."""
    return Shop(running)


@pytest.fixture
def stranger(running: Running) -> Shop:
    """A shop without a link."""
    return Shop(running, linked=False)


# ---- the effect of each topic


def test_order_costs_credits_and_its_refund_returns_them(shop: Shop) -> None:
    assert shop.outcome("orders/paid", order(2**53 + 1)) == "posted"
    assert shop.outcome("refunds/create", refund(2**60 + 1, 2**53 + 1, moved("40.00"))) == "posted"
    paid, back = shop.history()
    assert (paid["transaction_type"], paid["amount"]) == ("ORDER_PAID", 10)
    assert (paid["idempotency_key"], paid["actor"]) == ("shopify:order:9007199254740993", "shopify")
    assert paid["occurred_at"] == "2026-11-22T15:45:00.000000Z"
    assert paid["metadata"] == {"shop": shop.domain}
    assert (back["transaction_type"], back["amount"]) == ("ORDER_REFUNDED", 4)
    assert back["idempotency_key"] == "shopify:refund:1152921504606846977"


def test_order_already_sent_as_event_is_replayed(shop: Shop, running: Running) -> None:
    event = {"specversion": "1.0", "id": "1", "source": "s", "type": "evt.shopify.webhook.order_paid"}
    data = {"merchant_id": shop.merchant, "order_id": "1001", "total": 100, "currency": "GBP"}
    assert running.tell({**event, "data": data}).status_code == 200
    assert shop.outcome("orders/paid", order(1001)) == "replayed"
    assert shop.keys() == ["shopify:order:1001"]


def test_refund_before_its_order_is_parked(shop: Shop) -> None:
    assert shop.outcome("refunds/create", refund(7, 1, moved("100"))) == "parked"
    assert shop.outcome("orders/paid", order(1)) == "posted"
    assert [transaction["amount"] for transaction in shop.history()] == [10, 10]
    assert shop.outcome("refunds/create", refund(7, 1, moved("100"))) == "replayed"


def test_refund_whose_money_is_pending_leaves_its_key_free(shop: Shop) -> None:
    shop.outcome("orders/paid", order(1))
    assert shop.outcome("refunds/create", refund(7, 1, moved("100", status="pending"))) == "ignored"
    assert shop.outcome("refunds/create", refund(7, 1, moved("100"))) == "posted"
    assert [transaction["amount"] for transaction in shop.history()] == [10, 10]


def test_L11_each_period_of_a_subscription_counts_once(shop: Shop) -> None:
    times = ["2026-01-01T12:00:05Z", "2026-01-20T00:00:00Z", "2026-02-05T00:00:00Z", "2026-02-06T00:00:00Z"]
    taken = [shop.outcome("app_subscriptions/update", shop.bought(subscription(updated_at=at))) for at in times]
    assert taken == ["posted", "replayed", "posted", "replayed"]
    assert shop.keys() == [
        f"billing:subscription:{shop.number}:2026-01-01",
        f"billing:subscription:{shop.number}:2026-01-31",
    ]
    assert {one["transaction_type"] for one in shop.history()} == {"SUBSCRIPTION"}
    assert shop.running.balance(shop.merchant) == 1000


def test_L11_plans_of_one_billing_window_give_the_best_of_them(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shop.inbox, "_credits", Credits({"Pro": 500, "Basic": 100}))

    def subscribe(number: int, plan: str, day: int) -> str:
        at = f"2026-11-{day:02}T10:00:00Z"
        gid = f"gid://shopify/AppSubscription/{shop.number}{number}"
        more = {"admin_graphql_api_id": gid, "name": plan, "plan_handle": None, "created_at": at, "updated_at": at}
        return shop.outcome("app_subscriptions/update", subscription(**more))

    plans = [("Basic", 1), ("Pro", 1), ("Basic", 2), ("Pro", 15), ("Basic", 30)]
    for number, (plan, day) in enumerate(plans):
        if number == 3:  # the shop uninstalls the app, and installs it again
            shop.outcome("app/uninstalled", uninstalled(shop.domain))
            shop.link()
        assert subscribe(number, plan, day) == "posted"
    given = [(one["amount"], one["shortfall"]) for one in shop.history()]
    assert given == [(100, 0), (400, 100), (0, 100), (0, 500), (0, 100)]
    assert shop.running.balance(shop.merchant) == 500


def test_purchase_is_posted_as_payment(shop: Shop) -> None:
    assert shop.outcome("app_purchases_one_time/update", purchase(status="PENDING")) == "ignored"
    assert shop.outcome("app_purchases_one_time/update", shop.bought(purchase())) == "posted"
    assert shop.outcome("app_purchases_one_time/update", shop.bought(purchase())) == "replayed"
    (payment,) = shop.history()
    assert (payment["transaction_type"], payment["amount"]) == ("PAYMENT", 1000)
    assert payment["idempotency_key"] == f"billing:payment:{shop.number}"


TAKEN = "Another merchant was credited for this purchase or subscription."


@pytest.mark.parametrize(
    ("topic", "body"),
    [("app_purchases_one_time/update", purchase()), ("app_subscriptions/update", subscription())],
)
def test_second_merchant_of_a_purchase_is_refused(topic: str, body: Any, shop: Shop, running: Running) -> None:
    other, bought = Shop(running), shop.bought(body)
    assert shop.outcome(topic, bought) == "posted"
    for _ in range(2):
        refused = other.send(topic, bought).json()["data"]
        assert refused == {"outcome": "refused", "reason": TAKEN, "code": "idempotency_key_reused"}
    assert other.history() == []
    assert [letter.code for letter in other.letters()] == ["idempotency_key_reused"]
    assert shop.outcome(topic, bought) == "replayed"


def test_second_merchant_is_refused_for_every_period_of_a_subscription(shop: Shop, running: Running) -> None:
    other, topic, later = Shop(running), "app_subscriptions/update", "2026-02-05T00:00:00Z"
    assert shop.outcome(topic, shop.bought(subscription())) == "posted"
    assert other.outcome(topic, shop.bought(subscription(updated_at=later))) == "refused"
    assert shop.outcome(topic, shop.bought(subscription(updated_at=later))) == "posted"


def test_shop_linked_to_another_merchant_brings_its_next_period(shop: Shop) -> None:
    topic, later = "app_subscriptions/update", "2026-02-05T00:00:00Z"
    assert shop.outcome(topic, shop.bought(subscription())) == "posted"
    shop.link(second := new_merchant())
    assert shop.outcome(topic, shop.bought(subscription())) == "refused", (
        "this period was credited to the first merchant"
    )
    assert shop.outcome(topic, shop.bought(subscription(updated_at=later))) == "posted"
    assert shop.running.balance(second) == 500


def test_shop_under_a_new_name_keeps_its_purchases(shop: Shop, running: Running) -> None:
    renamed = Shop(running, linked=False)
    renamed.link(shop.merchant)
    assert shop.outcome("app_purchases_one_time/update", shop.bought(purchase())) == "posted"
    assert renamed.outcome("app_purchases_one_time/update", shop.bought(purchase())) == "replayed"


def test_racing_merchants_of_a_purchase_are_credited_once(running: Running) -> None:
    shops = [Shop(running) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        body = shops[0].bought(purchase())
        outcomes = list(threads.map(lambda shop: shop.outcome("app_purchases_one_time/update", body), shops))
    assert sorted(outcomes) == ["posted", *["refused"] * 7]


def test_uninstalled_shop_keeps_account_and_credits(shop: Shop, running: Running) -> None:
    assert shop.outcome("app_purchases_one_time/update", shop.bought(purchase())) == "posted"
    assert shop.shown()["uninstalled_at"] is None
    assert shop.outcome("app/uninstalled", uninstalled(shop.domain)) == "noted"
    assert shop.shown()["uninstalled_at"] is not None
    assert running.balance(shop.merchant) == 1000
    status = running.get(f"/credits/plugin-status/{shop.merchant}").json()["data"]["status"]
    assert status == "enabled"
    assert shop.outcome("orders/paid", order(1)) == "posted"  # it is older than the uninstallation, and arrives late
    shop.link()  # installed again
    assert shop.shown()["uninstalled_at"] is None


@pytest.mark.parametrize(
    ("topic", "body"),
    [
        ("orders/paid", order(test=True)),
        ("refunds/create", refund(7, 1, moved("1", test=True))),
        ("app_subscriptions/update", subscription(status="CANCELLED")),
        ("orders/create", order()),
        ("products/update", {}),
    ],
)
def test_delivery_without_effect_is_ignored(shop: Shop, topic: str, body: Any) -> None:
    answer = shop.send(topic, body)
    assert (answer.status_code, answer.json()["data"]["outcome"]) == (200, "ignored")
    assert answer.json()["data"]["reason"].endswith(".")
    assert (shop.history(), shop.letters()) == ([], [])


# ---- signatures


def test_both_secrets_are_valid_during_rotation(shop: Shop) -> None:
    assert shop.outcome("orders/paid", order(1), secret=SECRET) == "posted"
    assert shop.outcome("orders/paid", order(2), secret=PREVIOUS) == "posted"


@pytest.mark.parametrize(
    "changed",
    [
        {"secret": "guessed"},
        {"secret": ""},
        {"x_shopify_hmac_sha256": None},
        {"x_shopify_hmac_sha256": ""},
        {"x_shopify_hmac_sha256": "AAAA"},
        {"secret": "guessed", "x_shopify_topic": None},
    ],
)
def test_wrong_signature_is_refused(shop: Shop, changed: dict[str, Any]) -> None:
    answer = shop.send("orders/paid", order(1), **changed)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"].startswith("Shopify-Hmac-Sha256")
    assert (shop.history(), shop.letters()) == ([], [])


def test_changed_body_is_refused(shop: Shop) -> None:
    signed = delivery("orders/paid", json.dumps(order(1)).encode(), SECRET)
    answer = shop.send("orders/paid", order(2), x_shopify_hmac_sha256=signed["x-shopify-hmac-sha256"])
    assert answer.status_code == 401


def test_two_signatures_are_refused(shop: Shop) -> None:
    body = json.dumps(order(1)).encode()
    lines = [f"{name}: {value}" for name, value in delivery("orders/paid", body, SECRET, shop.domain).items()]
    again = [line for line in lines if "hmac" in line]
    head = "\r\n".join(["POST /api/v1/webhooks/shopify HTTP/1.1", "host: a", f"content-length: {len(body)}"])
    for more, status in (([], 200), (again, 401)):
        with shop.running.connection() as connection:
            connection.send("\r\n".join([head, *lines, *more, "", ""]).encode() + body)
            assert connection.answer()[0] == status


def test_route_is_absent_without_a_secret(start: Callable[..., Running]) -> None:
    shop = Shop(start())
    for secret in (SECRET, ""):
        answer = shop.send("orders/paid", order(1), secret)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer cs_x"}])
def test_deliveries_are_rate_limited_by_address(start: Callable[..., Running], headers: dict[str, str]) -> None:
    limits = {"rate_limit_enabled": True, "rate_limit_address_per_second": 0.001, "rate_limit_address_burst": 2}
    shop = Shop(start(**SETTINGS, **limits))
    answers = [shop.send("orders/paid", order(number), **headers) for number in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]


def test_body_is_limited_to_one_mebibyte(shop: Shop) -> None:
    body = json.dumps(order(1)).encode()
    whole = body[:-1] + b" " * (1024 * 1024 - len(body)) + b"}"
    assert shop.outcome("orders/paid", whole) == "posted"
    answer = shop.send("orders/paid", whole + b" ")
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("media_type", [None, "text/plain", "application/json; charset=utf-8"])
def test_media_type_of_a_signed_body_does_not_matter(shop: Shop, media_type: str | None) -> None:
    assert shop.outcome("orders/paid", order(1), content_type=media_type) == "posted"


@pytest.mark.parametrize(
    ("changed", "pointer"),
    [
        ({"x_shopify_topic": None}, "/header/X-Shopify-Topic"),
        ({"x_shopify_shop_domain": None}, "/header/X-Shopify-Shop-Domain"),
        ({"x_shopify_shop_domain": "evil.example"}, "/header/X-Shopify-Shop-Domain"),
    ],
)
def test_delivery_without_topic_or_shop_is_malformed(shop: Shop, changed: dict[str, Any], pointer: str) -> None:
    answer = shop.send("orders/paid", order(1), **changed)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]


# ---- headers, which are not signed


def test_duplicate_is_recognised_whatever_its_headers(shop: Shop) -> None:
    assert shop.outcome("orders/paid", order(1), x_shopify_webhook_id="a", x_shopify_event_id="a") == "posted"
    again = {"x_shopify_webhook_id": "b", "x_shopify_event_id": "b", "x_shopify_triggered_at": "2030-01-01T00:00:00Z"}
    assert shop.outcome("orders/paid", order(1, note="sent again"), **again) == "replayed"
    assert shop.outcome("orders/paid", order(1), x_shopify_shop_domain=shop.domain.upper()) == "replayed"
    assert shop.keys() == ["shopify:order:1"]


def test_shop_in_the_body_comes_before_the_header(shop: Shop, running: Running) -> None:
    other = Shop(running)
    page = f"https://{shop.domain}/548380009/orders/x/authenticate?key=k"
    assert other.outcome("orders/paid", order(1, order_status_url=page)) == "posted"
    assert other.outcome("orders/paid", order(2, order_status_url=page), x_shopify_shop_domain=None) == "posted"
    assert other.outcome("app/uninstalled", uninstalled(shop.domain)) == "noted"
    assert (shop.keys(), other.history()) == (["shopify:order:1", "shopify:order:2"], [])
    assert [one.shown()["uninstalled_at"] is None for one in (shop, other)] == [False, True]


def test_order_from_an_unlinked_site_belongs_to_the_header(shop: Shop, stranger: Shop) -> None:
    for number, host in enumerate((stranger.domain, "shop.example")):
        page = f"https://{host}/548380009/orders/x/authenticate?key=k"
        assert shop.outcome("orders/paid", order(number, order_status_url=page)) == "posted"
    assert shop.keys() == ["shopify:order:0", "shopify:order:1"]
    page = f"https://{stranger.domain}/548380009/orders/x/authenticate?key=k"
    assert stranger.outcome("orders/paid", order(3, order_status_url=page), x_shopify_shop_domain=None) == "parked"
    stranger.link()
    assert stranger.keys() == ["shopify:order:3"]


def test_erasure_for_one_shop_spares_another(shop: Shop, stranger: Shop) -> None:
    assert shop.outcome("orders/paid", order(1)) == "posted"
    for topic, body in (
        ("shop/redact", shop_redact(stranger.domain)),
        ("customers/redact", customer_redact(1, shop=stranger.domain)),
    ):
        assert shop.outcome(topic, body) == "noted"
    shop.catch_up()
    assert remembered(shop) == ["shopify:order:1"]


# ---- dead letters


@pytest.mark.parametrize(
    ("topic", "body"),
    [
        ("orders/paid", order(1, financial_status="pending")),
        ("orders/paid", order(1, currency=None)),
        ("orders/paid", order("x" * 250)),
        ("app_subscriptions/update", subscription(name="Unheard of")),
        ("refunds/create", b"{"),
        ("shop/redact", customer_redact(1)),
    ],
)
def test_signed_malformed_body_becomes_a_dead_letter(shop: Shop, topic: str, body: Any) -> None:
    for _ in range(2):
        answer = shop.send(topic, body)
        assert (answer.status_code, answer.json()["data"]["outcome"]) == (200, "refused")
        assert answer.json()["data"]["reason"]
        assert answer.json()["data"]["code"] == "validation_failed"
    (letter,) = shop.letters()
    assert (letter.code, letter.subject) == ("validation_failed", f"shopify.webhook.{topic.replace('/', '.')}")
    original = json.loads(letter.original or b"")
    assert (original["shop"], original["topic"]) == (shop.domain, topic)
    assert set(original) in ({"shop", "topic", "raw"}, {"shop", "topic", "body"})


def test_dead_letter_of_wrong_currency_holds_nothing_personal(shop: Shop) -> None:
    assert shop.outcome("orders/paid", order(1)) == "posted"
    assert shop.outcome("refunds/create", refund(7, 1, moved("5", currency="EUR"))) == "refused"
    (letter,) = shop.letters()
    assert (letter.code, len(shop.history())) == ("currency_mismatch", 1)
    message = json.loads(published(letter))
    assert message["subject"] == "shopify.webhook.refunds.create"
    original = json.loads(b64decode(message["original"]))
    assert original["body"]["transactions"][0]["amount"] == "5"
    assert PERSONAL not in json.dumps(original)


def test_fact_without_an_account_becomes_a_dead_letter(start: Callable[..., Running]) -> None:
    shop = Shop(start(**SETTINGS, accounts_auto_create=False))
    assert shop.outcome("orders/paid", order(1)) == "refused"
    assert [letter.code for letter in shop.letters()] == ["account_not_found"]


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (StorageUnavailable("gone"), "storage_unavailable"),
        (OutcomeUnknown("perhaps"), "outcome_unknown"),
        (Overloaded(), "overloaded"),
    ],
)
def test_transient_failure_asks_shopify_to_repeat(
    shop: Shop, failure: Exception, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(command: Any) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(shop.running.service.posting, "submit", fails)
        answer = shop.send("orders/paid", order(1))
    assert (answer.status_code, answer.json()["code"]) == (503, code)
    assert "retry-after" in answer.headers
    assert shop.letters() == []
    assert shop.outcome("orders/paid", order(1)) == "posted"


def test_row_that_the_database_refuses_becomes_a_dead_letter(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuses(command: Any) -> None:
        raise BadRow("a check")

    with monkeypatch.context() as patch:
        patch.setattr(shop.running.service.posting, "submit", refuses)
        assert shop.outcome("orders/paid", order(1)) == "refused"
    assert [letter.code for letter in shop.letters()] == ["internal"]


# ---- shops that are not linked yet


def test_deliveries_before_the_link_are_applied_in_order(stranger: Shop) -> None:
    for number in (3, 1, 2):
        assert stranger.outcome("orders/paid", order(number)) == "parked"
    assert stranger.outcome("orders/paid", order(3)) == "parked"
    assert stranger.outcome("refunds/create", refund(7, 1, moved("50"))) == "parked"
    assert stranger.history() == []
    stranger.link()
    assert stranger.keys() == ["shopify:order:3", "shopify:order:1", "shopify:order:2", "shopify:refund:7"]
    assert stranger.running.run(Shops(stranger.running.service.engine).kept(stranger.domain)) == []
    assert stranger.outcome("orders/paid", order(1)) == "replayed"


def test_shop_without_a_link_is_logged_once_counted_and_shown(stranger: Shop) -> None:
    with capture_logs() as logs:
        for number in (1, 2, 2):
            stranger.outcome("orders/paid", order(number))
    (told,) = [entry for entry in logs if entry["event"] == "shopify_shop_unlinked"]
    assert (told["shop"], told["log_level"]) == (stranger.domain, "warning")
    running = stranger.running
    assert "credits_parked_events 2.0" in running.client.get("/metrics").text
    shown = running.get("/health/detailed").json()["data"]["components"]["shopify"]
    assert shown == {"status": "ok", "waiting": 2, "unlinked_shops": [stranger.domain]}
    stranger.link()
    assert "credits_parked_events 0.0" in running.client.get("/metrics").text
    shown = running.get("/health/detailed").json()["data"]["components"]["shopify"]
    assert shown == {"status": "ok", "waiting": 0, "unlinked_shops": []}


def test_crash_between_link_and_apply_loses_nothing(stranger: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stranger.outcome("orders/paid", order(1)) == "parked"

    async def crashed(self: Inbox) -> bool:
        raise StorageUnavailable("gone")

    with monkeypatch.context() as patch:
        patch.setattr(Inbox, "catch_up", crashed)
        stranger.link()
    assert stranger.history() == []
    stranger.catch_up()
    assert stranger.keys() == ["shopify:order:1"]


def test_crash_between_apply_and_drop_counts_nothing_twice(stranger: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stranger.running.service.engine
    assert stranger.outcome("orders/paid", order(1)) == "parked"

    async def crashed(*_: Any) -> None:
        raise StorageUnavailable("gone")

    with monkeypatch.context() as patch:
        patch.setattr(Shops, "drop", crashed)
        stranger.link()
    assert stranger.keys() == ["shopify:order:1"]
    assert len(stranger.running.run(Shops(store).kept(stranger.domain))) == 1
    stranger.catch_up()
    assert stranger.keys() == ["shopify:order:1"]
    assert stranger.running.run(Shops(store).kept(stranger.domain)) == []


def test_failing_delivery_is_retried_without_delaying_others(stranger: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2, 3):
        assert stranger.outcome("orders/paid", order(number)) == "parked"
    posting = stranger.running.service.posting
    submit = posting.submit

    async def second_fails(command: Any) -> Any:
        if command.key == "shopify:order:2":
            raise Overloaded
        return await submit(command)

    with monkeypatch.context() as patch:
        patch.setattr(posting, "submit", second_fails)
        stranger.link()
    assert stranger.keys() == ["shopify:order:1", "shopify:order:3"]
    stranger.catch_up()
    assert stranger.keys() == ["shopify:order:1", "shopify:order:3", "shopify:order:2"]


def test_service_catches_up_at_its_start(start: Callable[..., Running]) -> None:
    running = start(**{**SETTINGS, "sweep_seconds": 0.01})
    shop = Shop(running, linked=False)
    assert shop.outcome("orders/paid", order(1)) == "parked"
    store = running.service.engine

    async def linked_elsewhere() -> None:
        """Keep a delivery, as a process that stopped before it applied it."""
        await Shops(store).link(shop.domain, shop.merchant, await store.now())
        async with asyncio.timeout(20):
            while await Shops(store).kept(shop.domain):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    running.run(linked_elsewhere())
    assert shop.keys() == ["shopify:order:1"]


def later(running: Running, monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    """Set the database's clock ahead by so many days."""
    shops = running.service.inbox._shops
    now = shops.now

    async def ahead() -> int:
        return await now() + round(days * DAY)

    monkeypatch.setattr(shops, "now", ahead)


def test_deliveries_of_an_unlinked_shop_become_dead_letters(stranger: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    running = stranger.running
    assert stranger.outcome("orders/paid", order(1)) == "parked"
    assert stranger.outcome("shop/redact", shop_redact(stranger.domain)) == "noted"
    dead = running.service.metrics._dead_letters
    with monkeypatch.context() as patch:
        later(running, patch, 6.9)
        stranger.catch_up()
        assert stranger.letters() == []
    before = dead._value.get()
    with monkeypatch.context() as patch:
        later(running, patch, 7.1)
        stranger.catch_up()
        counted = dead._value.get()
        stranger.catch_up()
    assert {(letter.code, letter.subject) for letter in stranger.letters()} == {
        ("shop_not_found", "shopify.webhook.orders.paid"),
        ("shop_not_found", "shopify.webhook.shop.redact"),
    }
    assert len(stranger.letters()) == 2
    assert dead._value.get() == counted >= before + 2
    assert PERSONAL not in str([letter.original for letter in stranger.letters()])
    stranger.link()
    assert stranger.history() == []


def test_dead_letter_is_replayed_after_correction(stranger: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stranger.outcome("orders/paid", order(1)) == "parked"
    assert stranger.outcome("app_subscriptions/update", stranger.bought(subscription(name="New"))) == "refused"
    with monkeypatch.context() as patch:
        later(stranger.running, patch, 7.1)
        stranger.catch_up()

    def replayed() -> list[str]:
        return [stranger.running.run(stranger.inbox.replay(letter.original or b"")).outcome for letter in letters]

    letters = stranger.letters()
    assert {letter.code for letter in letters} == {"shop_not_found", "validation_failed"}
    assert sorted(replayed()) == ["parked", "refused"]
    stranger.link()
    assert sorted(replayed()) == ["refused", "replayed"]
    monkeypatch.setitem(stranger.running.service.settings.shopify_plan_credits, "New", 7)
    assert sorted(replayed()) == ["posted", "replayed"]
    assert stranger.letters() == letters
    assert len(stranger.history()) == 2


def test_unknown_plan_becomes_a_dead_letter(stranger: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stranger.outcome("app_subscriptions/update", stranger.bought(subscription())) == "parked"
    with monkeypatch.context() as patch:
        patch.setitem(stranger.running.service.settings.shopify_plan_credits, "Pro", None)
        stranger.link()
    assert [letter.code for letter in stranger.letters()] == ["validation_failed"]


# ---- shops


def test_shop_is_linked_shown_and_unlinked(stranger: Shop) -> None:
    path = f"/credits/shops/{stranger.domain}"
    running = stranger.running
    first = stranger.link().json()
    assert list(first) == ["data", "meta"]
    assert list(first["data"]) == ["shop_domain", "merchant_id", "linked_at", "uninstalled_at", "data_requests"]
    assert (first["data"]["shop_domain"], first["data"]["merchant_id"]) == (stranger.domain, stranger.merchant)
    assert stranger.link().json()["data"] == stranger.shown() == first["data"]  # a repeat gives the same answer
    assert running.get(path.replace(stranger.domain, stranger.domain.upper()), "admin").json()["data"] == first["data"]
    assert running.call("DELETE", path).json()["data"] == first["data"]
    for method in ("GET", "DELETE"):
        answer = running.call(method, path)
        assert (answer.status_code, answer.json()["code"]) == (404, "shop_not_found")
    assert stranger.outcome("orders/paid", order(1)) == "parked"
    other = new_merchant()
    stranger.link(other)
    assert stranger.shown()["merchant_id"] == other
    assert running.sequence(other) == 1


def test_relinked_shop_belongs_to_the_new_merchant(shop: Shop) -> None:
    assert shop.outcome("orders/paid", order(1)) == "posted"
    before, shop.merchant = shop.merchant, new_merchant()
    shop.link()
    assert shop.outcome("orders/paid", order(2)) == "posted"
    assert shop.keys() == ["shopify:order:2"]
    shop.merchant = before
    assert shop.keys() == ["shopify:order:1"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize("domain", ["shop.example", "myshopify.com", "a.b.myshopify.com", "a.myshopify.com%0A", "%00"])
def test_domain_outside_myshopify_is_refused(running: Running, method: str, domain: str) -> None:
    more: dict[str, Any] = {"json": {"merchant_id": new_merchant()}} if method == "PUT" else {}
    answer = running.call(method, f"/credits/shops/{domain}", **more)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/path/shop_domain"]


@pytest.mark.parametrize("body", [{}, {"merchant_id": "x/y"}, {"merchant_id": None}, {"merchant": "x"}, []])
def test_shop_is_linked_only_to_a_merchant_id(running: Running, body: Any) -> None:
    answer = running.call("PUT", f"/credits/shops/{uuid4().hex}.myshopify.com", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")


# ---- privacy


def test_data_requests_are_shown_with_the_shop(shop: Shop) -> None:
    for _ in range(2):
        assert shop.outcome("customers/data_request", data_request(299938, 2**53 + 1, shop=shop.domain)) == "noted"
    (asked,) = shop.shown()["data_requests"]
    assert (asked["id"], asked["orders"]) == ("9999", ["299938", "9007199254740993"])
    shop.catch_up()
    assert len(shop.shown()["data_requests"]) == 1
    assert shop.outcome("customers/data_request", data_request(shop=shop.domain, request=10)) == "noted"
    assert [one["id"] for one in shop.shown()["data_requests"]] == ["9999", "10"]
    assert shop.outcome("shop/redact", shop_redact(shop.domain)) == "noted"
    shop.catch_up()
    assert shop.shown()["data_requests"] == []


def personal(shop: Shop, type_: str, key: str, **data: Any) -> dict[str, Any]:
    """An event with personal metadata."""
    metadata = {"metadata": {"email": PERSONAL, "about": key}}
    data = {"merchant_id": shop.merchant, **data, **metadata}
    return {"specversion": "1.0", "id": uuid4().hex, "source": "s", "type": type_, "data": data}


def remembered(shop: Shop) -> list[str]:
    """The keys of transactions that have metadata. Every chain must verify."""
    verified = shop.running.run(_faults(shop))
    assert verified == []
    return [one["idempotency_key"] for one in shop.history() if one["metadata"] is not None]


async def _faults(shop: Shop) -> list[Any]:
    found: list[Any] = []
    async for books in shop.running.service.engine.books([shop.merchant]):
        found += [*verify(books.account, books.grants, books.transactions), *books.faults]
    return found


def test_L15_customer_is_erased_and_the_chain_verifies(shop: Shop) -> None:
    running = shop.running
    paid, refunded = "evt.shopify.webhook.order_paid", "evt.shopify.webhook.order_refunded"
    events = [
        personal(shop, paid, "1", order_id=2**53 + 1, total="100"),
        personal(shop, refunded, "2", refund_id=7, order_id=2**53 + 1, refund_amount="10"),
        personal(shop, paid, "3", order_id=2, total="100"),
        personal(shop, "evt.billing.payment_succeeded", "4", payment_id=1, credits=5),
        personal(shop, refunded, "5", refund_id=8, order_id=3, refund_amount="10"),
    ]
    assert running.tell(events).status_code == 200
    keys = remembered(shop)
    assert len(keys) == 4
    balance = running.balance(shop.merchant)
    # A header cannot direct it at another shop, and a repeated delivery does not restore the data.
    other = Shop(running)
    assert other.outcome("customers/redact", customer_redact(2**53 + 1, 3, shop=shop.domain)) == "noted"
    assert other.outcome("customers/redact", customer_redact(2**53 + 1, 3, shop=shop.domain)) == "noted"
    shop.catch_up()
    assert remembered(shop) == ["shopify:order:2", "billing:payment:1"]
    again = running.tell(events).json()["data"]["results"]
    assert [one["outcome"] for one in again] == ["replayed"] * 4 + ["parked"]
    assert again[0]["transactions"][0]["metadata"] is None
    # The parked refund is applied without the erased data.
    assert running.tell(personal(shop, paid, "6", order_id=3, total="100")).status_code == 200
    assert remembered(shop) == ["shopify:order:2", "billing:payment:1", "shopify:order:3"]
    assert running.balance(shop.merchant) == balance - 10 + 1


@pytest.mark.parametrize("unlinked", [False, True])
def test_L15_shop_is_erased_even_after_unlinking(shop: Shop, unlinked: bool) -> None:
    assert shop.outcome("orders/paid", order(1)) == "posted"
    event = personal(shop, "evt.billing.payment_succeeded", "p", payment_id=1, credits=5)
    assert shop.running.tell(event).status_code == 200
    assert len(remembered(shop)) == 2
    if unlinked:
        assert shop.running.call("DELETE", f"/credits/shops/{shop.domain}").status_code == 200
    assert shop.outcome("shop/redact", shop_redact(shop.domain)) == "noted"
    assert len(remembered(shop)) == 2
    shop.catch_up()
    assert remembered(shop) == []
    assert shop.keys() == ["shopify:order:1", "billing:payment:1"]
    assert shop.running.run(Shops(shop.running.service.engine).kept(shop.domain)) == []


def test_unreadable_delivery_is_erased_with_its_shop(shop: Shop) -> None:
    assert shop.outcome("orders/paid", order(1, total_price="free")) == "refused"
    (letter,) = shop.letters()
    assert PERSONAL.encode() in (letter.original or b"")
    assert shop.outcome("customers/redact", customer_redact(1, shop=shop.domain)) == "noted"
    shop.catch_up()
    (letter,) = shop.letters()
    assert (letter.code, letter.original) == (
        "validation_failed",
        json.dumps({"shop": shop.domain, "topic": "orders/paid"}, separators=(",", ":")).encode(),
    )


def test_failed_erasure_is_retried(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shop.outcome("orders/paid", order(1)) == "posted"
    assert shop.outcome("shop/redact", shop_redact(shop.domain)) == "noted"

    async def fails(*_: Any) -> int:
        raise StorageUnavailable("gone")

    with monkeypatch.context() as patch:
        patch.setattr(Erasing, "erase_transactions", fails)
        with pytest.raises(StorageUnavailable):
            shop.catch_up()
    shop.catch_up()
    assert remembered(shop) == []


def test_deliveries_are_counted_in_metrics(shop: Shop) -> None:
    assert shop.outcome("orders/paid", order(1)) == "posted"
    metrics = shop.running.client.get("/metrics").text
    assert 'credits_events_consumed_total{outcome="posted",subject="evt.shopify.webhook.order_paid"}' in metrics
