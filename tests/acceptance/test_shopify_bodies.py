"""Post webhook bodies that Shopify and its library authors publish, with their signatures, to the real route."""

import json
import os
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from credit_service.doors.shopify import is_signed
from tests.acceptance.order_stream import DATA
from tests.commands import command
from tests.doors.running import delivery
from tests.served import Served, served

SHOPIFY = DATA / "shopify"
SHOP = "activepieces-test.myshopify.com"
"""The shop in the sample order."""
MERCHANT = "6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11"
SECRET = "hush"

pytestmark = pytest.mark.skipif(
    not SHOPIFY.exists() and os.environ.get("CI") != "true",  # in CI missing data is a failure
    reason=f"The bodies of Shopify's webhooks are missing: put them into {SHOPIFY}.",
)


def vectors(kind: str) -> list[Any]:
    """Return the test vectors of this kind, or an empty list without the data."""
    if not SHOPIFY.exists():
        return []
    found: list[Any] = json.loads((SHOPIFY / "hmac_vectors.json").read_text())[kind]
    return found


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run a service with a link to the sample shop. An order costs a tenth of its total."""
    settings = {
        "SHOPIFY_WEBHOOK_SECRET": SECRET,
        "SHOPIFY_PLAN_CREDITS": '{"plan-123": 500}',
        "ORDER_CREDIT_FIXED_AMOUNT": "0",
        "ORDER_CREDIT_PERCENTAGE": "10",
    }
    with served(tmp_path_factory.mktemp("shopify") / "ledger.db", settings=settings) as running:
        with running.client() as client:
            assert client.put(f"/credits/shops/{SHOP}", json={"merchant_id": MERCHANT}).status_code == 200
        yield running


def send(service: Served, topic: str, body: bytes, signature: str | None = None) -> httpx2.Response:
    headers = delivery(topic, body, SECRET, SHOP)
    if signature is not None:
        headers["x-shopify-hmac-sha256"] = signature
    return httpx2.post(f"{service.url}/api/v1/webhooks/shopify", content=body, headers=headers, timeout=30)


@pytest.mark.parametrize("vector", vectors("webhook"), ids=lambda vector: str(vector["id"]))
def test_service_accepts_published_signatures(vector: Any) -> None:
    assert is_signed(vector["body"].encode(), [vector["hmac_base64"].encode()], [vector["secret"]])


@pytest.mark.parametrize("vector", vectors("webhook_files"), ids=lambda vector: str(vector["file"]))
def test_service_accepts_body_only_with_its_own_signature(service: Served, vector: Any) -> None:
    assert vector["secret"] == SECRET
    body = (SHOPIFY / vector["file"]).read_bytes()
    assert send(service, "products/update", body, vector["hmac_base64"]).json()["data"]["outcome"] == "ignored"
    assert send(service, "products/update", body + b"\n", vector["hmac_base64"]).status_code == 401


def outcome(service: Served, topic: str, name: str, **changed: Any) -> str:
    """Post a published body, with `changed` fields replaced, and return its outcome."""
    body = (SHOPIFY / name).read_bytes()
    if changed:
        body = json.dumps(json.loads(body) | changed).encode()
    answer = send(service, topic, body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["data"]["outcome"])


def test_sample_bodies_post_the_expected_transactions(service: Served) -> None:
    assert outcome(service, "orders/paid", "orders_paid.json") == "posted"
    assert outcome(service, "orders/paid", "orders_paid.json") == "replayed"
    # The shop created the order without a payment, so it costs nothing, and its refund waits for it.
    assert outcome(service, "orders/create", "orders_create.json") == "ignored"
    assert outcome(service, "orders/paid", "orders_create.json") == "refused"
    assert outcome(service, "refunds/create", "refunds_create.json") == "parked"
    assert outcome(service, "orders/paid", "orders_create.json", financial_status="paid") == "posted"
    assert outcome(service, "refunds/create", "refunds_create.json") == "replayed"
    assert outcome(service, "app_subscriptions/update", "app_subscriptions_update.json") == "ignored"  # not active yet
    subscription = json.loads((SHOPIFY / "app_subscriptions_update.json").read_text())["app_subscription"]
    active = {"app_subscription": {**subscription, "status": "ACTIVE", "admin_graphql_api_shop_id": None}}
    assert outcome(service, "app_subscriptions/update", "app_subscriptions_update.json", **active) == "posted"
    assert outcome(service, "customers/redact", "customers_redact.json") == "noted"
    with service.client() as client:
        posted = client.get("/credits/transactions", params={"merchant_id": MERCHANT}).json()["data"]
    # The orders cost 10 % of 2629.95 and of 409.94, rounded half up. The refund of 209.00 gives back
    # floor(41 × 209.00 / 409.94).
    assert [(one["idempotency_key"], one["amount"]) for one in reversed(posted)] == [
        ("shopify:order:5324830114101", 263),
        ("shopify:order:450789469", 41),
        ("shopify:refund:509562969", 20),
        ("billing:subscription:1029266977:2022-01-01", 500),
    ]
    service.stop()
    ledger = service.database
    assert command("verify", "--json", cwd=ledger.parent, DATABASE_URL=f"sqlite:///{ledger}").json["faults"] == []  # type: ignore[union-attr]
