"""The gate: plugin status from a near cache that postings update, right at every due instant."""

import asyncio
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit_service.gate import status
from credit_service.gate.answers import StatusAnswer, shape
from credit_service.ledger.account import Grant
from tests.gate.settings import MERCHANT, NOW, SECOND, Setting, account


@pytest.mark.parametrize(
    ("available", "told"),
    [(1, ("enabled", "available")), (0, ("disabled", "exhausted")), (-1, ("disabled", "exhausted"))],
)
async def test_plugin_is_enabled_while_credits_are_available(available: int, told: tuple[str, str]) -> None:
    assert await Setting(account(available)).told() == told


async def test_held_and_pending_credits_are_not_available() -> None:
    assert await Setting(account(10, held=4, pending=6)).told() == ("disabled", "exhausted")


async def test_unknown_merchant_is_disabled_and_cached() -> None:
    setting = Setting()
    assert await setting.told() == ("disabled", "unknown_merchant")
    assert await setting.told() == ("disabled", "unknown_merchant")
    assert len(setting.store.asked) == 1


async def test_answer_lives_until_its_ttl() -> None:
    setting = Setting(account(5), ttl_seconds=15)
    await setting.told()
    setting.store.accounts[MERCHANT] = account(0, NOW)  # and the gate is not told
    setting.clock.now += 15 * SECOND - 1
    assert await setting.told() == ("enabled", "available")
    setting.clock.now += 1
    assert await setting.told() == ("disabled", "exhausted")
    assert len(setting.store.asked) == 2


async def test_answer_ends_at_the_next_due_instant() -> None:
    expiring = account(5, next_due_at=NOW + 3 * SECOND, granted=1)
    setting = Setting(expiring, ttl_seconds=15)
    setting.store.grants[MERCHANT] = (Grant(1, 1, "paid", 100, 0, NOW + 3 * SECOND, 5, 5),)
    assert await setting.told() == ("enabled", "available")
    setting.clock.now = NOW + 3 * SECOND - 1
    assert await setting.told() == ("enabled", "available")
    assert len(setting.store.asked) == 1
    setting.clock.now = NOW + 3 * SECOND
    assert await setting.told() == ("disabled", "exhausted")
    assert len(setting.store.asked) == 2
    assert await setting.told() == ("disabled", "exhausted")
    assert len(setting.store.asked) == 2


async def test_answer_of_a_posting_ends_at_the_next_due_instant() -> None:
    setting = Setting(account(0))
    await setting.told()
    setting.commit(account(5, NOW, next_due_at=NOW + SECOND))
    assert setting.gate.cached(MERCHANT) is not None
    setting.clock.now += SECOND
    assert setting.gate.cached(MERCHANT) is None


async def test_beginning_grant_counts_from_its_instant() -> None:
    pending = account(5, pending=5, next_due_at=NOW + SECOND, granted=1)
    setting = Setting(pending)
    setting.store.grants[MERCHANT] = (Grant(1, 1, "paid", 100, NOW + SECOND, None, 5, 5),)
    assert await setting.told() == ("disabled", "exhausted")
    setting.clock.now += SECOND
    assert await setting.told() == ("enabled", "available")


async def test_posting_replaces_a_cached_answer_at_once() -> None:
    setting = Setting(account(5))
    assert await setting.told() == ("enabled", "available")
    setting.commit(account(0, NOW))
    assert await setting.told() == ("disabled", "exhausted")
    setting.commit(account(3, NOW + 1))
    assert await setting.told() == ("enabled", "available")
    assert len(setting.store.asked) == 1


async def test_opened_account_replaces_the_unknown_merchant() -> None:
    setting = Setting()
    await setting.told()
    setting.commit(account(100, NOW))
    assert await setting.told() == ("enabled", "available")


async def test_postings_of_uncached_merchants_are_not_cached() -> None:
    setting = Setting()
    setting.commit(account(5, NOW))
    assert setting.gate.cached(MERCHANT) is None


async def test_late_answer_of_the_store_does_not_undo_a_posting() -> None:
    setting = Setting(account(5))
    setting.store.open.clear()
    asking = asyncio.ensure_future(setting.told())
    await setting.store.read.wait()  # the store has read the account as it was
    setting.commit(account(0, NOW))
    setting.store.open.set()
    assert await asking == ("disabled", "exhausted")
    assert await setting.told() == ("disabled", "exhausted")
    assert len(setting.store.asked) == 1


