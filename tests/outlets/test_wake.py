"""Commits of this process wake the readers of the outbox, and no commit is missed."""

import asyncio

import pytest

from credit_service.ledger.account import Announcement
from credit_service.ledger.announcements import BALANCE_EXHAUSTED, PLUGIN_STATUS_CHANGED
from credit_service.ledger.types import CONSUMED
from credit_service.outlets.wake import Wake
from credit_service.storage.engine import Committed, Writes


async def test_one_commit_wakes_all_waiting_readers() -> None:
    wake = Wake()
    waiting = [asyncio.create_task(wake.wait(0, 60)) for _ in range(3)]
    await asyncio.sleep(0)
    wake.send()
    assert await asyncio.gather(*waiting) == [True, True, True]


async def test_commit_during_a_read_ends_the_next_wait() -> None:
    wake = Wake()
    seen = wake.count
    wake.send()
    assert await wake.wait(seen, 60)


async def test_wait_times_out_and_the_next_wait_can_be_woken() -> None:
    wake = Wake()
    assert not await wake.wait(0, 0)
    waiting = asyncio.create_task(wake.wait(0, 60))
    await asyncio.sleep(0)
    wake.send()
    assert await waiting


async def test_cancelled_wait_does_not_disturb_another() -> None:
    wake = Wake()
    one, other = (asyncio.create_task(wake.wait(0, 60)) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    await asyncio.gather(one, return_exceptions=True)
    wake.send()
    assert await other


def committed(*types: str) -> Committed:
    writes = Writes()
    writes.announcements = [(1, Announcement(number, type_, None, 0, 0)) for number, type_ in enumerate(types, 1)]
    return Committed(writes)


@pytest.mark.parametrize(
    ("types", "urgent"),
    [([CONSUMED], 0), ([CONSUMED, BALANCE_EXHAUSTED, PLUGIN_STATUS_CHANGED], 1), ([], 0)],
    ids=str,
)
def test_commit_with_an_urgent_announcement_sends_the_urgent_signal(types: list[str], urgent: int) -> None:
    wake = Wake()
    wake.committed(committed(*types))
    assert (wake.count, wake.urgent.count) == (1, urgent)
