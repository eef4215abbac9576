"""The service logs an outage once per interval and not once per request."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from credit_service.doors.http import problems
from credit_service.jobs import sweeper
from credit_service.storage.engine import OutcomeUnknown, StorageUnavailable


def test_outage_logs_one_warning_of_each_kind_per_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 17.0
    monkeypatch.setattr(problems, "perf_counter", lambda: now)
    monkeypatch.setattr(problems, "_seldom", problems._Seldom())
    with capture_logs() as logs:
        for _ in range(999):
            assert problems.of_exception(StorageUnavailable("It is gone.")).code == "storage_unavailable"
        assert problems.of_exception(OutcomeUnknown("It did not say.")).code == "outcome_unknown"
        now += problems.SELDOM_SECONDS
        problems.of_exception(StorageUnavailable("It is gone still."))
    assert [(line["event"], line["reason"], line["untold_before"]) for line in logs] == [
        ("storage_unavailable", "It is gone.", 0),
        ("outcome_unknown", "It did not say.", 0),
        ("storage_unavailable", "It is gone still.", 998),
    ]


async def test_sweeper_logs_repeated_failure_once_until_it_recovers() -> None:
    class Away:
        """A store whose clock fails with these reasons in turn, and then always."""

        reasons = [None, "gone", "gone", "starting", None, "gone"]  # noqa: RUF012 - only this test uses it

        async def now(self) -> int:
            if (reason := self.reasons.pop(0)) is not None:
                raise StorageUnavailable(reason)
            return 17

        async def due(self, at: int, limit: int) -> list[Any]:
            return []

    away: Any = Away()
    with capture_logs() as logs:
        sweeping = asyncio.create_task(sweeper.keep_sweeping(away, away, 0))
        while away.reasons:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)
        sweeping.cancel()
    assert [line["reason"] for line in logs] == ["gone", "starting", "gone"]
