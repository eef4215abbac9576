"""Merchants under the platform's own ids: whatever its form, an id works through every door."""

from typing import Any
from uuid import uuid4

import pytest

from tests.doors.running import Running, cloud_event, posting

IDS = ["{}", "cus_{}", "9{}", "Team.A:eu~1-{}", "{}__", "a" * 32 + "{}"]


@pytest.mark.parametrize("form", IDS)
def test_any_id_names_an_account(running: Running, form: str) -> None:
    merchant = form.format(uuid4().hex)[:64]
    account = f"/credits/accounts/{merchant}"
    assert running.open(merchant) == merchant
    spent = running.transact(posting(merchant, amount=30)).json()["data"]
    assert (spent["merchant_id"], spent["balance_after"]) == (merchant, 70)
    for path in ("", "/balance", "/stats"):
        assert running.get(account + path).json()["data"]["merchant_id"] == merchant
    assert running.get(f"{account}/grants").json()["data"][0]["remaining"] == 70
    listed = running.get("/credits/transactions", params={"merchant_id": merchant}).json()["data"]
    assert [one["merchant_id"] for one in listed] == [merchant, merchant]
    told = running.get("/credits/events", params={"merchant_id": merchant}).json()["data"]
    assert {event["subject"] for event in told} == {merchant}
    asked = running.post("/credits/plugin-status/batch", {"merchant_ids": [merchant]}).json()["data"]["statuses"]
    assert asked == {merchant: {"status": "enabled", "reason": "available"}}
    erased = running.call("POST", f"{account}/erase", "admin").json()["data"]
    assert erased["merchant_id"] == merchant


def test_ids_are_compared_exactly_but_uuids_in_lower_case(running: Running) -> None:
    name, uuid = f"Shop-{uuid4().hex[:8]}", str(uuid4())
    for merchant in (name, name.lower(), uuid):
        running.open(merchant)
    running.spend(name, 40)
    running.spend(uuid.upper(), 40)
    assert [running.balance(merchant) for merchant in (name, name.lower(), uuid)] == [60, 100, 60]
    again = running.post("/credits/accounts", {"merchant_id": uuid.upper()})
    assert (again.status_code, again.json()["data"]["merchant_id"]) == (200, uuid)


def test_number_in_an_event_is_the_id_of_its_digits(running: Running) -> None:
    number = uuid4().int % 10**18
    for merchant in (number, str(number)):
        said: dict[str, Any] = {"merchant_id": merchant, "order_id": f"{merchant!r}", "credits": 5}
        assert running.tell(cloud_event("evt.shopify.webhook.order_paid", said)).status_code == 200
    assert running.balance(str(number)) == -10


@pytest.mark.parametrize("merchant", [10**64, -1, 1.5, True, "", "a/b", "a b", "_a", "é", "a" * 65])
def test_impossible_id_in_an_event_is_refused(running: Running, merchant: Any) -> None:
    answer = running.tell(cloud_event("evt.merchant.created", {"merchant_id": merchant}))
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/data/merchant_id"]


def test_accounts_of_any_id_are_listed_in_the_order_of_their_bytes(running: Running) -> None:
    mark = uuid4().hex[:8]
    mine = [running.open(f"{letter}{mark}") for letter in ("a", "Z", "0", "z")]
    found: list[str] = []
    params: dict[str, Any] = {"limit": 3}
    while True:
        page = running.get("/credits/accounts", params=params).json()
        found += [one["merchant_id"] for one in page["data"]]
        if (cursor := page["pagination"]["next_cursor"]) is None:
            break
        params["cursor"] = cursor
    assert found == sorted(found)
    assert [merchant for merchant in found if mark in merchant] == sorted(mine)
