"""MANUAL transactions by every HTTP door: who may post one, why it was posted, and who did."""

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from tests.doors.running import Running, cloud_event, posting

ONE, BATCH, ADJUSTMENTS = "/credits/transactions", "/credits/transactions/batch", "/credits/adjustments"
EVENTS = ("cmd.credits.manual_adjustment", "evt.credits.manual_adjustment")
Door = Callable[[Running, str, str | None, str], httpx2.Response]


def manual(merchant: str, reason: str | None, **more: Any) -> dict[str, Any]:
    return posting(merchant, operation_type="INCREASE", transaction_type="MANUAL", reason=reason, **more)


def post(running: Running, path: str, body: Any, scope: str) -> httpx2.Response:
    return running.post(path, body, scope, headers={"idempotency-key": uuid4().hex})


def single(running: Running, merchant: str, reason: str | None, scope: str) -> httpx2.Response:
    return post(running, ONE, manual(merchant, reason), scope)


def dry_run(running: Running, merchant: str, reason: str | None, scope: str) -> httpx2.Response:
    return post(running, f"{ONE}?dry_run=true", manual(merchant, reason), scope)


def batch(running: Running, merchant: str, reason: str | None, scope: str) -> httpx2.Response:
    items = [posting(merchant, idempotency_key="spend"), manual(merchant, reason, idempotency_key="by hand")]
    return post(running, BATCH, {"items": items}, scope)


def rehearsed_batch(running: Running, merchant: str, reason: str | None, scope: str) -> httpx2.Response:
    return post(running, f"{BATCH}?dry_run=true", {"items": [manual(merchant, reason, idempotency_key="k")]}, scope)


def adjustment(running: Running, merchant: str, reason: str | None, scope: str) -> httpx2.Response:
    body = {"merchant_id": merchant, "operation_type": "INCREASE", "amount": 1, "reason": reason}
    return post(running, ADJUSTMENTS, {name: value for name, value in body.items() if value is not None}, scope)


def event(running: Running, merchant: str, reason: str | None, scope: str, type_: str = EVENTS[0]) -> httpx2.Response:
    data = {"merchant_id": merchant, "adjustment_id": "a", "operation_type": "INCREASE", "credits": 1, "admin_id": "bo"}
    return running.tell(cloud_event(type_, data if reason is None else data | {"reason": reason}), scope=scope)


def other_event(running: Running, merchant: str, reason: str | None, scope: str) -> httpx2.Response:
    return event(running, merchant, reason, scope, EVENTS[1])


DOORS: list[Door] = [single, dry_run, batch, rehearsed_batch, adjustment, event, other_event]
INVISIBLE = {
    "none": None,
    "empty": "",
    "spaces": "  \t\r\n",
    "no-break space": "\xa0\u3000",
    "zero width": "\u200b\u200d\ufeff",
    "control": "\x01\x1f\x7f\x85",
    "direction marks": "\u202e\u2066\u200f",
    "soft hyphen": "\xad",
    "fillers": "\u3164\u115f\uffa0\u2800",
    "tags": "\U000e0041",
    "variation selector": "\ufe0f",
}


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_manual_transaction_needs_scope_admin(running: Running, door: Door) -> None:
    merchant = running.open()
    answer = door(running, merchant, "because", "write")
    assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")
    assert running.sequence(merchant) == 1
    assert door(running, merchant, "because", "admin").is_success


@pytest.mark.parametrize("reason", INVISIBLE.values(), ids=INVISIBLE)
@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_manual_transaction_needs_a_visible_reason(running: Running, door: Door, reason: str | None) -> None:
    merchant = running.open()
    answer = door(running, merchant, reason, "admin")
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert [fault["pointer"].rpartition("/")[2] for fault in answer.json()["errors"]] == ["reason"]
    assert running.sequence(merchant) == 1


@pytest.mark.parametrize("reason", ["x", "\u200b!", "нет", "理由", "👍", "e\u0301"])
def test_metadata_keeps_the_reason(running: Running, reason: str) -> None:
    posted = post(running, ONE, manual(running.open(), reason, metadata={"ticket": 7}), "admin").json()["data"]
    assert posted["metadata"] == {"reason": reason, "ticket": 7}


def test_only_manual_takes_a_reason(running: Running) -> None:
    answer = running.transact(posting(running.open(), reason="because"))
    assert [(fault["pointer"], fault["code"]) for fault in answer.json()["errors"]] == [("/reason", "not_allowed")]


@pytest.mark.parametrize("door", [single, batch, adjustment, event, other_event], ids=lambda door: door.__name__)
def test_actor_is_the_key_that_called(running: Running, door: Door) -> None:
    merchant = running.open()
    assert door(running, merchant, "because", "admin").is_success
    (newest,) = running.get("/credits/transactions", params={"merchant_id": merchant, "limit": 1}).json()["data"]
    assert (newest["transaction_type"], newest["actor"]) == ("MANUAL", f"key:{running.keys['admin'][3:15]}")


def test_metadata_keeps_the_admin_id_of_an_event(running: Running) -> None:
    (result,) = event(running, running.open(), "because", "admin").json()["data"]["results"]
    assert result["transactions"][0]["metadata"] == {"admin_id": "bo", "reason": "because"}


def test_adjustment_and_posting_of_the_same_content_are_one(running: Running) -> None:
    merchant, headers = running.open(), {"idempotency-key": "k"}
    first = running.post(ONE, manual(merchant, "because"), "admin", headers=headers)
    body = {"merchant_id": merchant, "operation_type": "INCREASE", "amount": 1, "reason": "because"}
    again = running.post(ADJUSTMENTS, json.dumps(body).encode(), "admin", headers=headers)
    assert (again.status_code, again.json()["data"]) == (200, first.json()["data"])
