"""Reversing a transaction over HTTP."""

from typing import Any
from uuid import uuid4

import httpx2
import pytest

from tests.doors.running import Running, posting


def reverse(
    running: Running, transaction_id: str, key: str | None = None, scope: str = "admin", **body: Any
) -> httpx2.Response:
    path, headers = f"/credits/transactions/{transaction_id}/reverse", {"idempotency-key": key or uuid4().hex}
    return running.post(path, {"reason": "by mistake", **body}, scope, headers=headers)


def test_reversal_undoes_a_spend_and_names_it(running: Running) -> None:
    merchant = running.open()
    spent = running.spend(merchant, 30, reference={"type": "job", "id": "7"}).json()["data"]
    answer = reverse(running, spent["id"], "r")
    told = answer.json()["data"]
    assert answer.status_code == 201
    assert (told["transaction_type"], told["operation_type"], told["amount"]) == ("REVERSAL", "INCREASE", 30)
    assert (told["reverses"], told["reference"]) == (spent["id"], spent["reference"])
    assert (told["metadata"], told["actor"][:4]) == ({"reason": "by mistake"}, "key:")
    assert running.balance(merchant) == 100
    again = reverse(running, spent["id"], "r")
    assert (again.status_code, again.json()["data"]) == (200, told)
    other = reverse(running, spent["id"], "r", amount=3)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def test_reversal_in_parts_ends_at_the_whole(running: Running) -> None:
    merchant = running.open()
    spent = running.spend(merchant, 30).json()["data"]["id"]
    assert reverse(running, spent, amount=20).status_code == 201
    refused = reverse(running, spent, amount=11)
    assert (refused.status_code, refused.json()["code"], refused.json()["left"]) == (409, "already_reversed", 10)
    assert reverse(running, spent).json()["data"]["amount"] == 10
    assert running.balance(merchant) == 100


def test_reversal_of_a_trial_takes_its_unspent_credits(running: Running) -> None:
    merchant = running.open()
    running.spend(merchant, 30)
    listed = running.get("/credits/transactions", params={"merchant_id": merchant}).json()["data"]
    told = reverse(running, listed[-1]["id"]).json()["data"]
    assert (told["operation_type"], told["amount"], told["debt_after"]) == ("DECREASE", 100, 30)
    refused = reverse(running, told["id"])
    assert (refused.status_code, refused.json()["code"]) == (409, "not_reversible")


def test_reversal_of_an_unknown_transaction_is_not_found(running: Running) -> None:
    refused = reverse(running, str(uuid4()))
    assert (refused.status_code, refused.json()["code"]) == (404, "transaction_not_found")


@pytest.mark.parametrize("body", [{"reason": ""}, {"amount": 0}, {"amount": 2**53}, {"why": "x"}])
def test_reversal_needs_a_reason_and_a_possible_amount(running: Running, body: dict[str, Any]) -> None:
    spent = running.transact(posting(running.open())).json()["data"]["id"]
    assert reverse(running, spent, **body).json()["code"] == "validation_failed"


def test_reversal_needs_a_key(running: Running) -> None:
    spent = running.transact(posting(running.open())).json()["data"]["id"]
    answer = running.post(f"/credits/transactions/{spent}/reverse", {"reason": "x"}, "admin")
    assert (answer.status_code, answer.json()["code"]) == (400, "idempotency_key_missing")