@pytest.mark.parametrize(
    "later",
    [
        {"settled_at": NOW - SECOND, "sequence": 2},  # the clock stood still
        {"settled_at": NOW - SECOND, "announced": 1},  # a hold was placed: no transaction
        {"settled_at": NOW, "sequence": 1},
    ],
)
async def test_posting_is_later_although_the_clock_stands_still(later: dict[str, Any]) -> None:
    setting = Setting(account(5))
    setting.store.open.clear()
    asking = asyncio.ensure_future(setting.told())
    await setting.store.read.wait()
    setting.commit(account(0)._replace(**later))
    setting.store.open.set()
    assert await asking == ("disabled", "exhausted")
    assert await setting.told() == ("disabled", "exhausted")


async def test_late_unknown_answer_does_not_undo_an_opening() -> None:
    setting = Setting()
    setting.store.open.clear()
    asking = asyncio.ensure_future(setting.told())
    await setting.store.read.wait()
    setting.commit(account(100, NOW))
    setting.store.open.set()
    assert await asking == ("enabled", "available")


async def test_later_posting_wins_whatever_the_order() -> None:
    setting = Setting(account(5))
    await setting.told()
    setting.gate.committed([account(0, NOW + 2)])
    setting.gate.committed([account(7, NOW + 1)])
    assert await setting.told() == ("disabled", "exhausted")


async def test_concurrent_misses_ask_the_store_once() -> None:
    setting = Setting(account(5))
    setting.store.open.clear()
    asking = [asyncio.ensure_future(setting.told()) for _ in range(100)]
    many = [asyncio.ensure_future(setting.gate.ask_many([MERCHANT, MERCHANT])) for _ in range(10)]
    await setting.store.read.wait()
    setting.store.open.set()
    assert set(await asyncio.gather(*asking)) == {("enabled", "available")}
    assert {answer.status for answers in await asyncio.gather(*many) for answer in answers} == {"enabled"}
    assert setting.store.asked == [[MERCHANT]]


