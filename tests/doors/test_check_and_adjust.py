"""Checks, adjustments and dry runs."""

from typing import Any

import pytest

from tests.doors.running import Running, new_merchant, posting


def _check(running: Running, scope: str = "read", key: str | None = None, **body: Any) -> Any:
    headers = {} if key is None else {"idempotency-key": key}
    return running.post("/credits/check", body, scope, headers=headers)


@pytest.mark.parametrize(("amount", "allowed"), [(1, True), (100, True), (101, False)])
def test_check_spends_nothing(running: Running, amount: int, allowed: bool) -> None:
    merchant = running.open()
    told = _check(running, merchant_id=merchant, amount=amount)
    assert told.status_code == 200
    assert told.json()["data"] == {
        "allowed": allowed,
        "reason": None if allowed else "insufficient_credits",
        "available": 100,
        "required": amount,
        "transaction": None,
    }
    assert running.sequence(merchant) == 1


def test_check_without_an_account_is_not_allowed(running: Running) -> None:
    for more in ({}, {"consume": True}):
        told = _check(running, "write", "k", merchant_id=new_merchant(), amount=1, **more)
        assert (told.status_code, told.json()["data"]["reason"]) == (200, "account_not_found")


def test_consuming_check_spends_once(running: Running) -> None:
    merchant = running.open()
    first = _check(running, "write", "c", merchant_id=merchant, amount=60, consume=True).json()["data"]
    assert (first["allowed"], first["available"], first["transaction"]["transaction_type"]) == (True, 40, "USAGE")
    again = _check(running, "write", "c", merchant_id=merchant, amount=60, consume=True).json()["data"]
    assert again == first
    refused = _check(running, "write", "d", merchant_id=merchant, amount=60, consume=True)
    assert (refused.status_code, refused.json()["data"]["reason"]) == (200, "insufficient_credits")
    reused = _check(running, "write", "c", merchant_id=merchant, amount=1, consume=True)
    assert (reused.status_code, reused.json()["code"]) == (422, "idempotency_key_reused")
    assert running.balance(merchant) == 40


def test_consuming_check_needs_a_key_and_scope_write(running: Running) -> None:
    merchant = running.open()
    assert _check(running, "read", "k", merchant_id=merchant, amount=1, consume=True).json()["code"] == "scope_missing"
    missing = _check(running, "write", merchant_id=merchant, amount=1, consume=True)
    assert (missing.status_code, missing.json()["code"]) == (400, "idempotency_key_missing")


def _adjust(running: Running, merchant: str, scope: str = "admin", key: str = "a", **body: Any) -> Any:
    body = {"merchant_id": merchant, "operation_type": "INCREASE", "amount": 5, "reason": "goodwill"} | body
    return running.post("/credits/adjustments", body, scope, headers={"idempotency-key": key})


def test_adjustment_is_a_manual_transaction_with_reason_and_actor(running: Running) -> None:
    merchant = running.open()
    told = _adjust(running, merchant)
    assert told.status_code == 201
    transaction = told.json()["data"]
    assert (transaction["transaction_type"], transaction["amount"]) == ("MANUAL", 5)
    assert transaction["metadata"] == {"reason": "goodwill"}
    assert transaction["actor"] == f"key:{running.keys['admin'][3:15]}"
    again = _adjust(running, merchant)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
    assert again.json()["data"] == transaction


def test_two_adjustments_count_twice(running: Running) -> None:
    merchant = running.open()
    _adjust(running, merchant, key="a")
    _adjust(running, merchant, key="b", operation_type="DECREASE", amount=3)
    assert running.balance(merchant) == 102


@pytest.mark.parametrize(
    ("changed", "scope", "status", "code"),
    [
        ({}, "write", 403, "scope_missing"),
        ({"operation_type": "DECREASE", "amount": 101}, "admin", 402, "insufficient_credits"),
        ({"merchant_id": "6f1c2a54-8d0e-4c0b-9c55-00000000dead"}, "admin", 404, "account_not_found"),
        ({"amount": 0}, "admin", 422, "validation_failed"),
        ({"reason": ""}, "admin", 422, "validation_failed"),
        ({"admin_id": "me"}, "admin", 422, "validation_failed"),
    ],
)
def test_adjustment_is_refused(running: Running, changed: Any, scope: str, status: int, code: str) -> None:
    told = _adjust(running, running.open(), scope, **changed)
    assert (told.status_code, told.json()["code"]) == (status, code)


# ---- rehearsals


def test_dry_run_shows_draws_and_announcements(running: Running) -> None:
    merchant = running.open()
    body = posting(merchant, amount=100)
    told = running.post("/credits/transactions?dry_run=true", body, headers={"idempotency-key": "r"})
    assert told.status_code == 200
    data = told.json()["data"]
    assert (data["dry_run"], data["outcome"], data["transaction"]["balance_after"]) == (True, "posted", 0)
    assert [draw["amount"] for draw in data["transaction"]["draws"]] == [-100]
    assert [announcement["type"] for announcement in data["announcements"]] == [
        "consumed",
        "low_balance_reached",
        "balance_exhausted",
        "plugin_status_changed",
    ]
    assert (running.balance(merchant), running.sequence(merchant)) == (100, 1)
    assert running.transact(body, "r").status_code == 201
    again = running.post("/credits/transactions?dry_run=true", body, headers={"idempotency-key": "r"}).json()["data"]
    assert (again["outcome"], again["announcements"]) == ("replayed", [])


def test_dry_run_is_refused_like_a_posting(running: Running) -> None:
    body = posting(running.open(), amount=101)
    told = running.post("/credits/transactions?dry_run=true", body, headers={"idempotency-key": "r"})
    assert (told.status_code, told.json()["code"]) == (402, "insufficient_credits")


def test_items_of_a_rehearsed_batch_see_those_before(running: Running) -> None:
    merchant = running.open()
    items = [{**posting(merchant, amount=60), "idempotency_key": key} for key in "ab"]
    told = running.post("/credits/transactions/batch?dry_run=true", {"items": items})
    assert told.status_code == 200
    assert [result["outcome"] for result in told.json()["data"]["results"]] == ["posted", "refused"]
    atomic = running.post("/credits/transactions/batch?dry_run=true", {"atomic": True, "items": items})
    assert (atomic.status_code, atomic.json()["pointer"]) == (402, "/items/1")
    assert running.sequence(merchant) == 1
