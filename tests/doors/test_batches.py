"""Batches of postings: best effort and atomic."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from tests.doors.running import Running, cloud_event, new_merchant, posting

BATCH = "/credits/transactions/batch"


def item(merchant: str, key: str | None = None, **more: Any) -> dict[str, Any]:
    return {**posting(merchant, **more), "idempotency_key": key or uuid4().hex}


def test_best_effort_batch_answers_a_result_for_each_item(running: Running) -> None:
    merchant = running.open()
    first = running.spend(merchant, 1, "before").json()["data"]
    items = [
        item(merchant, "a", amount=60),
        item(merchant, "b", amount=60),
        item(merchant, "before", amount=1),
        item(merchant, "a", amount=60),
        item(merchant, "a", amount=61),
        item(new_merchant()),
        item(merchant, "c", operation_type="INCREASE", transaction_type="SUBSCRIPTION", amount=10),
        item(merchant, "shopify:order:9", transaction_type="ORDER_PAID", reference={"type": "order", "id": "9"}),
    ]
    answer = running.post(BATCH, {"items": items})
    assert answer.status_code == 200
    assert list(answer.json()) == ["data", "meta"]
    assert list(answer.json()["data"]) == ["results"]
    results = answer.json()["data"]["results"]
    told = [(result["outcome"], result.get("error", {}).get("code")) for result in results]
    assert told == [
        ("posted", None),
        ("refused", "insufficient_credits"),
        ("replayed", None),
        ("replayed", None),
        ("refused", "idempotency_key_reused"),
        ("refused", "account_not_found"),
        ("posted", None),
        ("posted", None),
    ]
    assert list(results[0]) == ["outcome", "transaction"]
    assert list(results[1]) == ["outcome", "error"]
    refused = results[1]["error"]
    assert (refused["available"], refused["required"], refused["status"]) == (39, 60, 402)
    assert results[2]["transaction"] == first
    assert results[3]["transaction"] == results[0]["transaction"]
    assert [results[at]["transaction"]["sequence"] for at in (0, 6, 7)] == [3, 4, 5]
    assert running.balance(merchant) == 100 - 1 - 60 + 10 - 1


def test_repeated_batch_replays(running: Running) -> None:
    merchant = running.open()
    body = {"atomic": False, "items": [item(merchant), item(merchant)]}
    first, second = running.post(BATCH, body), running.post(BATCH, body)
    assert [result["outcome"] for result in second.json()["data"]["results"]] == ["replayed", "replayed"]
    transactions = [
        [result["transaction"] for result in answer.json()["data"]["results"]] for answer in (first, second)
    ]
    assert transactions[0] == transactions[1]
    assert running.sequence(merchant) == 3


def test_atomic_batch_is_posted_completely(running: Running) -> None:
    merchant = running.open()
    body = {"atomic": True, "items": [item(merchant, amount=60), item(merchant.upper(), amount=40)]}
    answer = running.post(BATCH, body)
    assert answer.status_code == 201
    assert [result["outcome"] for result in answer.json()["data"]["results"]] == ["posted", "posted"]
    assert running.balance(merchant) == 0
    again = running.post(BATCH, body)
    assert again.status_code == 200
    assert [result["outcome"] for result in again.json()["data"]["results"]] == ["replayed", "replayed"]


def test_refused_atomic_batch_posts_nothing(running: Running) -> None:
    merchant = running.open()
    items = [item(merchant, amount=60), item(merchant, amount=30), item(merchant, amount=11), item(merchant)]
    answer = running.post(BATCH, {"atomic": True, "items": items})
    told = answer.json()
    assert (answer.status_code, told["code"], told["pointer"]) == (402, "insufficient_credits", "/items/2")
    assert (told["available"], told["required"]) == (10, 11)
    assert running.sequence(merchant) == 1
    assert running.post(BATCH, {"atomic": True, "items": items[:2]}).status_code == 201  # their keys stayed free


def test_refusal_of_a_field_points_into_its_item(running: Running) -> None:
    merchant = running.open()
    past = {"expires_at": "2020-01-01T00:00:00Z"}
    late = item(merchant, operation_type="INCREASE", transaction_type="SUBSCRIPTION", grant=past)
    answer = running.post(BATCH, {"atomic": True, "items": [item(merchant), late]})
    told = answer.json()
    assert (answer.status_code, told["code"], told["pointer"]) == (422, "validation_failed", "/items/1")
    assert [fault["pointer"] for fault in told["errors"]] == ["/items/1/grant/expires_at"]
    result = running.post(BATCH, {"items": [late]}).json()["data"]["results"][0]
    assert [fault["pointer"] for fault in result["error"]["errors"]] == ["/grant/expires_at"]


def test_atomic_batch_has_one_merchant(running: Running) -> None:
    merchants = [running.open(), running.open()]
    items = [item(merchants[0]), item(merchants[1]), item(merchants[0]), item(merchants[1])]
    answer = running.post(BATCH, {"atomic": True, "items": items})
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/items/1/merchant_id", "/items/3/merchant_id"]
    assert [running.sequence(merchant) for merchant in merchants] == [1, 1]


def test_all_faults_of_all_items_are_listed(running: Running) -> None:
    merchant = running.open()
    items = [
        item(merchant),
        item(merchant, amount=-1),
        {**item(merchant), "idempotency_key": ""},
        item(merchant, extra=1, amount="1"),
    ]
    answer = running.post(BATCH, {"items": items, "more": True})
    assert answer.status_code == 422
    assert {fault["pointer"]: fault["code"] for fault in answer.json()["errors"]} == {
        "/items/1/amount": "out_of_range",
        "/items/2/idempotency_key": "too_short",
        "/items/3/amount": "wrong_type",
        "/items/3/extra": "unknown_field",
        "/more": "unknown_field",
    }
    assert running.sequence(merchant) == 1


def test_faults_between_fields_are_listed_for_all_items(running: Running) -> None:
    merchant = running.open()
    items = [
        item(merchant),
        item(merchant, amount=0),
        item(merchant, transaction_type="TRIAL"),
        posting(merchant),
    ]
    answer = running.post(BATCH, {"items": items})
    assert {fault["pointer"]: fault["code"] for fault in answer.json()["errors"]} == {
        "/items/1/amount": "out_of_range",
        "/items/2/transaction_type": "not_allowed",
        "/items/3/idempotency_key": "required",
    }
    assert running.sequence(merchant) == 1


def test_order_in_a_batch_needs_its_natural_key(running: Running) -> None:
    merchant = running.open()
    order = item(merchant, "mine", transaction_type="ORDER_PAID", reference={"type": "order", "id": "9"})
    answer = running.post(BATCH, {"items": [item(merchant), order]})
    assert (answer.status_code, answer.json()["code"]) == (400, "idempotency_key_invalid")
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/items/1/idempotency_key"]
    assert running.sequence(merchant) == 1


@pytest.mark.parametrize("atomic", [True, False])
def test_batch_may_have_1000_items(running: Running, *, atomic: bool) -> None:
    merchant = running.open()
    most = [
        item(merchant, operation_type="INCREASE", transaction_type="SUBSCRIPTION", metadata={"n": number})
        for number in range(1000)
    ]
    answer = running.post(BATCH, {"atomic": atomic, "items": most})
    assert answer.status_code == (201 if atomic else 200)
    sequences = [result["transaction"]["sequence"] for result in answer.json()["data"]["results"]]
    assert sequences == list(range(2, 1002))


def test_batch_has_1_to_1000_items(running: Running) -> None:
    merchant = running.open()
    for items, code in (([item(merchant) for _ in range(1001)], "too_long"), ([], "too_short")):
        answer = running.post(BATCH, {"items": items})
        assert answer.status_code == 422
        assert [(fault["pointer"], fault["code"]) for fault in answer.json()["errors"]] == [("/items", code)]
    assert running.sequence(merchant) == 1


def test_settings_lower_the_limit_of_items(start: Callable[..., Running]) -> None:
    running = start(batch_max_items=2, page_max_limit=3)
    merchant = running.open()
    assert running.post(BATCH, {"items": [item(merchant), item(merchant)]}).status_code == 200
    answer = running.post(BATCH, {"items": [item(merchant), item(merchant), item(merchant)]})
    assert [(fault["pointer"], fault["code"]) for fault in answer.json()["errors"]] == [("/items", "too_long")]
    statuses = {"merchant_ids": [merchant] * 3}
    assert running.post("/credits/plugin-status/batch", statuses).json()["errors"][0]["pointer"] == "/merchant_ids"
    assert running.tell([{}, {}, {}]).status_code == 422
    assert running.get("/credits/accounts", params={"limit": 4}).status_code == 422
    assert running.get("/credits/accounts", params={"limit": 3}).status_code == 200
    # The default is 50 entries, and no more than the settings allow.
    assert running.get("/credits/accounts").status_code == 200


def test_settings_lower_the_limits_of_keys_and_metadata(start: Callable[..., Running]) -> None:
    running = start(key_max_length=64, metadata_max_bytes=16)
    merchant = running.open()
    text, longer = "x" * 64, "x" * 65
    fits = posting(merchant, reference={"type": text, "id": text}, metadata={"a": "x" * 8})
    assert running.transact(fits, text).status_code == 201
    answer = running.transact(fits, longer)
    assert (answer.status_code, answer.json()["code"]) == (400, "idempotency_key_invalid")
    for changed, pointer in (
        ({"reference": {"type": longer, "id": "1"}}, "/reference/type"),
        ({"reference": {"type": "1", "id": longer}}, "/reference/id"),
        ({"metadata": {"a": "x" * 9}}, "/metadata"),
    ):
        answer = running.transact(posting(merchant, **changed))
        assert [(fault["pointer"], fault["code"]) for fault in answer.json()["errors"]] == [(pointer, "too_long")]
    answer = running.post(BATCH, {"items": [item(merchant, text), item(merchant, longer)]})
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/items/1/idempotency_key"]
    events: list[tuple[dict[str, Any], str]] = [
        ({"order_id": longer}, "/data"),
        ({"metadata": {"a": "x" * 9}}, "/data/metadata"),
    ]
    for told, pointer in events:
        data = {"merchant_id": merchant, "order_id": 1, "credits": 1, **told}
        answer = running.tell(cloud_event("evt.shopify.webhook.order_paid", data))
        assert [(fault["pointer"], fault["code"]) for fault in answer.json()["errors"]] == [(pointer, "too_long")]
    assert running.sequence(merchant) == 2


@pytest.mark.parametrize("atomic", [1, "true", 0, []])
def test_atomic_is_true_or_false(running: Running, atomic: Any) -> None:
    answer = running.post(BATCH, {"atomic": atomic, "items": [item(running.open())]})
    assert [(fault["pointer"], fault["code"]) for fault in answer.json()["errors"]] == [("/atomic", "wrong_type")]


def test_batch_needs_no_key_header(running: Running) -> None:
    merchant = running.open()
    answer = running.post(BATCH, {"items": [item(merchant, "k")]}, headers={"idempotency-key": "other"})
    assert answer.json()["data"]["results"][0]["transaction"]["idempotency_key"] == "k"
