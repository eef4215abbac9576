"""The levels behind the near cache: asked in their order, believed by the version, and never waited for twice."""

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


async def test_the_shared_level_is_asked_before_the_store_and_told_what_the_store_knew() -> None:
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


async def test_an_unknown_merchant_is_shared_too() -> None:
    shared = FakeLevel()
    here, there = Setting(shared=shared), Setting(shared=shared)
    await here.told()
    await put(here)
    assert await there.told() == ("disabled", "unknown_merchant")
    assert there.store.asked == []


async def test_a_thousand_are_one_question_to_each_level() -> None:
    shared, merchants = FakeLevel(), [uuid4() for _ in range(1000)]
    setting = Setting(shared=shared)
    await setting.gate.ask_many(merchants)
    assert (shared.asked, setting.store.asked) == ([merchants], [merchants])


async def test_questions_that_come_together_are_one_question_to_each_level() -> None:
    shared, merchants = FakeLevel(), [uuid4() for _ in range(50)]
    setting = Setting(shared=shared)
    await asyncio.gather(*[setting.gate.ask(merchant) for merchant in merchants])
    assert (shared.asked, setting.store.asked) == ([merchants], [merchants])


async def test_what_the_shared_level_knows_is_earlier_than_what_was_seen_and_so_no_answer() -> None:
    shared = FakeLevel()
    setting = Setting(account(0, NOW), shared=shared)
    shared.kept[MERCHANT] = answer(5)
    await setting.told()
    setting.commit(account(0, NOW + 1))
    setting.gate.distrust()
    assert await setting.told() == ("disabled", "exhausted")
    assert len(setting.store.asked) == 1


async def test_a_late_answer_of_the_shared_level_does_not_undo_what_was_told_meanwhile() -> None:
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


async def test_an_answer_in_the_shared_level_lives_no_longer_there_than_elsewhere() -> None:
    shared = FakeLevel()
    here, there = (Setting(account(5, next_due_at=NOW + 3 * SECOND), shared=shared) for _ in range(2))
    await here.told()
    await put(here)
    there.clock.now = NOW + 3 * SECOND - 1
    assert (await there.gate.ask(MERCHANT)).source == "redis"
    there.clock.now += 1
    assert (await there.gate.ask(MERCHANT)).source == "storage"


async def test_a_store_that_has_lost_commits_is_believed_when_what_was_known_has_ended() -> None:
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


async def test_what_another_process_tells_replaces_a_remembered_answer_at_once() -> None:
    async with joined(account(5)) as (setting, channel):
        assert await setting.told() == ("enabled", "available")
        channel.heard(line_of(answer(0, NOW)))
        assert await setting.told() == ("disabled", "exhausted")
        channel.heard(line_of(answer(7)))  # late
        assert await setting.told() == ("disabled", "exhausted")
        assert len(setting.store.asked) == 1


async def test_what_nobody_asks_for_is_not_remembered_when_another_process_tells_of_it() -> None:
    async with joined() as (setting, channel):
        channel.heard(line_of(answer(5)))
        assert setting.gate.cached(MERCHANT) is None


async def test_a_message_that_was_under_way_for_long_is_good_for_the_rest_of_its_ttl() -> None:
    async with joined(account(5)) as (setting, channel):
        await setting.told()
        setting.clock.now += 10 * SECOND
        channel.heard(line_of(answer(0, NOW)))
        assert await setting.told() == ("disabled", "exhausted")
        setting.clock.now += 5 * SECOND
        assert setting.gate.cached(MERCHANT) is None


@pytest.mark.parametrize(
    "line",
    ["", "x", f"{MERCHANT}", f"{MERCHANT} ", f"{MERCHANT} 1", "x" * 10_000, f"x {text_of(answer(0, NOW))}"]
    + [f"{MERCHANT} {text_of(answer(0, NOW))}{more}" for more in ("x", " ", "\n")],
)
async def test_a_message_that_is_none_is_passed_over(line: str) -> None:
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
async def test_only_what_changes_an_answer_is_told(committed: Any, types: list[str], told: int) -> None:
    async with joined() as (setting, channel):
        setting.gate.committed([committed], announced(*types))
    assert len(channel.told) == told


