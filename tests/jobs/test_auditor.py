"""The auditor visits all accounts, logs each one that drifts once, and goes on after a failure."""

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from credit_service.jobs.auditor import Auditor
from credit_service.storage.engine import StorageUnavailable
from tests.doors.running import Running, new_merchant
from tests.resting import rest_by
from tests.storage import values


class Ledger:
    """A store of ten accounts, of which some drift."""

    def __init__(self, *drifting: int) -> None:
        self.wrong = set(drifting)
        self.failures: list[Exception] = []
        self.asked: list[int] = []

    async def drifting(self, after: str | None, limit: int) -> tuple[list[str], str | None]:
        if self.failures:
            raise self.failures.pop(0)
        first = 0 if after is None else UUID(after).int + 1
        self.asked.append(first)
        page = range(first, min(first + limit, 10))
        found = [str(UUID(int=number)) for number in page if number in self.wrong]
        return found, str(UUID(int=page[-1])) if page[-1] < 9 else None


async def test_audit_visits_all_accounts_by_merchant_and_begins_again() -> None:
    ledger: Any = Ledger()
    auditor = Auditor(ledger)
    for _ in range(4):
        await auditor.audit(4)
    assert ledger.asked == [0, 4, 8, 0]


async def test_drifting_account_counts_until_a_complete_pass_without_it() -> None:
    ledger: Any = Ledger(1, 8)
    auditor = Auditor(ledger)
    counted = []
    for number in range(9):
        if number == 3:
            ledger.wrong = {8}
        await auditor.audit(4)
        counted.append(auditor.drifting)
    assert counted == [1, 1, 2, 2, 2, 1, 1, 1, 1]


async def test_drift_is_logged_once_and_again_after_recovery() -> None:
    ledger: Any = Ledger(1, 8)
    auditor = Auditor(ledger)
    with capture_logs() as told:
        for _ in range(2):
            await auditor.audit(10)
        ledger.wrong = {8}
        await auditor.audit(10)
        ledger.wrong = {1, 8}
        await auditor.audit(10)
    assert [(line["event"], line["log_level"], UUID(line["merchant_id"]).int) for line in told] == [
        ("ledger_drift", "error", 1),
        ("ledger_drift", "error", 8),
        ("ledger_drift", "error", 1),
    ]


@pytest.mark.parametrize("failure", [StorageUnavailable("gone"), RuntimeError("a bug")], ids=repr)
async def test_audit_continues_where_it_failed(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger: Any = Ledger()
    rested = []

    async def rest(seconds: float) -> None:
        rested.append(seconds)
        if len(rested) == 2:
            ledger.failures = [failure, failure]
        if len(rested) == 6:
            raise asyncio.CancelledError

    rest_by(monkeypatch, rest)
    with pytest.raises(asyncio.CancelledError), capture_logs() as told:
        await Auditor(ledger).keep_auditing(4)
    assert ledger.asked == [0, 4, 8, 0]
    # A repeated storage error is logged once, an unexpected error each time.
    assert [line["event"] for line in told] == ["audit_failed"] * (1 if isinstance(failure, StorageUnavailable) else 2)
    assert rested == [1] * 6


def test_account_without_its_last_transaction_shows_in_metrics(start: Callable[..., Running]) -> None:
    running = start(audit_accounts_per_second=0)
    running.open()
    torn = values.account(7, new_merchant(), sequence=3)
    running.run(running.service.engine.post([], lambda loaded: values.writes(torn)))
    with capture_logs() as told:
        running.run(running.service.auditor.audit(10))
    assert [line["merchant_id"] for line in told] == [str(torn.merchant_id)]
    assert "\ncredits_ledger_drift_accounts 1.0\n" in running.client.get("/metrics").text
