"""Freezing, thawing and closing an account over HTTP."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from tests.doors.running import Running, cloud_event, new_merchant, posting


def change(running: Running, merchant: str, to: str, scope: str = "admin", **body: Any) -> httpx2.Response:
    """Freeze, thaw or close an account; closing with `forfeit` has a key."""
    headers = {"idempotency-key": uuid4().hex} if body.get("forfeit") else {}
    return running.post(f"/credits/accounts/{merchant}/{to}", {"reason": "why", **body}, scope, headers=headers)


def plugin(running: Running, merchant: str) -> tuple[str, str]:
    told = running.get(f"/credits/plugin-status/{merchant}", None).json()["data"]
    return told["status"], told["reason"]


def events(running: Running, merchant: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = running.get("/credits/events", params={"merchant_id": merchant}).json()["data"]
    return found


def test_frozen_account_refuses_spends_and_its_plugin_is_disabled_at_once(running: Running) -> None:
    merchant = running.open()
    assert plugin(running, merchant) == ("enabled", "available")
    frozen = change(running, merchant, "freeze")
    assert (frozen.status_code, frozen.json()["data"]["state"]) == (200, "frozen")
    assert plugin(running, merchant) == ("disabled", "frozen")
    refused = running.spend(merchant)
    assert (refused.status_code, refused.json()["code"]) == (403, "account_frozen")
    for consume in (False, True):
        asked = {"merchant_id": merchant, "amount": 1, "consume": consume}
        told = running.post("/credits/check", asked, headers={"idempotency-key": uuid4().hex}).json()["data"]
        assert (told["allowed"], told["reason"], told["available"]) == (False, "account_frozen", 100)
    order = {"merchant_id": merchant, "order_id": 1, "credits": 5}
    assert running.tell(cloud_event("evt.shopify.webhook.order_paid", order)).status_code == 200
    assert change(running, merchant, "thaw").json()["data"]["state"] == "open"
    assert plugin(running, merchant) == ("enabled", "available")
    assert running.spend(merchant).status_code == 201
    assert running.balance(merchant) == 94


def test_changes_of_state_are_announced_with_reason_and_actor(running: Running) -> None:
    merchant = running.open()
    for to in ("freeze", "freeze", "thaw"):
        assert change(running, merchant, to, reason="ticket 4712").status_code == 200
    told = [event for event in events(running, merchant) if event["type"].startswith("evt.credits.account.")]
    assert [event["type"].rpartition(".")[2] for event in told] == ["created", "frozen", "thawed"]
    assert {event["data"]["reason"] for event in told[1:]} == {"ticket 4712"}
    assert all(event["data"]["actor"].startswith("key:") for event in told[1:])


def test_frozen_accounts_count_as_disabled_and_can_be_listed(start: Callable[..., Running]) -> None:
    running = start()
    merchants = [running.open() for _ in range(3)]
    change(running, merchants[0], "freeze")
    totals = running.get("/credits/plugin-status").json()["data"]
    assert (totals["enabled_count"], totals["disabled_count"], totals["zero_balance_count"]) == (2, 1, 0)
    for state, expected in (("frozen", merchants[:1]), ("open", sorted(merchants[1:])), ("closed", [])):
        listed = running.get("/credits/accounts", params={"state": state}).json()["data"]
        assert [one["merchant_id"] for one in listed] == expected


def test_account_is_closed_once_it_is_empty(running: Running) -> None:
    merchant = running.open()
    refused = change(running, merchant, "close")
    assert (refused.status_code, refused.json()["code"], refused.json()["balance"]) == (409, "account_not_empty", 100)
    running.spend(merchant, 100)
    assert change(running, merchant, "close").json()["data"]["state"] == "closed"
    assert plugin(running, merchant) == ("disabled", "frozen")
    for answer in (
        running.transact(posting(merchant, operation_type="INCREASE", transaction_type="SUBSCRIPTION")),
        change(running, merchant, "thaw"),
        running.call("PATCH", f"/credits/accounts/{merchant}", "admin", json={"low_threshold": 1}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "account_closed")
    running.tell(cloud_event("evt.billing.payment_succeeded", {"merchant_id": merchant, "payment_id": 1, "credits": 5}))
    told = running.get(f"/credits/accounts/{merchant}").json()["data"]
    assert (told["state"], told["balance"]) == ("frozen", 5)


def test_forfeit_takes_what_is_left(running: Running) -> None:
    merchant = running.open()
    path, headers = f"/credits/accounts/{merchant}/close", {"idempotency-key": "bye"}
    missing = running.post(path, {"reason": "why", "forfeit": True}, "admin")
    assert (missing.status_code, missing.json()["code"]) == (400, "idempotency_key_missing")
    for _ in range(2):
        closed = running.post(path, {"reason": "why", "forfeit": True}, "admin", headers=headers)
        assert (closed.status_code, closed.json()["data"]["balance"]) == (200, 0)
    (voided, _) = running.get("/credits/transactions", params={"merchant_id": merchant}).json()["data"]
    assert (voided["transaction_type"], voided["amount"], voided["metadata"]) == ("VOID", 100, {"reason": "why"})


def test_erasure_reaches_the_reasons(running: Running) -> None:
    merchant = running.open()
    change(running, merchant, "freeze", reason="Ada's card was stolen")
    erased = running.call("POST", f"/credits/accounts/{merchant}/erase", "admin").json()["data"]
    assert erased["reasons"] == 1
    (frozen,) = [event for event in events(running, merchant) if event["type"] == "evt.credits.account.frozen"]
    assert (frozen["data"]["reason"], frozen["data"]["actor"][:4]) == (None, "key:")
    assert running.call("POST", f"/credits/accounts/{merchant}/erase", "admin").json()["data"]["reasons"] == 0


@pytest.mark.parametrize("to", ["freeze", "thaw", "close"])
@pytest.mark.parametrize("body", [{"reason": ""}, {"reason": None}, {"reason": "x", "why": 1}, {"reason": " "}])
def test_change_of_state_needs_a_reason(running: Running, to: str, body: dict[str, Any]) -> None:
    answer = change(running, running.open(), to, **body)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")


@pytest.mark.parametrize("to", ["freeze", "thaw", "close"])
def test_state_of_an_unknown_account_cannot_be_changed(running: Running, to: str) -> None:
    answer = change(running, new_merchant(), to)
    assert (answer.status_code, answer.json()["code"]) == (404, "account_not_found")
