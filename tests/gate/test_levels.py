"""The levels behind the near cache: their order, versions, messages and outages."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest

from credit_service import breaker
from credit_service.gate import levels
from credit_service.gate.answers import answer_in, line_of, of_account, text_of
from credit_service.gate.status import Gate
from credit_service.ledger.account import Announcement
from credit_service.ledger.announcements import ACCOUNT_CREATED, PLUGIN_STATUS_CHANGED
from credit_service.ledger.types import CONSUMED
from tests.gate.settings import MERCHANT, NOW, SECOND, FakeChannel, FakeLevel, Setting, account

TTL = 15 * SECOND


def answer(available: int, settled_at: int = NOW - SECOND, **more: Any) -> Any:
    return of_account(account(available, settled_at, **more), NOW, TTL)


async def put(setting: Setting, times: int = 3) -> None:
    """Let what is kept beside a question be kept."""
    for _ in range(times):
        await asyncio.sleep(0)


async def test_shared_level_is_asked_before_the_store_and_filled_from_it() -> None:
    shared = FakeLevel()
    here, there = Setting(account(5), shared=shared), Setting(account(5), shared=shared)
    assert (await here.gate.ask(MERCHANT)).source == "storage"
    await put(here)
    assert (await there.gate.ask(MERCHANT)).source == "redis"
    assert (len(here.store.asked), len(there.store.asked)) == (1, 0)
    for setting in (here, there):
        cached = setting.gate.cached(MERCHANT)
        assert cached is not None
        assert (cached.source, cached.status) == ("near", "enabled")


async def test_unknown_merchant_is_shared_too() -> None:
    shared = FakeLevel()
    here, there = Setting(shared=shared), Setting(shared=shared)
    await here.told()
    await put(here)
    assert await there.told() == ("disabled", "unknown_merchant")
    assert there.store.asked == []


async def test_thousand_merchants_are_one_question_to_each_level() -> None:
    shared, merchants = FakeLevel(), [str(uuid4()) for _ in range(1000)]
    setting = Setting(shared=shared)
    await setting.gate.ask_many(merchants)
    assert (shared.asked, setting.store.asked) == ([merchants], [merchants])


async def test_concurrent_questions_are_one_question_to_each_level() -> None:
    shared, merchants = FakeLevel(), [str(uuid4()) for _ in range(50)]
    setting = Setting(shared=shared)
    await asyncio.gather(*[setting.gate.ask(merchant) for merchant in merchants])
    assert (shared.asked, setting.store.asked) == ([merchants], [merchants])


async def test_shared_answer_older_than_the_last_known_is_ignored() -> None:
    shared = FakeLevel()
    setting = Setting(account(0, NOW), shared=shared)
    shared.kept[MERCHANT] = answer(5)
    await setting.told()
    setting.commit(account(0, NOW + 1))
    setting.gate.distrust()
    assert await setting.told() == ("disabled", "exhausted")
    assert len(setting.store.asked) == 1


async def test_late_shared_answer_does_not_undo_a_newer_message() -> None:
    shared = FakeLevel()
    shared.kept[MERCHANT] = answer(5)
    shared.open.clear()
    setting = Setting(account(0, NOW), shared=shared)
    asking = asyncio.ensure_future(setting.told())
    await shared.read.wait()
    setting.gate.heard(line_of(answer(0, NOW)))
    shared.open.set()
    assert await asking == ("disabled", "exhausted")
    assert await setting.told() == ("disabled", "exhausted")


async def test_shared_answer_expires_with_the_next_due_instant() -> None:
    shared = FakeLevel()
    here, there = (Setting(account(5, next_due_at=NOW + 3 * SECOND), shared=shared) for _ in range(2))
    await here.told()
    await put(here)
    there.clock.now = NOW + 3 * SECOND - 1
    assert (await there.gate.ask(MERCHANT)).source == "redis"
    there.clock.now += 1
    assert (await there.gate.ask(MERCHANT)).source == "storage"


async def test_store_that_lost_commits_wins_after_the_ttl() -> None:
    setting = Setting(account(5, NOW))
    await setting.told()
    setting.commit(account(0, NOW + 1))  # and a failover loses it
    setting.store.accounts[MERCHANT] = account(5, NOW)
    setting.clock.now += TTL
    assert await setting.told() == ("enabled", "available")
    assert setting.gate.cached(MERCHANT) is not None


# ---- other processes


@asynccontextmanager
async def joined(*accounts: Any, **settings: Any) -> AsyncIterator[tuple[Setting, FakeChannel]]:
    """A gate that is connected with others."""
    channel = FakeChannel()
    setting = Setting(*accounts, channel=channel, **settings)
    await setting.gate.start()
    await channel.is_joined.wait()
    try:
        yield setting, channel
    finally:
        await setting.gate.close()


async def test_message_replaces_a_cached_answer_at_once() -> None:
    async with joined(account(5)) as (setting, channel):
        assert await setting.told() == ("enabled", "available")
        channel.heard(line_of(answer(0, NOW)))
        assert await setting.told() == ("disabled", "exhausted")
        channel.heard(line_of(answer(7)))  # late
        assert await setting.told() == ("disabled", "exhausted")
        assert len(setting.store.asked) == 1


async def test_message_about_an_uncached_merchant_is_ignored() -> None:
    async with joined() as (setting, channel):
        channel.heard(line_of(answer(5)))
        assert setting.gate.cached(MERCHANT) is None


async def test_late_message_is_good_for_the_rest_of_its_ttl() -> None:
    async with joined(account(5)) as (setting, channel):
        await setting.told()
        setting.clock.now += 10 * SECOND
        channel.heard(line_of(answer(0, NOW)))
        assert await setting.told() == ("disabled", "exhausted")
        setting.clock.now += 5 * SECOND
        assert setting.gate.cached(MERCHANT) is None


@pytest.mark.parametrize(
    "line",
    ["", "x", f"{MERCHANT}", f"{MERCHANT} ", f"{MERCHANT} 1", "x" * 10_000]
    + [f"{MERCHANT} {text_of(answer(0, NOW))}{more}" for more in ("x", " ", "\n")],
)
async def test_malformed_message_is_ignored(line: str) -> None:
    assert answer_in(line, NOW, TTL) is None
    async with joined(account(5)) as (setting, channel):
        await setting.told()
        channel.heard(line)
        assert await setting.told() == ("enabled", "available")


def announced(*types: str) -> list[tuple[int, Announcement]]:
    return [(1, Announcement(number, type_, None, 0, NOW)) for number, type_ in enumerate(types, 1)]


@pytest.mark.parametrize(
    ("committed", "types", "told"),
    [
        (account(0, NOW), [CONSUMED, PLUGIN_STATUS_CHANGED], 1),
        (account(0, NOW), [ACCOUNT_CREATED], 1),  # unknown before: the reason is another
        (account(4, NOW), [CONSUMED], 0),
        (account(4, NOW), [], 0),
        (account(4, NOW, next_due_at=NOW + SECOND), [CONSUMED], 1),  # answers that others have would outlive it
        (account(4, NOW, next_due_at=NOW + TTL), [CONSUMED], 0),
        (account(4, NOW, next_due_at=NOW), [CONSUMED], 0),
    ],
)
async def test_only_changed_answers_are_sent(committed: Any, types: list[str], told: int) -> None:
    async with joined() as (setting, channel):
        setting.gate.committed([committed], announced(*types))
    assert len(channel.told) == told


async def test_busy_account_without_a_change_causes_no_message() -> None:
    async with joined(account(10_000)) as (setting, channel):
        for spent in range(1000):
            setting.gate.committed([account(10_000 - spent, NOW + spent)], announced(CONSUMED))
    assert channel.told == []


async def test_pending_messages_of_one_merchant_become_one() -> None:
    async with joined() as (setting, channel):
        for step in range(5):
            setting.gate.committed([account(step % 2, NOW + step)], announced(PLUGIN_STATUS_CHANGED))
    assert [[one.status for one in some] for some in channel.told] == [["disabled"]]


async def test_last_changes_are_sent_before_the_stop() -> None:
    async with joined() as (setting, channel):
        await asyncio.sleep(0)
        setting.gate.committed([account(0, NOW)], announced(PLUGIN_STATUS_CHANGED))
    assert len(channel.told) == 1


async def test_failing_channel_delays_neither_answers_nor_the_stop() -> None:
    async with joined(account(5)) as (setting, channel):
        channel.broken = True
        setting.gate.committed([account(0, NOW)], announced(PLUGIN_STATUS_CHANGED))
        assert await setting.told() == ("enabled", "available")


async def test_lost_connection_invalidates_the_near_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("credit_service.gate.neighbours._RECONNECT_SECONDS", 0)
    async with joined(account(5)) as (setting, channel):
        await setting.told()
        setting.store.accounts[MERCHANT] = account(0, NOW)  # another process; its message gets lost
        channel.is_joined.clear()
        channel.lose.set()
        await channel.is_joined.wait()
        assert setting.gate.cached(MERCHANT) is None
        setting.store.away = True
        assert await setting.told() == ("enabled", "unavailable")
        setting.store.away = False
        assert await setting.told() == ("disabled", "exhausted")


async def test_answer_read_before_a_lost_connection_is_not_cached() -> None:
    setting = Setting(account(5))
    setting.store.open.clear()
    asking = asyncio.ensure_future(setting.told())
    await setting.store.read.wait()
    setting.gate.distrust()
    setting.store.open.set()
    await asking
    assert setting.gate.cached(MERCHANT) is None


# ---- fail policies of accounts


@pytest.mark.parametrize(("default", "own", "status"), [("closed", "open", "enabled"), ("open", "closed", "disabled")])
async def test_account_may_have_its_own_fail_policy(default: str, own: Any, status: str) -> None:
    setting = Setting(fail=default)
    setting.store.policies = {MERCHANT: own}
    await setting.gate.start()
    try:
        setting.store.away = True
        other = {"closed": "disabled", "open": "enabled"}[default]
        assert await setting.told() == (status, "unavailable")
        assert await setting.told(str(uuid4())) == (other, "unavailable")
        setting.gate.set_fail(MERCHANT, None)
        assert await setting.told() == (other, "unavailable")
        setting.gate.set_fail(MERCHANT, own)
        assert await setting.told() == (status, "unavailable")
    finally:
        await setting.gate.close()


async def test_fail_policies_are_refreshed_and_kept_during_an_outage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setting = Setting()
    gate: Any = setting.gate
    await gate._read_exceptions()
    setting.store.policies = {MERCHANT: "open"}
    await gate._read_exceptions()
    setting.store.away = True
    await gate._read_exceptions()
    assert await setting.told() == ("enabled", "unavailable")


# ---- silence


class Timer:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_silent_store_is_waited_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (levels, "credit_service.gate.status"):
        name = module if isinstance(module, str) else module.__name__
        monkeypatch.setattr(f"{name}.PATIENCE_SECONDS", 0.02)
    monkeypatch.setattr(breaker, "PAUSE_SECONDS", 3600)
    first, second = str(uuid4()), str(uuid4())
    setting = Setting(account(5), account(5, merchant_id=first), account(5, merchant_id=second))
    await setting.told()
    setting.clock.now += TTL
    setting.store.open.clear()
    assert await setting.told() == ("enabled", "unavailable")  # waited for in vain
    assert setting.gate.is_storage_silent
    asked = len(setting.store.asked)
    assert await setting.told() == ("enabled", "unavailable")
    assert await setting.told(second) == ("disabled", "unavailable")
    assert len(setting.store.asked) == asked  # nobody asks while it is silent
    setting.store.open.set()
    await put(setting)
    assert setting.gate.cached(MERCHANT) is not None  # the answer came late, and is remembered
    assert await setting.told(second) == ("enabled", "available")


async def test_late_answer_of_a_silent_store_does_not_undo_a_posting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("credit_service.gate.status.PATIENCE_SECONDS", 0.02)
    setting = Setting(account(5))
    setting.store.open.clear()
    assert await setting.told() == ("disabled", "unavailable")
    setting.commit(account(0, NOW))
    setting.store.open.set()
    await put(setting)
    assert await setting.told() == ("disabled", "exhausted")


class Probed:
    """What a breaker stands before; a test says how a probe ends."""

    def __init__(self) -> None:
        self.probes = 0
        self.well = False
        self.timer = Timer()
        self.breaker = breaker.ProbedBreaker("it", self.probe, clock=self.timer)

    async def probe(self) -> None:
        self.probes += 1
        if not self.well:
            raise TimeoutError

    async def is_open(self) -> bool:
        """As those who ask find it."""
        found = self.breaker.is_open()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return found


async def test_open_breaker_sends_a_probe_after_each_pause() -> None:
    probed = Probed()
    assert not await probed.is_open()
    probed.breaker.open("silence")
    for _ in range(3):
        assert await probed.is_open()
    assert probed.probes == 0
    for round_ in range(1, 4):
        probed.timer.now += breaker.PAUSE_SECONDS
        for _ in range(3):
            assert await probed.is_open()  # nobody waits for a probe
        assert probed.probes == round_
    probed.well = True
    probed.timer.now += breaker.PAUSE_SECONDS
    assert await probed.is_open()
    assert not await probed.is_open()
    await probed.breaker.stop()


async def test_answer_closes_the_breaker() -> None:
    probed = Probed()
    probed.breaker.open("silence")
    probed.breaker.close()
    assert not await probed.is_open()


async def test_stopping_the_breaker_cancels_its_probe() -> None:
    never: Callable[[], Any] = asyncio.Event().wait
    timer = Timer()
    one = breaker.ProbedBreaker("it", never, clock=timer)
    one.open("silence")
    timer.now += breaker.PAUSE_SECONDS
    assert one.is_open()
    await asyncio.sleep(0)
    await one.stop()
    assert [task for task in asyncio.all_tasks() if task.get_name() == "probe of it"] == []


def test_answer_survives_its_text_form() -> None:
    for available, reason in ((5, "available"), (0, "exhausted")):
        one = answer(available, NOW - 7, sequence=12, announced=3)
        assert answer_in(line_of(one), NOW, TTL) == one
        assert one.reason == reason
    # A writer whose clock is ahead of ours, or whose TTL is longer, makes no answer live longer here.
    ahead = of_account(account(5), NOW + 60 * SECOND, 40 * SECOND)
    read = answer_in(line_of(ahead), NOW, TTL)
    assert read is not None
    assert read.until == NOW + TTL


def test_gate_works_without_shared_level_and_channel() -> None:
    store: Any = None
    assert Gate(store, store, store).cached(str(UUID(int=1))) is None