async def test_a_busy_account_whose_status_stays_causes_no_message() -> None:
    async with joined(account(10_000)) as (setting, channel):
        for spent in range(1000):
            setting.gate.committed([account(10_000 - spent, NOW + spent)], announced(CONSUMED))
    assert channel.told == []


async def test_what_waits_to_be_told_of_one_merchant_is_told_as_one_the_last() -> None:
    async with joined() as (setting, channel):
        for step in range(5):
            setting.gate.committed([account(step % 2, NOW + step)], announced(PLUGIN_STATUS_CHANGED))
    assert [[one.status for one in some] for some in channel.told] == [["disabled"]]


async def test_the_last_postings_are_told_before_the_end() -> None:
    async with joined() as (setting, channel):
        await asyncio.sleep(0)
        setting.gate.committed([account(0, NOW)], announced(PLUGIN_STATUS_CHANGED))
    assert len(channel.told) == 1


async def test_a_channel_that_fails_hinders_neither_answers_nor_the_end() -> None:
    async with joined(account(5)) as (setting, channel):
        channel.broken = True
        setting.gate.committed([account(0, NOW)], announced(PLUGIN_STATUS_CHANGED))
        assert await setting.told() == ("enabled", "available")


async def test_a_connection_that_was_lost_drops_the_near_cache_which_stays_the_last_known(
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


async def test_what_was_read_before_a_connection_was_lost_is_not_remembered_after_it() -> None:
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
async def test_an_account_may_have_a_fail_policy_of_its_own(default: str, own: Any, status: str) -> None:
    setting = Setting(fail=default)
    setting.store.policies = {MERCHANT: own}
    await setting.gate.start()
    try:
        setting.store.away = True
        other = {"closed": "disabled", "open": "enabled"}[default]
        assert await setting.told() == (status, "unavailable")
        assert await setting.told(uuid4()) == (other, "unavailable")
        setting.gate.set_fail(MERCHANT, None)
        assert await setting.told() == (other, "unavailable")
        setting.gate.set_fail(MERCHANT, own)
        assert await setting.told() == (status, "unavailable")
    finally:
        await setting.gate.close()


async def test_fail_policies_are_read_again_and_again_and_kept_while_the_store_is_away(
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


async def test_a_silent_store_is_waited_for_once_and_answers_again_when_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (levels, "credit_service.gate.status"):
        name = module if isinstance(module, str) else module.__name__
        monkeypatch.setattr(f"{name}.PATIENCE_SECONDS", 0.02)
    monkeypatch.setattr(breaker, "PAUSE_SECONDS", 3600)
    first, second = uuid4(), uuid4()
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


async def test_a_posting_is_seen_though_an_answer_of_a_silent_store_comes_later_still(
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


async def test_a_breaker_is_closed_until_somebody_waits_in_vain_and_then_probed_after_each_pause() -> None:
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


async def test_the_one_who_gets_an_answer_closes_the_breaker() -> None:
    probed = Probed()
    probed.breaker.open("silence")
    probed.breaker.close()
    assert not await probed.is_open()


async def test_a_probe_that_is_out_ends_with_the_breaker() -> None:
    never: Callable[[], Any] = asyncio.Event().wait
    timer = Timer()
    one = breaker.ProbedBreaker("it", never, clock=timer)
    one.open("silence")
    timer.now += breaker.PAUSE_SECONDS
    assert one.is_open()
    await asyncio.sleep(0)
    await one.stop()
    assert [task for task in asyncio.all_tasks() if task.get_name() == "probe of it"] == []


def test_an_answer_is_the_same_after_it_was_written_down() -> None:
    for available, reason in ((5, "available"), (0, "exhausted")):
        one = answer(available, NOW - 7, sequence=12, announced=3)
        assert answer_in(line_of(one), NOW, TTL) == one
        assert one.reason == reason
    # A writer whose clock is ahead of ours, or whose TTL is longer, makes no answer live longer here.
    ahead = of_account(account(5), NOW + 60 * SECOND, 40 * SECOND)
    read = answer_in(line_of(ahead), NOW, TTL)
    assert read is not None
    assert read.until == NOW + TTL


def test_a_gate_needs_neither_a_shared_level_nor_a_channel() -> None:
    store: Any = None
    assert Gate(store, store, store).cached(UUID(int=1)) is None
