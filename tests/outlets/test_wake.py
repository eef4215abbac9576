"""Readers of the outbox are woken by the commits of their own process, and none is lost on the way."""

import asyncio

from credit_service.outlets.wake import Wake


async def test_all_who_wait_are_woken_by_one_commit() -> None:
    wake = Wake()
    waiting = [asyncio.create_task(wake.wait(0, 60)) for _ in range(3)]
    await asyncio.sleep(0)
    wake.committed()
    assert await asyncio.gather(*waiting) == [True, True, True]


async def test_a_commit_while_a_reader_reads_wakes_it_at_once() -> None:
    wake = Wake()
    seen = wake.commits
    wake.committed()
    assert await wake.wait(seen, 60)


async def test_without_a_commit_the_wait_ends_and_the_next_one_can_be_woken() -> None:
    wake = Wake()
    assert not await wake.wait(0, 0)
    waiting = asyncio.create_task(wake.wait(0, 60))
    await asyncio.sleep(0)
    wake.committed()
    assert await waiting


async def test_who_gives_up_waiting_disturbs_nobody() -> None:
    wake = Wake()
    one, other = (asyncio.create_task(wake.wait(0, 60)) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    await asyncio.gather(one, return_exceptions=True)
    wake.committed()
    assert await other
