"""A clock that jumps: nothing is posted and nothing expires until it is back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from credit_service.jobs.sweeper import sweep
from credit_service.storage import clock
from credit_service.storage.accounts import Accounts
from credit_service.storage.clock import ClockMoved
from tests.doors.running import Running, posting

YEAR = 31_536_000_000_000


@contextmanager
def jumped(micros: int) -> Iterator[None]:
    """Let the wall clocks of this machine and of the database be this far ahead of the steady clock."""
    steady = clock.steady_micros
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "steady_micros", lambda: steady() - micros)
        yield


def test_nothing_is_posted_while_the_clock_has_jumped(start: Callable[..., Running]) -> None:
    running = start(sweep_seconds=3600)
    merchant = running.open()
    expires_at = (datetime.now(UTC) + timedelta(seconds=200)).isoformat()
    payment = posting(
        merchant, operation_type="INCREASE", transaction_type="SUBSCRIPTION", amount=5, grant={"expires_at": expires_at}
    )
    assert running.transact(payment).status_code == 201
    service = running.service
    accounts, engine = Accounts(service.engine), service.engine
    before = running.sequence(merchant)
    with capture_logs() as logged, jumped(YEAR):
        refused = running.spend(merchant)
        assert (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")
        ready = running.client.get("/readyz")
        assert (ready.status_code, ready.json()["code"]) == (503, "storage_unavailable")
        assert ready.json()["detail"].startswith("The clock of the ledger jumped, and nothing is posted")
        assert "\ncredits_clock_moved 1.0\n" in running.client.get("/metrics").text
        with pytest.raises(ClockMoved):
            running.run(engine.check())
        assert running.sequence(merchant) == before
    assert [(line["event"], line["seconds"]) for line in logged] == [("clock_moved", 31_536_000)]
    assert running.client.get("/readyz").status_code == 200
    assert running.run(sweep(accounts, service.posting)) == 0
    assert running.spend(merchant).status_code == 201
    assert running.balance(merchant) == 104
    assert "\ncredits_clock_moved 0.0\n" in running.client.get("/metrics").text


def test_gate_and_postings_use_one_clock(start: Callable[..., Running]) -> None:
    running = start()
    running.open()
    service = running.service
    told = service.gate._clock()
    assert abs(told - running.run(service.engine.now())) < 1_000_000
