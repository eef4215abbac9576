"""The shared level on a real Valkey or Redis: the later version stays, and a foreign value is a miss."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import pytest

from credit_service import breaker
from credit_service.gate.answers import StatusAnswer, of_account, of_unknown, text_of
from credit_service.gate.redis import PATIENCE_SECONDS, RedisLevel
from tests.gate.settings import SECOND, Setting, account
from tests.servers.proxy import Proxy
from tests.servers.valkey import Valkey, client

TTL = 15 * SECOND


def now() -> int:
    return time.time_ns() // 1000


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which much else runs may be slower than what a page would wait for."""
    monkeypatch.setattr("credit_service.gate.redis.PATIENCE_SECONDS", 5.0)


@pytest.fixture
async def level(redis_url: str) -> AsyncIterator[RedisLevel]:
    made = RedisLevel(redis_url, name=uuid4().hex, ttl=TTL)
    yield made
    await made.close()


def answer(available: int, sequence: int = 1, merchant_id: str | None = None, **more: Any) -> StatusAnswer:
    held = account(available, now() - SECOND, merchant_id or str(uuid4()), sequence=sequence, **more)
    return of_account(held._replace(settled_at=SECOND), now(), TTL)


async def kept(level: RedisLevel, merchant_id: str) -> StatusAnswer | None:
    return (await level.get([merchant_id], now())).get(merchant_id)


def key_of(level: RedisLevel, merchant_id: str) -> str:
    return level._key(merchant_id)


async def test_kept_answers_are_returned(level: RedisLevel) -> None:
    some = [answer(5), answer(0), of_unknown(str(uuid4()), now(), TTL)]
    await level.put(some)
    found = await level.get([one.merchant_id for one in some] + [str(uuid4())], now())
    assert list(found.values()) == [one._replace(source="redis") for one in some]


async def test_later_version_stays_and_the_same_is_replaced(level: RedisLevel) -> None:
    merchant = str(uuid4())
    for sequence, available, told in ((2, 0, "disabled"), (1, 5, "disabled"), (2, 5, "enabled"), (10, 0, "disabled")):
        await level.put([answer(available, sequence, merchant)])
        found = await kept(level, merchant)
        assert found is not None
        assert found.status == told
    await level.put([of_unknown(merchant, now(), TTL)])
    assert (found := await kept(level, merchant)) is not None
    assert found.reason == "exhausted"


async def test_late_fill_does_not_undo_a_message(level: RedisLevel) -> None:
    """The schedule: one reads the store, another posts and tells, and only then the first fills the shared level."""
    merchant = str(uuid4())
    here = Setting(account(5, SECOND, merchant), shared=level)
    here.clock.now = now()
    here.store.open.clear()
    asking = asyncio.ensure_future(here.told(merchant))
    await here.store.read.wait()
    await level.tell([answer(0, 2, merchant)])
    here.store.open.set()
    assert await asking == ("enabled", "available")  # as it was when it was asked
    while here.gate._beside:
        await asyncio.gather(*here.gate._beside)
    there = Setting(shared=level)
    there.clock.now = now()
    assert await there.told(merchant) == ("disabled", "exhausted")


@pytest.mark.parametrize("spoilt", ["garbage", "empty", "cut", "number", "of another", "no seal", "list", "for ever"])
async def test_foreign_value_is_a_miss_and_is_replaced(level: RedisLevel, redis_url: str, spoilt: str) -> None:
    merchant, other = str(uuid4()), str(uuid4())
    await level.put([answer(5, 9, merchant), answer(5, 9, other)])
    key = key_of(level, merchant)
    with client(redis_url) as beside:
        whole: Any = beside.get(key)
        foreign: Any = beside.get(key_of(level, other))
        values: dict[str, bytes] = {
            "garbage": b"\xff\xfe\x00{}",
            "empty": b"",
            "cut": whole[:-1],
            "number": b"1",
            "of another": foreign,
            "no seal": whole[8:],
            "for ever": b"9" * 200,
        }
        beside.delete(key)
        if spoilt == "list":
            beside.lpush(key, "x")
        else:
            beside.set(key, values[spoilt])
        assert await kept(level, merchant) is None
        await level.put([answer(0, 1, merchant)])
        assert (found := await kept(level, merchant)) is not None
        assert found.reason == "exhausted"
        assert 0 < beside.pttl(key) <= TTL // 1000


async def test_answer_ends_at_its_due_instant_but_its_version_stays(level: RedisLevel, redis_url: str) -> None:
    merchant = str(uuid4())
    due = now() + 3 * SECOND
    await level.put([answer(5, 2, merchant, next_due_at=due)])
    assert (await level.get([merchant], due - 1)) != {}
    assert (await level.get([merchant], due)) == {}
    await level.put([answer(0, 1, merchant)])  # read from the store before that
    assert await level.get([merchant], due) == {}
    with client(redis_url) as beside:
        assert 10_000 < beside.pttl(key_of(level, merchant)) <= 15_000


