"""Terms, stats and past or future balances of an account."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from credit_service.storage.engine import StorageUnavailable
from tests.doors.running import Running, new_merchant, posting


def _at(days: float) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).isoformat().replace("+00:00", "Z")


def _patch(running: Running, merchant: str, body: Any, scope: str = "admin") -> Any:
    return running.call("PATCH", f"/credits/accounts/{merchant}", scope, json=body)


# ---- terms


def test_null_puts_a_term_back_to_its_default(running: Running) -> None:
    merchant = running.open()
    account: dict[str, Any] = {}
    for body, threshold, policy, limit in [
        ({"low_threshold": 100}, 100, "overdraft", None),
        ({"when_insufficient": "reject"}, 100, "reject", None),
        ({"overdraft_limit": 7}, 100, "reject", 7),
        ({"low_threshold": None, "when_insufficient": None}, 20, "overdraft", 7),
        ({"overdraft_limit": None}, 20, "overdraft", None),
    ]:
        told = _patch(running, merchant, body)
        assert told.status_code == 200
        account = told.json()["data"]
        assert (account["low_threshold"], account["when_insufficient"], account["overdraft_limit"]) == (
            threshold,
            policy,
            limit,
        )
        assert account["status"] == ("LOW" if threshold == 100 else "ACTIVE")
    assert account == running.get(f"/credits/accounts/{merchant}").json()["data"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, ""),
        ({"low_threshold": -1}, "/low_threshold"),
        ({"low_threshold": 1.0}, "/low_threshold"),
        ({"when_insufficient": "forgive"}, "/when_insufficient"),
        ({"overdraft_limit": 2**53}, "/overdraft_limit"),
        ({"balance": 5}, "/balance"),
    ],
)
def test_terms_that_cannot_be_are_refused(running: Running, body: Any, pointer: str) -> None:
    told = _patch(running, running.open(), body)
    assert (told.status_code, told.json()["code"]) == (422, "validation_failed")
    assert [error["pointer"] for error in told.json()["errors"]] == [pointer]


def test_terms_need_an_account_and_scope_admin(running: Running) -> None:
    assert _patch(running, new_merchant(), {"low_threshold": 1}).json()["code"] == "account_not_found"
    assert _patch(running, running.open(), {"low_threshold": 1}, "write").json()["code"] == "scope_missing"


# ---- stats


def test_stats_are_sums_by_direction_and_type(running: Running) -> None:
    merchant = running.open()
    running.spend(merchant, 30)
    running.spend(merchant, 12)
    bought = posting(merchant, operation_type="INCREASE", transaction_type="SUBSCRIPTION", amount=5)
    told = running.transact(bought).json()["data"]
    stats = running.get(f"/credits/accounts/{merchant}/stats").json()["data"]
    assert stats == {
        "merchant_id": merchant,
        "opening_balance": 0,
        "closing_balance": 63,
        "total_increases": 105,
        "total_decreases": 42,
        "transaction_count": 4,
        "last_transaction_at": told["created_at"],
        "by_type": {
            "SUBSCRIPTION": {"transaction_count": 1, "total_increases": 5, "total_decreases": 0},
            "TRIAL": {"transaction_count": 1, "total_increases": 100, "total_decreases": 0},
            "USAGE": {"transaction_count": 2, "total_increases": 0, "total_decreases": 42},
        },
    }
    for period in ({"start_date": _at(-1)}, {"end_date": _at(1)}, {"start_date": _at(-1), "end_date": _at(1)}):
        assert running.get(f"/credits/accounts/{merchant}/stats", params=period).json()["data"] == stats


def test_stats_of_a_period_count_its_postings(running: Running) -> None:
    merchant = running.open()
    second = running.spend(merchant, 30).json()["data"]["created_at"]
    running.spend(merchant, 12)
    path = f"/credits/accounts/{merchant}/stats"
    since = running.get(path, params={"start_date": second}).json()["data"]
    assert (since["total_increases"], since["total_decreases"], since["transaction_count"]) == (0, 42, 2)
    until = running.get(path, params={"end_date": second}).json()["data"]
    assert (until["total_increases"], until["total_decreases"], until["transaction_count"]) == (100, 0, 1)
    never = running.get(path, params={"end_date": _at(-1)}).json()["data"]
    assert (never["transaction_count"], never["last_transaction_at"], never["by_type"]) == (0, None, {})


def test_stats_without_an_account_are_not_found(running: Running) -> None:
    assert running.get(f"/credits/accounts/{new_merchant()}/stats").json()["code"] == "account_not_found"


# ---- balances at other instants


def test_past_balance_is_the_sum_of_transactions_until_then(running: Running) -> None:
    merchant = running.open()
    first = running.get(f"/credits/accounts/{merchant}").json()["data"]["created_at"]
    second = running.spend(merchant, 30).json()["data"]["created_at"]
    running.spend(merchant, 12)
    path = f"/credits/accounts/{merchant}/balance"

    def at(instant: str) -> tuple[int, int]:
        told = running.get(path, params={"at": instant}).json()["data"]
        assert told["balance"] - told["held"] - told["pending"] == told["available"]
        return told["balance"], told["pending"]

    assert at(_at(-1)) == (0, 0)
    assert at(first) == (100, 0)
    assert at(second) == (70, 0)
    assert at(_at(1)) == (58, 0)


def test_future_balance_counts_beginnings_and_expiries(running: Running) -> None:
    merchant = running.open()
    running.transact(
        posting(
            merchant,
            operation_type="INCREASE",
            transaction_type="SUBSCRIPTION",
            amount=50,
            grant={"effective_at": _at(10), "expires_at": _at(20)},
        )
    )
    path = f"/credits/accounts/{merchant}/balance"
    told = [running.get(path, params={"at": _at(days)}).json()["data"] for days in (5, 15, 25)]
    assert [(entry["balance"], entry["pending"], entry["available"]) for entry in told] == [
        (150, 50, 100),
        (150, 0, 150),
        (100, 0, 100),
    ]


def test_invalid_instant_is_refused(running: Running) -> None:
    told = running.get(f"/credits/accounts/{running.open()}/balance", params={"at": "yesterday"})
    assert (told.status_code, told.json()["errors"][0]["pointer"]) == (422, "/query/at")


# ---- all accounts


def test_totals_count_all_merchants(running: Running) -> None:
    before = running.get("/credits/plugin-status").json()["data"]
    merchant = running.open()
    running.spend(merchant, 100)
    running.open()
    after = running.get("/credits/plugin-status").json()["data"]
    assert after["total_merchants"] == before["total_merchants"] + 2
    assert after["enabled_count"] == before["enabled_count"] + 1
    for count in ("disabled_count", "zero_balance_count"):
        assert after[count] == before[count] + 1
    assert after["enabled_percentage"] == round(100 * after["enabled_count"] / after["total_merchants"], 2)


def test_L7_periods_that_meet_where_credits_expire_add_up(start: Any) -> None:
    running = start(trial_credits=0, sweep_seconds=3600)
    merchant = running.open()
    cut = datetime.now(UTC) + timedelta(milliseconds=400)
    grant = {"expires_at": cut.isoformat()}
    more = {"operation_type": "INCREASE", "transaction_type": "SUBSCRIPTION", "amount": 100, "grant": grant}
    running.transact(posting(merchant, **more))
    running.spend(merchant, 30)
    while running.balance(merchant):
        pass
    listed = running.get("/credits/transactions", params={"merchant_id": merchant}).json()["data"]
    assert [one["transaction_type"] for one in listed] == ["EXPIRY", "USAGE", "SUBSCRIPTION"]

    def period(**dates: datetime) -> dict[str, Any]:
        dated = {name: date.isoformat() for name, date in dates.items()}
        told: dict[str, Any] = running.get(f"/credits/accounts/{merchant}/stats", params=dated).json()["data"]
        moved = told["total_increases"] - told["total_decreases"]
        assert told["opening_balance"] + moved == told["closing_balance"]
        return told

    first, second = period(end_date=cut), period(start_date=cut, end_date=cut + timedelta(days=1))
    assert (first["opening_balance"], first["closing_balance"]) == (0, 70)
    assert (second["opening_balance"], second["closing_balance"]) == (70, 0)
    assert (list(first["by_type"]), list(second["by_type"])) == (["SUBSCRIPTION", "USAGE"], ["EXPIRY"])
    assert second["last_transaction_at"] == cut.isoformat(timespec="microseconds").replace("+00:00", "Z")
    assert period()["closing_balance"] == period(start_date=cut, end_date=cut - timedelta(days=1))["transaction_count"]


def test_list_and_stats_are_read_while_nothing_can_be_posted(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuses(command: Any) -> Any:
        raise StorageUnavailable("The disk is full.")

    running = start(trial_credits=0, sweep_seconds=3600)
    merchant = running.open()
    grant = {"expires_at": (datetime.now(UTC) + timedelta(milliseconds=200)).isoformat()}
    more = {"operation_type": "INCREASE", "transaction_type": "SUBSCRIPTION", "amount": 5, "grant": grant}
    running.transact(posting(merchant, **more))
    while running.balance(merchant):
        pass
    monkeypatch.setattr(running.service.posting, "submit", refuses)
    listed = running.get("/credits/transactions", params={"merchant_id": merchant}).json()["data"]
    assert [one["transaction_type"] for one in listed] == ["SUBSCRIPTION"]
    assert running.get(f"/credits/accounts/{merchant}/stats").json()["data"]["closing_balance"] == 5


def test_totals_count_expiries_before_the_sweep(start: Any) -> None:
    running = start(trial_credits=0, sweep_seconds=3600)
    merchant = running.open()
    soon = (datetime.now(UTC) + timedelta(milliseconds=300)).isoformat().replace("+00:00", "Z")
    running.transact(
        posting(
            merchant, operation_type="INCREASE", transaction_type="SUBSCRIPTION", amount=50, grant={"expires_at": soon}
        )
    )
    while running.balance(merchant):
        pass
    totals = running.get("/credits/plugin-status").json()["data"]
    assert (totals["enabled_count"], totals["average_balance"]) == (0, 0)
    stats = running.get(f"/credits/accounts/{merchant}/stats", params={"start_date": _at(-1)}).json()["data"]
    assert stats["by_type"]["EXPIRY"] == {"transaction_count": 1, "total_increases": 0, "total_decreases": 50}
    assert running.get(f"/credits/accounts/{merchant}/stats").json()["data"]["by_type"] == stats["by_type"]
