"""Totals over all merchants: new with few merchants, reused for a while with many."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from credit_service.gate import totals
from credit_service.gate.totals import MANY, SHARE, Counting
from credit_service.ledger.policy import Policy
from credit_service.storage.accounts import AccountsSummary
from credit_service.storage.engine import StorageUnavailable


class Large:
    """A store of so many merchants, which takes a while to count them."""

    def __init__(self, merchants: int) -> None:
        self.merchants = merchants
        self.counted = 0
        self.takes = 2.0
        self.now = 0.0
        self.open = asyncio.Event()
        self.open.set()
        self.away = False

    async def summary(self, at: int, threshold: int) -> AccountsSummary:
        self.counted += 1
        await self.open.wait()
        if self.away:
            raise StorageUnavailable("gone")
        self.now += self.takes
        return AccountsSummary(self.merchants, self.merchants - 1, 1, 2, 10.0)

    async def due_accounts(self, at: int) -> list[Any]:
        return []


@pytest.fixture
async def large() -> AsyncIterator[tuple[Large, Counting]]:
    store = Large(MANY)
    untyped: Any = store
    counting = Counting(untyped, Policy(), lambda: 0, lambda: store.now)
    yield store, counting
    await counting.stop()


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_few_merchants_are_counted_each_time(large: tuple[Large, Counting]) -> None:
    store, counting = large
    for number in (3, 4, MANY - 1):
        store.merchants = number
        assert (await counting.totals()).merchants == number
    assert store.counted == 3


async def test_totals_of_many_are_reused_for_a_multiple_of_the_counting_time(large: tuple[Large, Counting]) -> None:
    store, counting = large
    assert (await counting.totals()).merchants == MANY
    store.merchants += 1
    store.now = 2 + SHARE * 2 - 0.001
    assert (await counting.totals()).merchants == MANY
    await turn()
    assert store.counted == 1
    store.now += 0.001
    assert (await counting.totals()).merchants == MANY  # nobody waits for the next ones
    await turn()
    assert (await counting.totals()).merchants == MANY + 1
    assert store.counted == 2


async def test_concurrent_first_callers_share_one_count(large: tuple[Large, Counting]) -> None:
    store, counting = large
    store.open.clear()
    asking = [asyncio.ensure_future(counting.totals()) for _ in range(10)]
    await turn()
    asking.pop().cancel()  # and takes nobody's answer along
    store.open.set()
    assert {one.merchants for one in await asyncio.gather(*asking)} == {MANY}
    assert store.counted == 1


async def test_totals_of_many_stay_while_the_store_is_away(large: tuple[Large, Counting]) -> None:
    store, counting = large
    store.away = True
    with pytest.raises(StorageUnavailable):
        await counting.totals()
    store.away = False
    await counting.totals()
    store.away = True
    store.now += 1000
    for _ in range(3):
        assert (await counting.totals()).merchants == MANY
        await turn()
    assert store.counted == 5  # tried again each time


@pytest.mark.parametrize("merchants", [3, MANY])
async def test_callers_do_not_wait_long_for_a_silent_store(
    large: tuple[Large, Counting], monkeypatch: pytest.MonkeyPatch, merchants: int
) -> None:
    monkeypatch.setattr(totals, "PATIENCE_SECONDS", 0.01)
    store, counting = large
    store.merchants = merchants
    store.open.clear()
    with pytest.raises(StorageUnavailable, match="still counting"):
        await counting.totals()
    store.open.set()
    await turn()
    assert (await counting.totals()).merchants == merchants
    store.open.clear()
    if merchants < MANY:
        with pytest.raises(StorageUnavailable, match="still counting"):
            await counting.totals()
    assert (await counting.totals()).merchants == merchants  # the last ones