async def test_batch_asks_only_for_missing_merchants_in_one_question() -> None:
    known, asked, first, second = str(uuid4()), str(uuid4()), str(uuid4()), str(uuid4())
    setting = Setting(account(1, merchant_id=known), account(1, merchant_id=asked), account(0, merchant_id=first))
    await setting.told(known)
    setting.store.open.clear()
    asking = asyncio.ensure_future(setting.told(asked))
    await asyncio.sleep(0)
    many = asyncio.ensure_future(setting.gate.ask_many([second, known, first, asked, first]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    setting.store.open.set()
    told = [(answer.merchant_id, answer.reason) for answer in await many]
    assert told == [
        (second, "unknown_merchant"),
        (known, "available"),
        (first, "exhausted"),
        (asked, "available"),
        (first, "exhausted"),
    ]
    assert await asking == ("enabled", "available")
    assert setting.store.asked == [[known], [asked], [second, first]]
    assert await setting.gate.ask_many([]) == []


async def test_cancelled_caller_does_not_cancel_the_load() -> None:
    setting = Setting(account(5))
    setting.store.open.clear()
    first, second = asyncio.ensure_future(setting.told()), asyncio.ensure_future(setting.told())
    await setting.store.read.wait()
    first.cancel()
    setting.store.open.set()
    assert await second == ("enabled", "available")
    assert first.cancelled()
    assert len(setting.store.asked) == 1


async def test_last_known_answer_counts_while_the_store_is_away() -> None:
    setting = Setting(account(5), ttl_seconds=15, stale_seconds=300)
    await setting.told()
    setting.store.away = True
    setting.clock.now += 300 * SECOND
    assert await setting.told() == ("enabled", "unavailable")
    setting.clock.now += 1
    assert await setting.told() == ("disabled", "unavailable")
    setting.store.away = False
    assert await setting.told() == ("enabled", "available")


@pytest.mark.parametrize(("fail", "status"), [("closed", "disabled"), ("open", "enabled")])
async def test_fail_policy_counts_if_nothing_is_known(fail: str, status: str) -> None:
    setting = Setting(account(5), fail=fail)
    setting.store.away = True
    assert await setting.told() == (status, "unavailable")
    assert (await setting.gate.ask_many([MERCHANT]))[0].status == status


async def test_answer_without_the_store_is_not_cached() -> None:
    setting = Setting(account(5))
    setting.store.away = True
    await setting.told()
    setting.store.away = False
    assert await setting.told() == ("enabled", "available")


async def test_posting_updates_the_answer_while_reading_fails() -> None:
    setting = Setting(account(5))
    setting.store.open.clear()
    setting.store.away = True
    asking = asyncio.ensure_future(setting.told())
    await setting.store.read.wait()
    setting.commit(account(0, NOW))
    setting.store.open.set()
    assert await asking == ("disabled", "unavailable")
    assert await setting.told() == ("disabled", "exhausted")


async def test_unexpected_error_reaches_the_callers_once() -> None:
    setting = Setting(account(5))

    async def broken(*_: object) -> Any:
        raise RuntimeError("a bug")

    store: Any = setting.store
    load, store.load = store.load, broken
    with pytest.raises(RuntimeError):
        await setting.told()
    store.load = load
    assert await setting.told() == ("enabled", "available")


async def test_cache_is_bounded_and_evicts_the_oldest() -> None:
    merchants = [str(uuid4()) for _ in range(5)]
    setting = Setting(*(account(1, merchant_id=merchant) for merchant in merchants), size=3)
    for merchant in merchants:
        await setting.told(merchant)
    assert [setting.gate.cached(merchant) is not None for merchant in merchants] == [False, False, True, True, True]
    setting.commit(account(0, NOW, merchants[2]))  # what is told anew is young again
    await setting.told(merchants[0])
    assert [setting.gate.cached(merchant) is not None for merchant in merchants] == [True, False, True, False, True]


async def test_flood_of_unknown_ids_leaves_answers_of_real_merchants() -> None:
    setting = Setting(account(5), size=100)
    await setting.told()
    for _ in range(201):
        await setting.told(str(uuid4()))
    assert setting.gate.cached(MERCHANT) is not None
    setting.store.away = True
    setting.clock.now += 20 * SECOND
    assert await setting.told() == ("enabled", "unavailable")


async def test_unknown_merchants_are_cached_up_to_their_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "UNKNOWN_SIZE", 2)
    merchants = [str(uuid4()) for _ in range(3)]
    setting = Setting(size=100)
    for merchant in merchants:
        await setting.told(merchant)
    assert [setting.gate.cached(merchant) is not None for merchant in merchants] == [False, True, True]
    setting.commit(account(1, NOW, merchants[2]))
    assert await setting.told(merchants[2]) == ("enabled", "available")
    await setting.told(merchants[0])
    assert [setting.gate.cached(merchant) is not None for merchant in merchants] == [True, True, True]


async def test_answer_is_rendered_once() -> None:
    rendered: list[StatusAnswer] = []

    def render(answer: StatusAnswer) -> str:
        rendered.append(answer)
        return f"{answer.status} {answer.reason}"

    setting = Setting(account(5), render=render)
    for _ in range(3):
        assert (await setting.gate.ask(MERCHANT)).rendered == "enabled available"
    assert len(rendered) == 1
    setting.commit(account(0, NOW))
    assert (await setting.gate.ask(MERCHANT)).rendered == "disabled exhausted"
    setting.store.away = True
    setting.clock.now += 20 * SECOND
    assert (await setting.gate.ask(MERCHANT)).rendered == "disabled unavailable"


async def test_answer_has_the_time_it_was_known() -> None:
    setting = Setting(account(5))
    first = await setting.gate.ask(MERCHANT)
    setting.clock.now += SECOND
    assert (await setting.gate.ask(MERCHANT)).as_of == first.as_of == NOW
    setting.commit(account(4, NOW + SECOND))
    assert (await setting.gate.ask(MERCHANT)).as_of == NOW + SECOND
    assert shape(first) == {"status": "enabled", "reason": "available"}


steps = st.lists(st.sampled_from(["ask", "commit", "read", "answer", "tick"]), max_size=12)


@given(steps)
def test_last_posting_is_answered_in_any_interleaving(steps: Iterable[str]) -> None:
    """Questions, postings and answers of the store interleave; no answer is older than what was known when asked."""

    async def play() -> None:
        setting = Setting(account(1))
        setting.store.open.clear()
        balance, at = 1, NOW
        asked: list[tuple[int, asyncio.Future[tuple[str, str]]]] = []
        for step in steps:
            if step == "ask":
                asked.append((balance, asyncio.ensure_future(setting.told())))
                await asyncio.sleep(0)
            elif step == "commit":
                balance, at = 1 - balance, at + 1
                setting.commit(account(balance, at))
            elif step == "answer":
                setting.store.open.set()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                setting.store.open.clear()
            elif step == "tick":
                setting.clock.now += 16 * SECOND
            else:
                await asyncio.sleep(0)
        setting.store.open.set()
        await asyncio.gather(*[asking for _, asking in asked])
        expected = ("enabled", "available") if balance else ("disabled", "exhausted")
        assert await setting.told() == expected

    asyncio.run(play())