async def test_ledgers_with_other_names_or_databases_are_separate(redis_url: str) -> None:
    name, merchant = uuid4().hex, str(uuid4())
    urls = [redis_url, redis_url.rpartition("/")[0] + "/1"]
    one, of_another_name, in_another_database = (
        RedisLevel(url, name=called, ttl=TTL)
        for url, called in ((urls[0], name), (urls[0], f"{name}2"), (urls[1], name))
    )
    heard: asyncio.Queue[str] = asyncio.Queue()
    joined = [asyncio.Event() for _ in range(2)]
    listening = [
        asyncio.create_task(level.listen(event.set, heard.put_nowait))
        for level, event in zip((of_another_name, in_another_database), joined, strict=True)
    ]
    await asyncio.gather(*[event.wait() for event in joined])
    await one.tell([answer(5, 1, merchant)])
    for level in (of_another_name, in_another_database):
        assert await kept(level, merchant) is None
        await level.tell([answer(0, 1)])
    assert not any(str(merchant) in line for line in [await heard.get() for _ in range(2)])
    for task in listening:
        task.cancel()
    await asyncio.gather(*listening, return_exceptions=True)
    for level in (one, of_another_name, in_another_database):
        await level.close()


async def test_answer_is_kept_before_its_message_arrives(level: RedisLevel) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    joined = asyncio.Event()
    listening = asyncio.create_task(level.listen(joined.set, heard.put_nowait))
    await joined.wait()
    some = [answer(5), answer(0)]
    await level.tell(some)
    for one in some:
        assert await heard.get() == f"{one.merchant_id} {text_of(one)}"
        assert await kept(level, one.merchant_id) is not None
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


# ---- slow and away


@pytest.fixture
async def own(new_valkey: Callable[[], Valkey]) -> AsyncIterator[tuple[Valkey, RedisLevel]]:
    server = new_valkey()
    level = RedisLevel(server.url, name="own", ttl=TTL)
    yield server, level
    await level.close()


async def test_thousand_merchants_are_one_question(own: tuple[Valkey, RedisLevel]) -> None:
    server, level = own
    some = [answer(5) for _ in range(1000)]
    await level.put(some)
    assert len(await level.get([one.merchant_id for one in some], now())) == 1000
    with client(server.url) as beside:
        calls: Any = beside.info("commandstats")
    assert (calls["cmdstat_mget"]["calls"], calls["cmdstat_eval"]["calls"]) == (1, 1)


async def test_absent_redis_is_a_miss_until_a_probe_succeeds(
    own: tuple[Valkey, RedisLevel], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, level = own
    one = answer(5)
    await level.put([one])
    monkeypatch.setattr(breaker, "PAUSE_SECONDS", 0.0)
    server.kill()
    assert await kept(level, one.merchant_id) is None
    await level.put([one])  # fails in silence
    with pytest.raises(ConnectionError, match=r"^Redis cannot be used: \w+\.$"):
        await level.check()
    server.start()
    while level.breaker.is_open():  # noqa: ASYNC110 - the real server is what we wait for
        await asyncio.sleep(0.005)
    assert await kept(level, one.merchant_id) is None  # it keeps nothing
    await level.put([one])
    assert await kept(level, one.merchant_id) is not None


async def test_lost_connection_is_renewed_within_the_question(
    own: tuple[Valkey, RedisLevel], proxied: Callable[[str], Proxy]
) -> None:
    proxy = proxied(own[0].url)
    level = RedisLevel(proxy.url, name="own", ttl=TTL)
    one = answer(5)
    await level.put([one])
    proxy.cut()
    assert await kept(level, one.merchant_id) is not None
    await level.close()


async def test_slow_redis_delays_one_question_only(
    own: tuple[Valkey, RedisLevel], proxied: Callable[[str], Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "PAUSE_SECONDS", 3600)
    monkeypatch.setattr("credit_service.gate.redis.PATIENCE_SECONDS", PATIENCE_SECONDS)
    proxy = proxied(own[0].url)
    level = RedisLevel(proxy.url, name="own", ttl=TTL)
    one = answer(5)
    await level.put([one])
    proxy.hold()
    begun = asyncio.get_running_loop().time()
    assert await kept(level, one.merchant_id) is None
    assert asyncio.get_running_loop().time() - begun >= PATIENCE_SECONDS * 0.9
    assert level.breaker.is_open()
    for _ in range(100):
        assert await kept(level, one.merchant_id) is None  # held, a question would not come back before the test's end
    proxy.release()
    monkeypatch.setattr("credit_service.gate.redis.PATIENCE_SECONDS", 5.0)
    level.breaker.close()
    other = answer(0)
    await level.put([other])
    found = await level.get([other.merchant_id, one.merchant_id], now())
    # What came late to another question is taken for no answer to this one.
    assert [told.status for told in found.values()] == ["disabled", "enabled"]
    await level.close()


async def test_listener_notices_a_stopped_and_a_silent_server(
    own: tuple[Valkey, RedisLevel], proxied: Callable[[str], Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, level = own
    joined = asyncio.Event()
    listening = asyncio.create_task(level.listen(joined.set, lambda line: None))
    await joined.wait()
    server.kill()
    with pytest.raises(Exception, match="onnect"):
        await listening
    server.start()
    monkeypatch.setattr("credit_service.gate.redis._SILENCE_SECONDS", 0.05)
    monkeypatch.setattr("credit_service.gate.redis._TELLING_SECONDS", 0.05)
    proxy = proxied(server.url)
    silent = RedisLevel(proxy.url, name="own", ttl=TTL)
    joined.clear()
    listening = asyncio.create_task(silent.listen(joined.set, lambda line: None))
    await joined.wait()
    proxy.hold()
    with pytest.raises((TimeoutError, ConnectionError, OSError)):
        await listening
    await silent.close()
