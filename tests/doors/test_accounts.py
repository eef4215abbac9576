"""Opening and reading accounts."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from tests.doors.running import Running, new_merchant, posting

ACCOUNT = [
    "id",
    "merchant_id",
    "state",
    "balance",
    "held",
    "pending",
    "available",
    "status",
    "low_threshold",
    "when_insufficient",
    "overdraft_limit",
    "sequence",
    "last_transaction_id",
    "last_transaction_at",
    "created_at",
    "updated_at",
]


def test_account_is_opened_with_the_trial(running: Running) -> None:
    merchant = new_merchant()
    answer = running.post("/credits/accounts", {"merchant_id": merchant.upper()})
    assert answer.status_code == 201
    assert list(answer.json()) == ["data", "meta"]
    told = answer.json()["data"]
    assert list(told) == ACCOUNT
    trial = running.get("/credits/transactions", params={"merchant_id": merchant}).json()["data"]
    assert [(entry["transaction_type"], entry["amount"], entry["idempotency_key"]) for entry in trial] == [
        ("TRIAL", 100, f"trial:{merchant}")
    ]
    assert UUID(told.pop("id")).version == 8
    assert told == {
        "merchant_id": merchant,
        "state": "open",
        "balance": 100,
        "held": 0,
        "pending": 0,
        "available": 100,
        "status": "ACTIVE",
        "low_threshold": 20,
        "when_insufficient": "overdraft",
        "overdraft_limit": None,
        "sequence": 1,
        "last_transaction_id": trial[0]["id"],
        "last_transaction_at": trial[0]["created_at"],
        "created_at": trial[0]["created_at"],
        "updated_at": trial[0]["created_at"],
    }


def test_opening_again_grants_no_second_trial(running: Running) -> None:
    merchant = new_merchant()
    first = running.post("/credits/accounts", {"merchant_id": merchant})
    again = running.post("/credits/accounts", {"merchant_id": merchant})
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["data"] == first.json()["data"]


def test_opening_again_grants_a_missing_trial(running: Running) -> None:
    merchant = new_merchant()
    data = {"merchant_id": merchant, "order_id": 1, "credits": 30}
    event = {"specversion": "1.0", "id": "1", "source": "s", "type": "evt.shopify.webhook.order_paid", "data": data}
    assert running.tell(event).status_code == 200
    assert running.balance(merchant) == -30
    answer = running.post("/credits/accounts", {"merchant_id": merchant})
    assert answer.status_code == 200
    assert (answer.json()["data"]["balance"], answer.json()["data"]["sequence"]) == (70, 2)


def test_opening_is_refused_if_the_trial_key_was_used(running: Running) -> None:
    merchant = new_merchant()
    data = {"merchant_id": merchant, "payment_id": 1, "credits": 5}
    event = {
        "specversion": "1.0",
        "id": "1",
        "source": "s",
        "type": "evt.billing.payment_succeeded",
        "data": data,
    }
    assert running.tell(event).status_code == 200
    assert running.spend(merchant, 1, f"trial:{merchant}").status_code == 201
    answer = running.post("/credits/accounts", {"merchant_id": merchant})
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")


def test_account_is_read_as_it_stands(running: Running) -> None:
    merchant = running.open()
    spent = running.spend(merchant, 80).json()["data"]
    answer = running.get(f"/credits/accounts/{merchant}")
    told = answer.json()["data"]
    assert answer.status_code == 200
    assert list(told) == ACCOUNT
    assert (told["balance"], told["available"], told["status"], told["sequence"]) == (20, 20, "LOW", 2)
    assert (told["last_transaction_id"], told["updated_at"]) == (spent["id"], spent["created_at"])


@pytest.mark.parametrize(("spent", "status"), [(79, "ACTIVE"), (80, "LOW"), (99, "LOW"), (100, "EXHAUSTED")])
def test_status_follows_available_credits(running: Running, spent: int, status: str) -> None:
    merchant = running.open()
    running.spend(merchant, spent)
    assert running.get(f"/credits/accounts/{merchant}").json()["data"]["status"] == status


def test_balance_shows_pending_credits(running: Running) -> None:
    merchant = running.open()
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    body = posting(
        merchant,
        operation_type="INCREASE",
        transaction_type="SUBSCRIPTION",
        amount=50,
        grant={"effective_at": later},
    )
    assert running.transact(body).status_code == 201
    answer = running.get(f"/credits/accounts/{merchant}/balance")
    told = answer.json()["data"]
    as_of = told.pop("as_of")
    assert told == {"merchant_id": merchant, "balance": 150, "held": 0, "pending": 50, "available": 100}
    assert as_of == answer.json()["meta"]["timestamp"]


def test_expired_credits_are_gone_from_every_read_before_the_sweep(start: Callable[..., Running]) -> None:
    running = start(sweep_seconds=3600)
    merchant = running.open()
    soon = datetime.now(UTC) + timedelta(seconds=0.3)
    body = posting(
        merchant,
        operation_type="INCREASE",
        transaction_type="SUBSCRIPTION",
        amount=50,
        grant={"expires_at": soon.isoformat()},
    )
    assert running.transact(body).status_code == 201
    assert running.balance(merchant) == 150
    balance = f"/credits/accounts/{merchant}/balance"
    while datetime.fromisoformat(running.get(balance).json()["data"]["as_of"]) <= soon:
        pass  # the clock that counts is the ledger's: the one of PostgreSQL may be behind this one
    assert running.balance(merchant) == 100
    account = running.get(f"/credits/accounts/{merchant}").json()["data"]
    assert (account["balance"], account["sequence"]) == (100, 3)
    assert [grant["amount"] for grant in running.get(f"/credits/accounts/{merchant}/grants").json()["data"]] == [100]
    listed = running.get("/credits/accounts", params={"min_balance": 101}).json()["data"]
    assert listed == []


@pytest.mark.parametrize("path", ["", "/balance", "/grants"])
def test_unknown_account_is_not_found(running: Running, path: str) -> None:
    answer = running.get(f"/credits/accounts/{new_merchant()}{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "account_not_found")


@pytest.mark.parametrize("path", ["", "/balance", "/grants"])
@pytest.mark.parametrize("merchant", ["-17", "a b", "6f1c2a54@8d0e", "%00", "x" * 65])
def test_malformed_merchant_id_is_invalid(running: Running, path: str, merchant: str) -> None:
    answer = running.get(f"/credits/accounts/{merchant}{path}")
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/path/merchant_id"]
