"""Voiding a grant over HTTP."""

from typing import Any
from uuid import uuid4

import httpx2
import pytest

from tests.doors.running import Running, posting


@pytest.fixture
def merchant(running: Running) -> str:
    """A merchant with the trial of 100 credits."""
    return running.open()


def grant_of(running: Running, merchant: str) -> str:
    """The id of a merchant's first open grant."""
    found: str = running.call("GET", f"/credits/accounts/{merchant}/grants").json()["data"][0]["id"]
    return found


def void(
    running: Running, merchant: str, grant: str, key: str | None = None, scope: str = "admin", **body: Any
) -> httpx2.Response:
    headers = {"idempotency-key": key or uuid4().hex}
    return running.post(f"/credits/accounts/{merchant}/grants/{grant}/void", body, scope, headers=headers)


def test_void_posts_one_transaction_with_reason_and_actor(running: Running, merchant: str) -> None:
    grant = grant_of(running, merchant)
    answer = void(running, merchant, grant, reason="given by mistake")
    assert answer.status_code == 201
    voided = answer.json()["data"]
    assert (voided["operation_type"], voided["transaction_type"], voided["amount"]) == ("DECREASE", "VOID", 100)
    assert voided["draws"] == [{"grant_id": grant, "amount": -100}]
    assert voided["reference"] == {"type": "grant", "id": grant}
    assert voided["metadata"] == {"reason": "given by mistake"}
    assert voided["actor"].startswith("key:")
    assert running.balance(merchant) == 0
    status = running.client.get(f"/api/v1/credits/plugin-status/{merchant}").json()["data"]
    assert (status["status"], status["reason"]) == ("disabled", "exhausted")


def test_repeated_void_answers_the_first_result(running: Running, merchant: str) -> None:
    grant = grant_of(running, merchant)
    first = void(running, merchant, grant, "v", reason="oops", amount=30)
    again = void(running, merchant, grant.upper(), "v", reason="oops", amount=30)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["data"] == first.json()["data"]
    for reason, amount in (("oops", 31), ("other", 30), ("oops", None)):
        refused = void(running, merchant, grant, "v", reason=reason, amount=amount)
        assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_key_reused")
    assert running.balance(merchant) == 70


def test_void_of_more_than_is_unspent_is_refused(running: Running, merchant: str) -> None:
    grant = grant_of(running, merchant)
    running.post("/credits/transactions", posting(merchant, amount=60), headers={"idempotency-key": "spend"})
    refused = void(running, merchant, grant, reason="oops", amount=41)
    assert refused.status_code == 402
    problem = refused.json()
    assert (problem["code"], problem["available"], problem["required"]) == ("insufficient_credits", 40, 41)
    assert running.balance(merchant) == 40


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/reason"),
        ({"reason": " \u200b"}, "/reason"),
        ({"reason": "r", "amount": 0}, "/amount"),
        ({"reason": "r", "amount": 1.0}, "/amount"),
        ({"reason": "r", "amount": 2**53}, "/amount"),
        ({"reason": "r", "credits": 1}, "/credits"),
    ],
)
def test_void_names_each_fault(running: Running, merchant: str, body: dict[str, Any], pointer: str) -> None:
    answer = void(running, merchant, grant_of(running, merchant), **body)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]
    assert running.sequence(merchant) == 1


def test_grant_of_another_merchant_is_not_found(running: Running, merchant: str) -> None:
    other = grant_of(running, running.open())
    for grant in (other, str(uuid4()), grant_of(running, merchant)[:-1] + "2"):
        answer = void(running, merchant, grant, reason="oops")
        assert (answer.status_code, answer.json()["code"]) == (404, "grant_not_found")
    unknown = void(running, str(uuid4()), other, reason="oops")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "account_not_found")


def test_void_needs_scope_admin_and_a_key(running: Running, merchant: str) -> None:
    grant = grant_of(running, merchant)
    answer = void(running, merchant, grant, scope="write", reason="oops")
    assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")
    path = f"/credits/accounts/{merchant}/grants/{grant}/void"
    assert running.post(path, {"reason": "oops"}, "admin").json()["code"] == "idempotency_key_missing"
    reserved = void(running, merchant, grant, "expiry:1", reason="oops")
    assert (reserved.status_code, reserved.json()["code"]) == (400, "idempotency_key_invalid")


def test_past_balance_counts_a_void_of_credits_that_had_not_begun(running: Running, merchant: str) -> None:
    later = {"effective_at": "2999-01-01T00:00:00Z", "priority": 1}
    added = posting(merchant, operation_type="INCREASE", transaction_type="SUBSCRIPTION", amount=50, grant=later)
    running.transact(added)
    voided = void(running, merchant, grant_of(running, merchant), reason="too many", amount=20).json()["data"]
    running.spend(merchant, 1)
    told = running.get(f"/credits/accounts/{merchant}/balance", params={"at": voided["created_at"]}).json()["data"]
    assert (told["balance"], told["pending"], told["available"]) == (130, 30, 100)
