"""Inbound events over HTTP: one CloudEvent or a batch."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.doors.running import Running, cloud_event, new_merchant

CREATED = "evt.merchant.created"
TRIAL = "evt.billing.trial_started"
PAID = "evt.shopify.webhook.order_paid"
REFUNDED = "evt.shopify.webhook.order_refunded"
PAYMENT = "evt.billing.payment_succeeded"
PAYMENT_REFUNDED = "evt.billing.payment_refunded"
RENEWED = "evt.billing.subscription_renewed"
ADJUSTED = "cmd.credits.manual_adjustment"


def results(running: Running, event: Any, **more: Any) -> list[dict[str, Any]]:
    answer = running.tell(event, **more)
    assert answer.status_code == 200, answer.text
    assert list(answer.json()) == ["data", "meta"]
    assert list(answer.json()["data"]) == ["results"]
    found: list[dict[str, Any]] = answer.json()["data"]["results"]
    return found


def test_created_merchant_gets_an_account_and_the_trial(running: Running) -> None:
    merchant = new_merchant()
    event = cloud_event(CREATED, {"merchant_id": merchant}, time="2026-01-02T03:04:05.678Z", subject=merchant)
    (result,) = results(running, event)
    assert list(result) == ["event_id", "outcome", "transactions"]
    assert (result["event_id"], result["outcome"]) == (event["id"], "posted")
    (trial,) = result["transactions"]
    assert (trial["transaction_type"], trial["amount"]) == ("TRIAL", 100)
    assert trial["idempotency_key"] == f"trial:{merchant}"
    assert trial["occurred_at"] == "2026-01-02T03:04:05.678000Z"
    assert trial == running.get(f"/credits/transactions/{trial['id']}").json()["data"]
    (again,) = results(running, {**event, "id": "other"})
    assert (again["event_id"], again["outcome"], again["transactions"]) == ("other", "replayed", [trial])


@pytest.mark.parametrize(
    ("type_", "data", "key", "posted", "reference"),
    [
        (TRIAL, {"trial_id": "t", "credits": 40}, "trial:{merchant}", ("TRIAL", 40), {"type": "trial", "id": "t"}),
        (PAID, {"order_id": 7, "total": "9.99"}, "shopify:order:7", ("ORDER_PAID", 1), {"type": "order", "id": "7"}),
        (PAID, {"order_id": "x", "credits": 5}, "shopify:order:x", ("ORDER_PAID", 5), {"type": "order", "id": "x"}),
        (
            REFUNDED,
            {"refund_id": "r", "credits_used": 3},
            "shopify:refund:r",
            ("ORDER_REFUNDED", 3),
            {"type": "refund", "id": "r"},
        ),
        (
            PAYMENT,
            {"payment_id": 2**63, "credits_to_use": 8},
            f"billing:payment:{2**63}",
            ("PAYMENT", 8),
            {"type": "payment", "id": str(2**63)},
        ),
        (
            RENEWED,
            {"subscription_id": "s", "period": "2026-01", "credits": 9},
            "billing:subscription:s:2026-01",
            ("SUBSCRIPTION", 9),
            {"type": "subscription", "id": "s"},
        ),
        (
            RENEWED,
            {"subscription_id": 4, "renewal_id": 5, "credits": 9},
            "billing:subscription:4:5",
            ("SUBSCRIPTION", 9),
            {"type": "subscription", "id": "4"},
        ),
        (
            ADJUSTED,
            {"adjustment_id": "a", "operation_type": "INCREASE", "credits": 6, "reason": "sorry", "admin_id": "bo"},
            "manual:a",
            ("MANUAL", 6),
            {"type": "adjustment", "id": "a"},
        ),
    ],
)
def test_event_has_its_effect_under_its_natural_key(
    running: Running, type_: str, data: dict[str, Any], key: str, posted: tuple[str, int], reference: dict[str, str]
) -> None:
    merchant = new_merchant()
    (result,) = results(running, cloud_event(type_, {"merchant_id": merchant, **data}), scope="admin")
    (transaction,) = result["transactions"]
    assert (transaction["transaction_type"], transaction["amount"]) == posted
    assert transaction["idempotency_key"] == key.format(merchant=merchant)
    assert transaction["reference"] == reference


def test_refunds_undo_an_order_and_a_payment(running: Running) -> None:
    merchant = new_merchant()
    events = [
        cloud_event(PAYMENT, {"merchant_id": merchant, "payment_id": 1, "credits": 50}),
        cloud_event(PAID, {"merchant_id": merchant, "order_id": 1, "total": 20, "credits": 10, "currency": "GBP"}),
        cloud_event(
            REFUNDED,
            {"merchant_id": merchant, "order_id": "1", "refund_id": 1, "refund_amount": 20, "currency": "GBP"},
        ),
        cloud_event(PAYMENT_REFUNDED, {"merchant_id": merchant, "payment_id": "1", "refund_id": "p1", "credits": 50}),
    ]
    found = results(running, events)
    assert [(result["event_id"], result["outcome"]) for result in found] == [
        (event["id"], "posted") for event in events
    ]
    assert running.balance(merchant) == 0


def test_early_refund_is_parked_until_its_order_arrives(running: Running) -> None:
    merchant = running.open()
    refund = cloud_event(
        REFUNDED, {"merchant_id": merchant, "order_id": 5, "refund_id": 5, "refund_amount": 10, "order_total": 10}
    )
    (parked,) = results(running, refund)
    assert parked == {"event_id": refund["id"], "outcome": "parked", "transactions": []}
    (again,) = results(running, refund)
    assert again["outcome"] == "parked"
    order = cloud_event(PAID, {"merchant_id": merchant, "order_id": 5, "total": 10})
    (posted,) = results(running, order)
    assert [entry["transaction_type"] for entry in posted["transactions"]] == ["ORDER_PAID", "ORDER_REFUNDED"]
    assert running.balance(merchant) == 100


def test_bad_order_of_an_event_does_not_stop_the_others(running: Running) -> None:
    merchant = running.open()
    items: list[Any] = [
        {"order_id": 1, "total": "10.00"},
        {"order_id": "2"},
        {"order_id": 3, "credits": 4, "metadata": {"a": 1}, "currency": "EUR"},
        "nonsense",
        {"order_id": True, "total": 1},
        {"total": 1},
        {"order_id": 1, "total": "10.00"},
        {"order_id": 4, "total": "1.1234567", "credits": -1},
        {"order_id": 5, "credits": 1, "credits_used": 1},
        {"order_id": "9" * 200 + "9", "total": 1},
    ]
    event = cloud_event(PAID, {"merchant_id": merchant, "currency": "GBP", "order_items": items})
    found = results(running, event)
    assert {result["event_id"] for result in found} == {event["id"]}
    told = [(result.get("order_id"), result["outcome"]) for result in found]
    assert told == [
        ("1", "posted"),
        ("2", "refused"),
        ("3", "posted"),
        (None, "refused"),
        (None, "refused"),
        (None, "refused"),
        ("1", "replayed"),
        ("4", "refused"),
        ("5", "refused"),
        ("9" * 201, "refused"),
    ]
    pointers = [[fault["pointer"] for fault in result.get("error", {}).get("errors", [])] for result in found]
    assert pointers == [
        [],
        ["/data/order_items/1/total"],
        [],
        ["/data/order_items/3"],
        ["/data/order_items/4/order_id"],
        ["/data/order_items/5/order_id"],
        [],
        ["/data/order_items/7/total", "/data/order_items/7/credits"],
        ["/data/order_items/8/credits", "/data/order_items/8/credits_used"],
        ["/data/order_items/9/order_id"],
    ]
    assert {result["error"]["code"] for result in found if result["outcome"] == "refused"} == {"validation_failed"}
    assert running.balance(merchant) == 100 - 1 - 4


def test_malformed_event_of_a_batch_is_refused_in_its_result(running: Running) -> None:
    merchant = new_merchant()
    events: list[Any] = [
        cloud_event(CREATED, {"merchant_id": merchant}),
        cloud_event(CREATED, {"merchant_id": "-17"}),
        cloud_event("evt.unknown", {"merchant_id": merchant}),
        cloud_event(PAID, {"merchant_id": merchant, "order_id": 1, "total": 1}, specversion="0.3"),
        "nonsense",
        {"id": 5},
        cloud_event(PAID, {"merchant_id": merchant, "order_id": 1, "total": 1}),
    ]
    found = results(running, events)
    assert [(result["event_id"], result["outcome"]) for result in found] == [
        (events[0]["id"], "posted"),
        (events[1]["id"], "refused"),
        (events[2]["id"], "refused"),
        (events[3]["id"], "refused"),
        (None, "refused"),
        (None, "refused"),
        (events[6]["id"], "posted"),
    ]
    refusals = [result["error"] for result in found if result["outcome"] == "refused"]
    assert [refusal["code"] for refusal in refusals] == [
        "validation_failed",
        "event_type_unknown",
        "validation_failed",
        "validation_failed",
        "validation_failed",
    ]
    assert [refusal["errors"][0]["pointer"] for refusal in refusals] == [
        "/data/merchant_id",
        "/type",
        "/specversion",
        "",
        "/specversion",
    ]
    assert running.balance(merchant) == 99


def test_batch_may_have_1000_events(running: Running) -> None:
    merchant = running.open()
    events = [cloud_event(PAID, {"merchant_id": merchant, "order_id": number, "credits": 1}) for number in range(1001)]
    assert running.tell(events).status_code == 422
    assert running.tell([]).status_code == 422
    assert running.sequence(merchant) == 1
    assert len(results(running, events[:1000])) == 1000
    assert running.balance(merchant) == 100 - 1000


@pytest.mark.parametrize("body", [{}, "text", 1, None])
def test_batch_of_events_must_be_an_array(running: Running, body: Any) -> None:
    headers = {"content-type": "application/cloudevents-batch+json"}
    answer = running.post("/credits/events", body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")


@pytest.mark.parametrize(
    ("event", "code", "pointers"),
    [
        (cloud_event("evt.unknown", {"merchant_id": new_merchant()}), "event_type_unknown", ["/type"]),
        (cloud_event(CREATED, {}), "validation_failed", ["/data/merchant_id"]),
        (cloud_event(CREATED, None), "validation_failed", ["/data"]),
        (cloud_event(CREATED, []), "validation_failed", ["/data"]),
        (cloud_event(CREATED, {"merchant_id": new_merchant(), "x": 1}), "validation_failed", ["/data/x"]),
        (cloud_event(CREATED, {"merchant_id": new_merchant()}, id=""), "validation_failed", ["/id"]),
        (cloud_event(CREATED, {"merchant_id": new_merchant()}, source=None), "validation_failed", ["/source"]),
        (cloud_event(CREATED, {"merchant_id": new_merchant()}, time="now"), "validation_failed", ["/time"]),
        (
            cloud_event(CREATED, {"merchant_id": new_merchant()}, time="9999-12-31T23:59:59-00:01"),
            "validation_failed",
            ["/time"],
        ),
        (
            cloud_event(CREATED, {"merchant_id": new_merchant()}, datacontenttype="text/xml"),
            "validation_failed",
            ["/datacontenttype"],
        ),
        (cloud_event(CREATED, {"merchant_id": new_merchant()}, Upper=1), "validation_failed", [""]),
        (cloud_event(CREATED, {"merchant_id": new_merchant()}, fraction=1.5), "validation_failed", [""]),
        (cloud_event(CREATED, {"merchant_id": new_merchant()}, data_base64="AA=="), "validation_failed", [""]),
        ({}, "validation_failed", ["/specversion", "/id", "/source", "/type", "/data"]),
        ([], "validation_failed", [""]),
        (None, "validation_failed", [""]),
    ],
)
def test_malformed_event_answers_422(running: Running, event: Any, code: str, pointers: list[str]) -> None:
    headers = {"content-type": "application/cloudevents+json"}
    answer = running.post("/credits/events", event, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert [fault["pointer"] for fault in answer.json()["errors"]] == pointers


def test_refused_command_says_so_in_its_result(running: Running) -> None:
    merchant = running.open()
    data = {
        "merchant_id": merchant,
        "adjustment_id": 1,
        "operation_type": "DECREASE",
        "credits": 101,
        "reason": "too much",
        "admin_id": "bo",
    }
    (result,) = results(running, cloud_event(ADJUSTED, data), scope="admin")
    assert list(result) == ["event_id", "outcome", "transactions", "error"]
    assert (result["outcome"], result["transactions"]) == ("refused", [])
    assert (result["error"]["code"], result["error"]["available"]) == ("insufficient_credits", 100)


def test_adjustment_by_event_has_the_caller_as_actor(running: Running) -> None:
    merchant = running.open()
    data = {
        "merchant_id": merchant,
        "adjustment_id": 2,
        "operation_type": "DECREASE",
        "credits": 1,
        "reason": "because",
        "admin_id": "bo@example.com",
        "metadata": {"ticket": 7},
    }
    (result,) = results(running, cloud_event(ADJUSTED, data), scope="admin")
    (transaction,) = result["transactions"]
    assert transaction["actor"] == f"key:{running.keys['admin'][3:15]}"
    assert transaction["metadata"] == {"admin_id": "bo@example.com", "reason": "because", "ticket": 7}


def test_adjustment_by_event_needs_scope_admin(running: Running) -> None:
    merchant = running.open()
    data = {"adjustment_id": 4, "operation_type": "INCREASE", "credits": 5, "reason": "why", "admin_id": "bo"}
    adjustment = cloud_event(ADJUSTED, {"merchant_id": merchant, **data})
    answer = running.tell(adjustment)
    assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")
    order = cloud_event(PAID, {"merchant_id": merchant, "order_id": 1, "credits": 7})
    refused, posted = results(running, [adjustment, order])
    assert (refused["outcome"], refused["error"]["code"], posted["outcome"]) == ("refused", "scope_missing", "posted")
    assert running.balance(merchant) == 93


def test_repeated_adjustment_replays_unless_its_content_differs(running: Running) -> None:
    merchant = running.open()
    data = {
        "merchant_id": merchant,
        "adjustment_id": 3,
        "operation_type": "INCREASE",
        "credits": 5,
        "reason": "because",
        "admin_id": "bo",
    }
    (first,) = results(running, cloud_event(ADJUSTED, data, time="2026-01-01T00:00:00Z"), scope="admin")
    later = cloud_event("evt.credits.manual_adjustment", data, time="2026-01-02T00:00:00Z")
    (again,) = results(running, later, scope="admin")
    assert (again["outcome"], again["transactions"]) == ("replayed", first["transactions"])
    for changed in ({"credits": 6}, {"reason": "another"}, {"admin_id": "jo"}):
        (other,) = results(running, cloud_event(ADJUSTED, data | changed), scope="admin")
        assert (other["outcome"], other["error"]["code"]) == ("refused", "idempotency_key_reused")


def test_same_order_with_other_money_replays(running: Running) -> None:
    merchant = running.open()
    (first,) = results(running, cloud_event(PAID, {"merchant_id": merchant, "order_id": 17, "total": 1}))
    (again,) = results(running, cloud_event(PAID, {"merchant_id": merchant, "order_id": "17", "credits": 50}))
    assert (again["outcome"], again["transactions"]) == ("replayed", first["transactions"])


def test_correlation_of_an_event_comes_before_that_of_the_request(running: Running) -> None:
    merchant = running.open()
    events = [
        cloud_event(PAID, {"merchant_id": merchant, "order_id": 1, "credits": 1}, correlationid="own"),
        cloud_event(PAID, {"merchant_id": merchant, "order_id": 2, "credits": 1}, correlationid="not\none"),
        cloud_event(PAID, {"merchant_id": merchant, "order_id": 3, "credits": 1}, correlationid="x\n"),
        cloud_event(PAID, {"merchant_id": merchant, "order_id": 4, "credits": 1}, traceparent="00-aa-bb-00", n=1),
        cloud_event(PAID, {"merchant_id": merchant, "order_id": 5, "credits": 1}),
    ]
    headers = {"content-type": "application/cloudevents-batch+json", "x-correlation-id": "request"}
    answer = running.post("/credits/events", events, headers=headers)
    found = [result["transactions"][0]["correlation_id"] for result in answer.json()["data"]["results"]]
    assert found == ["own", "request", "request", "request", "request"]
    single = running.post(
        "/credits/events",
        cloud_event(PAID, {"merchant_id": merchant, "order_id": 6, "credits": 1}),
        headers={"content-type": "application/cloudevents+json", "x-correlation-id": "request"},
    )
    assert single.json()["data"]["results"][0]["transactions"][0]["correlation_id"] == "request"


def test_event_without_an_account_is_refused_by_setting(
    start: Callable[..., Running],
) -> None:
    running = start(accounts_auto_create=False)
    paid = cloud_event(PAID, {"merchant_id": new_merchant(), "order_id": 1, "credits": 1})
    (result,) = results(running, paid)
    assert (result["outcome"], result["error"]["code"]) == ("refused", "account_not_found")
    (created,) = results(running, cloud_event(CREATED, {"merchant_id": new_merchant()}))
    assert created["outcome"] == "posted"


def test_event_may_come_as_plain_json(running: Running) -> None:
    event = cloud_event(CREATED, {"merchant_id": new_merchant()})
    answer = running.post("/credits/events", event)
    assert answer.json()["data"]["results"][0]["outcome"] == "posted"


def test_result_leaves_out_expiries_settled_on_the_way(start: Callable[..., Running]) -> None:
    running = start(sweep_seconds=3600)
    merchant = new_merchant()
    payment = {"merchant_id": merchant, "payment_id": 1, "credits": 5, "expires_at": "2020-01-01T00:00:00Z"}
    (result,) = results(running, cloud_event(PAYMENT, payment))
    assert [entry["transaction_type"] for entry in result["transactions"]] == ["PAYMENT"]
    assert running.sequence(merchant) == 2
    assert running.balance(merchant) == 0
