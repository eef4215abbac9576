"""Webhook endpoints, their deliveries and their secrets, on both engines."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from credit_service.storage.accounts import Accounts
from credit_service.storage.engine import BadRow, Engine
from credit_service.storage.outbox import Outbox
from credit_service.storage.webhooks import Backlog, WebhookDelivery, WebhookEndpoint, WebhookEndpoints
from tests.ledger.telling import MERCHANT, T0, add, days, opening, use
from tests.storage.contract import Clock, merchant, tell
from tests.storage.engines import opened, rows
from tests.storage.values import of

SECRET = "whsec_" + "A" * 32
DAY = days(1) - days(0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def url(new_ledger: Callable[[], str]) -> str:
    return new_ledger()


@pytest.fixture
async def engine(url: str, clock: Clock) -> AsyncIterator[Engine]:
    engine = opened(url, clock=clock)
    yield engine
    await engine.close()


async def registered(engine: Engine, id_: str = "one", **more: Any) -> WebhookEndpoint:
    """Register an endpoint for the events from now on."""
    plain = WebhookEndpoint(id_, f"https://{id_}.example/", None, T0, await Outbox(engine).end())
    endpoint = plain._replace(**more)
    await WebhookEndpoints(engine).add(endpoint, SECRET)
    return endpoint


def a_test(number: int, endpoint: str = "one", **more: Any) -> WebhookDelivery:
    return WebhookDelivery(endpoint, number, "webhook_test", None, None, T0, T0)._replace(**more)


async def made(engine: Engine, *some: WebhookDelivery) -> None:
    """Create these deliveries, in the order of their numbers."""
    for one in some:
        endpoint = await WebhookEndpoints(engine).get(one.endpoint)
        assert endpoint is not None
        assert one.number == endpoint.deliveries + 1
        assert await WebhookEndpoints(engine).add_deliveries(endpoint, [one])


async def due(engine: Engine, now: int, endpoint_id: str = "one", limit: int = 10, **more: bool) -> list[int]:
    found = await WebhookEndpoints(engine).due_deliveries(endpoint_id, now, limit, **more)
    assert found is not None
    return [delivery.number for delivery, _ in found.due]


# ---- endpoints


async def test_endpoint_is_read_back_exactly_by_its_id(engine: Engine):
    plain = await registered(engine)
    full = WebhookEndpoint(
        "two", "https://two.example/ü?a=b", ("consumed", "expired"), T0 + 1, (7,) * engine.lanes, 9, T0, T0, "gone"
    )
    await WebhookEndpoints(engine).add(full, SECRET)
    assert await WebhookEndpoints(engine).get("one") == plain
    assert await WebhookEndpoints(engine).get("two") == full
    assert await WebhookEndpoints(engine).get("three") is None
    assert await WebhookEndpoints(engine).all() == [full, plain], "newest first"
    with pytest.raises(BadRow):
        await WebhookEndpoints(engine).add(plain, SECRET)


async def test_endpoint_is_changed_field_by_field(engine: Engine):
    plain = await registered(engine)
    changed = {"url": "https://else.example/", "event_types": ("consumed",), "position": (5,) * engine.lanes}
    assert await WebhookEndpoints(engine).change("one", **changed)
    assert await WebhookEndpoints(engine).get("one") == plain._replace(**changed)  # type: ignore[arg-type]
    assert await WebhookEndpoints(engine).change("one", event_types=None, failing_since=T0)
    found = await WebhookEndpoints(engine).get("one")
    assert found is not None
    assert (found.event_types, found.failing_since) == (None, T0)
    assert not await WebhookEndpoints(engine).change("two", url="https://else.example/")


async def test_endpoint_is_disabled_only_with_a_reason(engine: Engine):
    await registered(engine)
    with pytest.raises(BadRow):
        await WebhookEndpoints(engine).change("one", disabled_at=T0)


async def test_secrets_are_only_in_due_deliveries(engine: Engine):
    await registered(engine)
    await made(engine, a_test(1))
    found = await WebhookEndpoints(engine).due_deliveries("one", T0, 10)
    assert found is not None
    assert found.secrets == (SECRET,)
    shown = [
        await WebhookEndpoints(engine).all(),
        await WebhookEndpoints(engine).get("one"),
        await WebhookEndpoints(engine).deliveries("one", None, 9),
        found,
    ]
    assert SECRET not in repr(shown) + str(shown)


async def test_older_secrets_sign_until_their_end_after_the_newest(engine: Engine):
    await registered(engine)

    async def in_use(now: int) -> tuple[str, ...]:
        found = await WebhookEndpoints(engine).due_deliveries("one", now, 1)
        assert found is not None
        return found.secrets

    assert await WebhookEndpoints(engine).rotate("one", "second", T0, T0 + DAY, 4)
    assert await in_use(T0 + DAY - 1) == ("second", SECRET)
    assert await in_use(T0 + DAY) == ("second",)
    assert await WebhookEndpoints(engine).rotate("one", "third", T0 + 5, T0 + DAY + 5, 4)
    assert await in_use(T0 + 6) == ("third", "second", SECRET), "a caller that lost the answer may rotate again"
    assert await in_use(T0 + DAY) == ("third", "second")
    assert await WebhookEndpoints(engine).rotate("one", "fourth", T0 + DAY + 1, T0 + 2 * DAY, 2)
    assert await in_use(T0 + DAY + 2) == ("fourth", "third"), "the number of valid secrets has a limit"
    assert not await WebhookEndpoints(engine).rotate("two", "x", T0, T0, 4)


async def test_simultaneous_rotations_lose_no_secret(engine: Engine):
    await registered(engine)
    names = [f"secret {number}" for number in range(5)]
    assert all(await asyncio.gather(*[WebhookEndpoints(engine).rotate("one", name, T0, T0 + DAY, 9) for name in names]))
    found = await WebhookEndpoints(engine).due_deliveries("one", T0, 1)
    assert found is not None
    assert sorted(found.secrets) == sorted([*names, SECRET])


# ---- creating deliveries


async def test_deliveries_and_position_are_stored_together_or_not_at_all(engine: Engine):
    read = await registered(engine)
    there = tuple(range(1, engine.lanes + 1))
    many = [a_test(number) for number in range(1, 148)]
    assert await WebhookEndpoints(engine).add_deliveries(read, many, there)
    found = await WebhookEndpoints(engine).get("one")
    assert found == read._replace(deliveries=147, position=there)
    assert await WebhookEndpoints(engine).deliveries("one", None, 1000) == many[::-1]
    for late in (read, read._replace(deliveries=147), read._replace(position=there)):
        assert not await WebhookEndpoints(engine).add_deliveries(late, [a_test(148)], there), (
            "another process was first"
        )
    assert await WebhookEndpoints(engine).get("one") == found
    assert len(await WebhookEndpoints(engine).deliveries("one", None, 1000)) == 147
    assert not await WebhookEndpoints(engine).add_deliveries(found._replace(id="two"), [])


async def test_one_of_many_processes_creates_the_deliveries(engine: Engine):
    read = await registered(engine)
    there = (1,) * engine.lanes
    done = await asyncio.gather(
        *[WebhookEndpoints(engine).add_deliveries(read, [a_test(1), a_test(2)], there) for _ in range(6)]
    )
    assert sorted(done) == [False] * 5 + [True]
    assert [one.number for one in await WebhookEndpoints(engine).deliveries("one", None, 10)] == [2, 1]


async def test_refused_delivery_leaves_the_position_unchanged(engine: Engine):
    read = await registered(engine)
    broken = [a_test(1, state="lost"), a_test(1, account=1), a_test(1, next_at=None), a_test(1, state="failed")]
    for one in broken:
        with pytest.raises(BadRow):
            await WebhookEndpoints(engine).add_deliveries(read, [one], (9,) * engine.lanes)
    assert await WebhookEndpoints(engine).get("one") == read
    assert await WebhookEndpoints(engine).deliveries("one", None, 10) == []


async def test_redelivery_ends_the_pending_delivery(engine: Engine):
    await registered(engine)
    await made(engine, a_test(1), a_test(2, redelivers=1, created_at=T0 + 5))
    first, again = await WebhookEndpoints(engine).delivery("one", 1), await WebhookEndpoints(engine).delivery("one", 2)
    assert first == a_test(1, state="failed", next_at=None, error="It is sent again as 2.", ended_at=T0 + 5)
    await made(engine, a_test(3, redelivers=1))
    assert await WebhookEndpoints(engine).delivery("one", 1) == first
    assert again is not None
    assert (again.state, again.redelivers) == ("pending", 1)


async def test_deliveries_are_listed_newest_first_before_a_number(engine: Engine):
    await registered(engine)
    await registered(engine, "two")
    await made(engine, *[a_test(number) for number in range(1, 6)], a_test(1, "two"))
    assert [one.number for one in await WebhookEndpoints(engine).deliveries("one", None, 2)] == [5, 4]
    assert [one.number for one in await WebhookEndpoints(engine).deliveries("one", 4, 9)] == [3, 2, 1]
    assert await WebhookEndpoints(engine).delivery("two", 2) is None
    assert await WebhookEndpoints(engine).deliveries("three", None, 9) == []


# ---- due deliveries and attempts


async def test_due_deliveries_come_longest_due_first_with_their_events(engine: Engine):
    await tell(engine, opening(), use(2))
    (account,) = (await Accounts(engine).load([MERCHANT], T0)).values()
    await registered(engine)
    event: dict[str, Any] = {"account": account.account.number, "event": 4, "type": "consumed"}
    await made(
        engine,
        a_test(1, next_at=T0 + 9),
        a_test(2, next_at=T0 + 5, **event),
        a_test(3, next_at=T0 + 5, **event | {"event": 2}),
        a_test(4, next_at=T0 + 10),
    )
    found = await WebhookEndpoints(engine).due_deliveries("one", T0 + 9, 10)
    assert found is not None
    assert found.url == "https://one.example/"
    assert [delivery.number for delivery, _ in found.due] == [2, 3, 1]
    events = await Outbox(engine).events_of(account.account.number, 0, 10)
    assert [told for _, told in found.due] == [events[3], events[1], None]
    assert await due(engine, T0 + 9, limit=2) == [2, 3]
    assert await due(engine, T0) == []
    assert await WebhookEndpoints(engine).due_deliveries("two", T0, 1) is None


async def test_attempt_is_recorded_once(engine: Engine):
    await registered(engine)
    await made(engine, a_test(1))
    retry = a_test(1, attempts=1, next_at=T0 + 9, status=500, error="It answered 500.")
    await WebhookEndpoints(engine).note_attempts([retry])
    await WebhookEndpoints(engine).note_attempts([a_test(1, attempts=1, state="delivered", next_at=None, ended_at=T0)])
    assert await WebhookEndpoints(engine).delivery("one", 1) == retry, "a late sender changes nothing"
    done = a_test(1, attempts=2, state="delivered", next_at=None, status=204, ended_at=T0 + 9)
    await WebhookEndpoints(engine).note_attempts(
        [done, a_test(7, attempts=1, state="failed", next_at=None, ended_at=T0)]
    )
    assert await WebhookEndpoints(engine).delivery("one", 1) == done
    assert await due(engine, days(9)) == []


async def test_disabled_endpoint_is_sent_only_requested_deliveries(engine: Engine):
    await registered(engine)
    await registered(engine, "two")
    event: dict[str, Any] = {"account": 1, "event": 1}
    await made(engine, a_test(1, **event), a_test(2), a_test(3, redelivers=7, **event), a_test(4, next_at=days(1)))
    await made(engine, a_test(1, "two", next_at=T0 + 3, **event))
    assert await WebhookEndpoints(engine).backlogs() == {"one": Backlog(4, T0), "two": Backlog(1, T0 + 3)}
    for id_ in ("one", "two"):
        assert await WebhookEndpoints(engine).change(id_, disabled_at=T0, disabled_reason="gone", failing_since=T0 - 1)
    assert await due(engine, T0) == [1, 2, 3]
    assert await due(engine, T0, requested=True) == [2, 3]
    assert await due(engine, days(1), requested=True) == [2, 3, 4]
    assert await WebhookEndpoints(engine).backlogs() == {"one": Backlog(4, T0), "two": Backlog(1, None)}

    assert await WebhookEndpoints(engine).enable("one", T0 + 5)
    found = await WebhookEndpoints(engine).get("one")
    assert found is not None
    assert (found.disabled_at, found.disabled_reason, found.failing_since) == (None, None, None)
    assert await due(engine, T0 + 5) == [1, 2, 3, 4], "deliveries that waited for a retry are due at once"
    assert await due(engine, days(9), "two", requested=True) == []
    assert not await WebhookEndpoints(engine).enable("three", T0)


# ---- pruning


async def test_ended_deliveries_are_pruned_by_age_in_steps(engine: Engine):
    await registered(engine)
    ended: dict[str, Any] = {"state": "delivered", "next_at": None, "ended_at": T0}
    old = [a_test(number, created_at=T0 + number, **ended) for number in range(1, 6)]
    await made(engine, *old[:4], a_test(5, created_at=T0), a_test(6, created_at=T0 + 8, **ended))
    assert await WebhookEndpoints(engine).prune(T0 + 4, 2)
    assert [one.number for one in await WebhookEndpoints(engine).deliveries("one", None, 9)] == [6, 5, 4, 3]
    assert not await WebhookEndpoints(engine).prune(T0 + 4, 2)
    assert [one.number for one in await WebhookEndpoints(engine).deliveries("one", None, 9)] == [6, 5, 4]
    assert not await WebhookEndpoints(engine).prune(T0 + 9, 9)
    assert [one.number for one in await WebhookEndpoints(engine).deliveries("one", None, 9)] == [5], (
        "pending deliveries stay"
    )


async def test_deleted_endpoint_is_gone_and_its_deliveries_are_pruned(engine: Engine, url: str):
    read = await registered(engine)
    await registered(engine, "two")
    await made(engine, a_test(1), a_test(2, state="delivered", next_at=None, ended_at=T0), a_test(3))
    await made(engine, a_test(1, "two"))
    assert await WebhookEndpoints(engine).delete("one", T0)
    assert not await WebhookEndpoints(engine).delete("one", T0)
    assert not await WebhookEndpoints(engine).delete("three", T0)
    assert (await WebhookEndpoints(engine).get("one"), await WebhookEndpoints(engine).due_deliveries("one", T0, 9)) == (
        None,
        None,
    )
    assert [one.id for one in await WebhookEndpoints(engine).all()] == ["two"]
    assert list(await WebhookEndpoints(engine).backlogs()) == ["two"]
    assert not await WebhookEndpoints(engine).change("one", url="https://else.example/")
    assert not await WebhookEndpoints(engine).enable("one", T0)
    assert not await WebhookEndpoints(engine).add_deliveries(read._replace(deliveries=3), [a_test(4)])
    assert rows(url, "SELECT secrets FROM webhook_endpoints WHERE id = 'one'") == [("[]",)]

    assert await WebhookEndpoints(engine).prune(T0, 2)
    assert not await WebhookEndpoints(engine).prune(T0, 2)
    assert rows(url, "SELECT id FROM webhook_endpoints") == [("two",)]
    assert rows(url, "SELECT endpoint FROM webhook_deliveries") == [("two",)]


# ---- the outbox position of an instant


async def test_position_at_is_before_the_first_event_of_an_instant(engine: Engine, clock: Clock):
    merchants = [merchant(index) for index in range(20)]
    await tell(engine, *[of(one, opening()) for one in merchants])
    for day in range(1, 6):
        clock.now = days(day)
        await tell(engine, *[of(one, add(day, key=f"{day}")) for one in merchants[day:]])
    everything = await Outbox(engine).events((0,) * engine.lanes, 1000)
    for at in (0, T0, T0 + 1, *[days(day) + more for day in range(1, 6) for more in (-1, 0, 1)], days(99)):
        found = await Outbox(engine).events(await Outbox(engine).position_at(at), 1000)
        assert sorted(found) == sorted(event for event in everything if event.announcement.at >= at)
    assert await Outbox(engine).position_at(days(99)) == await Outbox(engine).end()
