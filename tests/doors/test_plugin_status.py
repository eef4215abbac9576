"""Plugin status: the question of every storefront page."""

from collections.abc import Callable
from typing import Any

import pytest

from credit_service.storage.base import StorageUnavailable
from tests.doors.running import Running, cloud_event, new_merchant

STATUS = "/credits/plugin-status"


def status(running: Running, merchant: str) -> tuple[str, str]:
    answer = running.get(f"{STATUS}/{merchant}", None)
    assert answer.status_code == 200
    told = answer.json()["data"]
    return told["status"], told["reason"]


def test_the_status_answers_anybody_with_data_and_no_meta(running: Running) -> None:
    merchant = running.open()
    answer = running.get(f"{STATUS}/{merchant}", None, headers={"x-request-id": "r", "x-correlation-id": "c"})
    assert answer.status_code == 200
    assert list(answer.json()) == ["data"]
    told = answer.json()["data"]
    assert list(told) == ["merchant_id", "status", "reason", "as_of"]
    assert (told["merchant_id"], told["status"], told["reason"]) == (merchant, "enabled", "available")
    assert (answer.headers["x-request-id"], answer.headers["x-correlation-id"]) == ("r", "c")
    assert answer.headers["content-type"] == "application/json"


def test_a_merchant_in_capital_letters_is_the_same(running: Running) -> None:
    merchant = running.open()
    assert running.get(f"{STATUS}/{merchant.upper()}", None).json()["data"]["merchant_id"] == merchant


def test_a_merchant_that_nobody_knows_is_disabled(running: Running) -> None:
    assert status(running, new_merchant()) == ("disabled", "unknown_merchant")


def test_every_posting_is_seen_at_once(running: Running) -> None:
    merchant = new_merchant()
    assert status(running, merchant) == ("disabled", "unknown_merchant")
    running.open(merchant)
    assert status(running, merchant) == ("enabled", "available")
    running.spend(merchant, 100)
    assert status(running, merchant) == ("disabled", "exhausted")
    running.tell(cloud_event("evt.billing.payment_succeeded", {"merchant_id": merchant, "payment_id": 1, "credits": 1}))
    assert status(running, merchant) == ("enabled", "available")


def test_an_answer_may_be_kept_but_is_asked_for_again_by_its_etag(running: Running) -> None:
    merchant = running.open()
    first = running.get(f"{STATUS}/{merchant}", None)
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "no-cache"
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        same = running.get(f"{STATUS}/{merchant}", None, headers={"if-none-match": known})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
        assert same.headers["cache-control"] == "no-cache"
        assert "x-request-id" in same.headers
    running.spend(merchant, 100)
    changed = running.get(f"{STATUS}/{merchant}", None, headers={"if-none-match": tag})
    assert (changed.status_code, changed.json()["data"]["status"]) == (200, "disabled")
    assert changed.headers["etag"] != tag


@pytest.mark.parametrize("path", ["/{}/", "/x/{}", "/{}/x", "//{}", "/x%2F{}"])
def test_only_the_path_of_one_merchant_is_a_status(running: Running, path: str) -> None:
    answer = running.get(STATUS + path.format(running.open()), None)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("merchant", ["17", "{}%0A", "%20{}", "{}0", "x", "{{{}}}", "urn:uuid:{}", "%E2%80%AE"])
def test_what_is_no_uuid_is_not_valid(running: Running, merchant: str) -> None:
    answer = running.get(f"{STATUS}/{merchant.format(new_merchant())}", None)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/path/merchant_id"]


def test_a_percent_encoded_merchant_is_the_merchant(running: Running) -> None:
    merchant = running.open()
    encoded = "".join(f"%{ord(letter):02x}" for letter in merchant)
    assert running.get(f"{STATUS}/{encoded}", None).json()["data"]["merchant_id"] == merchant


def test_a_query_of_the_askers_own_is_left_alone(running: Running) -> None:
    assert running.get(f"{STATUS}/{new_merchant()}?_=123", None).status_code == 200


def test_many_are_answered_by_the_ids_that_were_sent(running: Running) -> None:
    enabled, disabled, unknown = running.open(), running.open(), new_merchant()
    running.spend(disabled, 100)
    asked = [enabled.upper(), disabled, unknown, disabled]
    answer = running.post(f"{STATUS}/batch", {"merchant_ids": asked}, "read")
    assert answer.status_code == 200
    assert answer.json() == {
        "data": {
            "statuses": {
                enabled.upper(): {"status": "enabled", "reason": "available"},
                disabled: {"status": "disabled", "reason": "exhausted"},
                unknown: {"status": "disabled", "reason": "unknown_merchant"},
            }
        }
    }


@pytest.mark.parametrize(
    ("asked", "pointer"),
    [
        ([], "/merchant_ids"),
        ([new_merchant() for _ in range(1001)], "/merchant_ids"),
        (["17"], "/merchant_ids/0"),
        ([17], "/merchant_ids/0"),
        (None, "/merchant_ids"),
        ({}, "/merchant_ids"),
    ],
)
def test_a_batch_that_cannot_be_is_not_valid(running: Running, asked: Any, pointer: str) -> None:
    answer = running.post(f"{STATUS}/batch", {"merchant_ids": asked}, "read")
    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]


def test_1000_are_answered_at_once(running: Running) -> None:
    asked = [new_merchant() for _ in range(1000)]
    answer = running.post(f"{STATUS}/batch", {"merchant_ids": asked}, "read")
    assert list(answer.json()["data"]["statuses"]) == asked


def test_by_setting_only_those_with_a_key_may_ask(start: Callable[..., Running]) -> None:
    running = start(plugin_status_auth="read")
    path = f"{STATUS}/{running.open()}"
    assert running.get(path, None).status_code == 401
    assert running.get(path, "read").status_code == 200


@pytest.mark.parametrize(("fail", "told"), [("closed", "disabled"), ("open", "enabled")])
def test_with_the_database_away_the_last_known_answer_counts_then_the_policy(
    start: Callable[..., Running], fail: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(plugin_status_cache_ttl=0.000001, gate_fail=fail)
    enabled, disabled, unknown = running.open(), running.open(), new_merchant()
    running.spend(disabled, 100)
    assert status(running, enabled) == ("enabled", "available")
    assert status(running, disabled) == ("disabled", "exhausted")

    async def away(*_: object) -> None:
        raise StorageUnavailable("gone")

    monkeypatch.setattr(running.service.store, "held", away)
    assert status(running, enabled) == ("enabled", "unavailable")
    assert status(running, disabled) == ("disabled", "unavailable")
    assert status(running, unknown) == (told, "unavailable")
    batch = running.post(f"{STATUS}/batch", {"merchant_ids": [enabled, unknown]}, "read").json()["data"]["statuses"]
    assert batch == {
        enabled: {"status": "enabled", "reason": "unavailable"},
        unknown: {"status": told, "reason": "unavailable"},
    }
    monkeypatch.undo()
    assert status(running, enabled) == ("enabled", "available")
