"""Webhooks from the outbox to real receivers, on both engines.

Time is the store's, and given; a round is begun by hand, and what it sends is waited for.
"""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from ipaddress import ip_network
from typing import Any

import pytest
from aiohttp import web
from standardwebhooks import Webhook
from structlog.testing import capture_logs

from credit_service.messages.outbound import cloud_event, encode
from credit_service.outlets import webhook_queue, webhooks
from credit_service.outlets.reader import LEASE_SECONDS
from credit_service.outlets.retries import FAILURES, PROBE_SECONDS
from credit_service.outlets.targets import Targets
from credit_service.outlets.webhooks import LOG_DAYS, Webhooks
from credit_service.storage.engine import Engine, StorageUnavailable
from credit_service.storage.outbox import Outbox, StoredEvent
from credit_service.storage.webhooks import WebhookDelivery, WebhookEndpoint, WebhookEndpoints
from tests.ledger.telling import add, opening, use
from tests.outlets.receiver import Receiver
from tests.storage.contract import merchant, tell
from tests.storage.engines import opened
from tests.storage.values import of

SECOND = 1_000_000
DAY_SECONDS = 24 * 3600
SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()
TARGETS = Targets([ip_network("127.0.0.0/8")], public=False)


class Clock:
    """The store's clock: it stands still, except for what it is moved by. Signatures are of our time, so it is, too."""

    def __init__(self) -> None:
        self.now = time.time_ns() // 1000

    def __call__(self) -> int:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)


class Setting:
    """A ledger, receivers, and processes that send."""

    def __init__(self, store: Engine, clock: Clock, stack: AsyncExitStack) -> None:
        self.store = store
        self.clock = clock
        self._stack = stack
        self.attempts: list[WebhookDelivery] = []
        self.sender = self.process()

    def process(self) -> Webhooks:
        """One that would send."""
        process = Webhooks(WebhookEndpoints(self.store), Outbox(self.store), TARGETS, "tests", self.attempts.append)
        self._stack.push_async_callback(process.stop)
        return process

    async def endpoint(self, id_: str = "one", **more: Any) -> Receiver:
        """A receiver that is told of what is posted from now on."""
        receiver = Receiver()
        await receiver.start()
        self._stack.push_async_callback(receiver.stop)
        plain = WebhookEndpoint(id_, receiver.url, None, self.clock.now, await Outbox(self.store).end())
        await WebhookEndpoints(self.store).add(plain._replace(**more), SECRET)
        return receiver

    async def kept(self, id_: str = "one") -> WebhookEndpoint:
        """An endpoint as it is kept."""
        found = await WebhookEndpoints(self.store).get(id_)
        assert found is not None
        return found

    async def deliveries(self, id_: str = "one") -> list[WebhookDelivery]:
        """Its deliveries, oldest first."""
        return (await WebhookEndpoints(self.store).deliveries(id_, None, 10_000))[::-1]

    async def ask(self, id_: str = "one", **more: Any) -> None:
        """Ask for a test, or for something else."""
        endpoint = await self.kept(id_)
        number, now = endpoint.deliveries + 1, self.clock.now
        plain = WebhookDelivery(id_, number, "webhook_test", None, None, now, now)
        assert await WebhookEndpoints(self.store).add_deliveries(endpoint, [plain._replace(**more)])

    async def events(self) -> list[StoredEvent]:
        """All that was announced."""
        return await Outbox(self.store).events((0,) * self.store.lanes, 10_000)

    async def send(self, sender: Webhooks | None = None) -> None:
        """Rounds until there is nothing left to do at this instant."""
        sender = sender or self.sender
        more, tried = True, -1
        while more or tried < len(self.attempts):
            tried = len(self.attempts)
            more = await sender.once()
            await asyncio.gather(*sender._sending.values(), return_exceptions=True)


@pytest.fixture
async def setting(new_ledger: Callable[[], str]) -> AsyncIterator[Setting]:
    clock = Clock()
    async with AsyncExitStack() as stack:
        store = opened(new_ledger(), clock=clock)
        stack.push_async_callback(store.close)
        yield Setting(store, clock, stack)


def states(deliveries: list[WebhookDelivery]) -> list[str]:
    return [one.state for one in deliveries]


# ---- who is sent what


async def test_each_event_is_sent_once_signed_and_in_order(setting: Setting):
    receiver = await setting.endpoint()
    await tell(setting.store, *[of(merchant(index), opening()) for index in range(5)])
    await tell(setting.store, *[of(merchant(index), use(90)) for index in range(5)])
    await setting.send()
    events = await setting.events()
    assert len(receiver.sent) == len(events) == 25
    told = {cloud_event(event, "tests").id: encode(event, "tests") for event in events}
    by_account: dict[str, list[str]] = {}
    for sent in receiver.sent:
        assert sent.body == told[sent.headers["webhook-id"]]
        assert Webhook(SECRET).verify(sent.body, sent.headers) == sent.event
        by_account.setdefault(sent.event["subject"], []).append(sent.event["sequence"])
    assert list(by_account.values()) == [["1", "2", "3", "4", "5"]] * 5
    deliveries = await setting.deliveries()
    assert {(one.state, one.attempts, one.status, one.error) for one in deliveries} == {("delivered", 1, 204, None)}
    await setting.send()
    assert len(receiver.sent) == 25


async def test_endpoint_gets_later_events_of_its_types(setting: Setting):
    await tell(setting.store, opening())
    everything = await setting.endpoint()
    some = await setting.endpoint("two", event_types=("consumed", "low_balance_reached"))
    await tell(setting.store, use(1), use(90))
    late = await setting.endpoint("three")
    await tell(setting.store, add(5))
    await setting.send()
    types = [[sent.event["type"].removeprefix("evt.credits.") for sent in one.sent] for one in (everything, some, late)]
    assert types == [
        ["consumed", "consumed", "low_balance_reached", "adjusted"],
        ["consumed", "consumed", "low_balance_reached"],
        ["adjusted"],
    ]


async def test_endpoints_at_one_position_share_a_page(setting: Setting, monkeypatch: pytest.MonkeyPatch):
    receivers = [await setting.endpoint(f"e{number}") for number in range(5)]
    await tell(setting.store, opening())
    pages = 0
    read = Outbox.events

    async def counted(outbox: Outbox, *asked: Any) -> list[StoredEvent]:
        nonlocal pages
        pages += 1
        return await read(outbox, *asked)

    monkeypatch.setattr(Outbox, "events", counted)
    await setting.sender.once()
    assert pages == 1
    await setting.send()
    assert [len(one.sent) for one in receivers] == [3] * 5


# ---- what fails


async def test_failed_delivery_is_retried_with_the_same_id(setting: Setting):
    receiver = await setting.endpoint(event_types=("account.created",))
    receiver.answers += [500, 404, web.Response(status=302, headers={"location": "/"})]
    await tell(setting.store, opening())
    for pause, count in ((0, 1), (3.9, 1), (2.2, 2), (23, 2), (14, 3), (95, 3), (50, 4)):
        setting.clock.move(pause)
        await setting.send()
        assert len(receiver.sent) == count, pause
    assert len(set(receiver.ids)) == 1
    times = [int(sent.headers["webhook-timestamp"]) for sent in receiver.sent]
    assert times == sorted(set(times)), "each attempt is signed anew"
    (one,) = await setting.deliveries()
    assert (one.state, one.attempts, one.status, one.error) == ("delivered", 4, 204, None)
    assert (await setting.kept()).failing_since is None


async def test_failing_event_delays_no_other_and_is_given_up(setting: Setting):
    receiver = await setting.endpoint(event_types=("account.created",))

    async def picky(request: web.Request) -> web.StreamResponse:
        return web.Response(status=500 if (await request.json())["subject"] == str(merchant(1)) else 200)

    receiver.otherwise = picky
    await tell(setting.store, *[of(merchant(index), opening()) for index in range(3)])
    for day in range(4):
        await setting.send()
        if day == 0:
            assert sorted(states(await setting.deliveries())) == ["delivered", "delivered", "pending"]
        for _ in range(6):
            setting.clock.move(DAY_SECONDS / 6 * 1.25)
            await setting.send()
    ended = {one.state: one for one in await setting.deliveries()}
    assert ended["failed"].attempts == 11
    assert ended["failed"].error == "It answered 500."
    assert (await setting.kept()).disabled_at is None


async def test_gone_endpoint_is_disabled_and_can_resume(setting: Setting):
    receiver = await setting.endpoint()
    other = await setting.endpoint("two")
    receiver.otherwise = 410
    await tell(setting.store, opening())
    with capture_logs() as logs:
        await setting.send()
    assert [line for line in logs if line["event"] == "webhook_endpoint_disabled"] == [
        {
            "event": "webhook_endpoint_disabled",
            "log_level": "warning",
            "endpoint": "one",
            "reason": "It answered 410 (gone).",
        }
    ]
    assert len(receiver.sent) == 1
    kept = await setting.kept()
    assert (kept.disabled_at, kept.disabled_reason) == (setting.clock.now, "It answered 410 (gone).")
    assert setting.sender.disabled == 1
    await tell(setting.store, use(1))
    setting.clock.move(3600)
    await setting.send()
    assert (len(receiver.sent), len(other.sent)) == (1, 4)

    receiver.otherwise = 204
    assert await WebhookEndpoints(setting.store).enable("one", setting.clock.now)
    await setting.send()
    assert sorted(receiver.ids[1:]) == sorted(other.ids), "nothing was left out"
    assert states(await setting.deliveries()) == ["delivered"] * 4


async def test_endpoint_failing_for_days_is_disabled(setting: Setting):
    receiver = await setting.endpoint()
    receiver.otherwise = 500
    await tell(setting.store, opening())
    for hour in range(0, 5 * 24, 6):
        await tell(setting.store, add(1, key=str(hour)))
        await setting.send()
        kept = await setting.kept()
        assert (kept.disabled_at is None, kept.failing_since is None) == (True, False)
        setting.clock.move(6 * 3600)
    setting.clock.move(1)
    await setting.send()
    assert (await setting.kept()).disabled_reason == "All deliveries of the last 5 days failed."


async def test_failing_endpoint_is_tried_until_one_delivery_succeeds(setting: Setting):
    receiver = await setting.endpoint(event_types=("account.created",))
    receiver.otherwise = 500
    await tell(setting.store, *[of(merchant(index), opening()) for index in range(60)])
    await setting.send()
    first = len(receiver.sent)
    assert FAILURES <= first < FAILURES + webhook_queue.AT_ONCE
    for tries, pause in enumerate(PROBE_SECONDS, 1):
        setting.clock.move(pause - 1)
        await setting.send()
        setting.clock.move(1)
        await setting.send()
        assert len(receiver.sent) == first + tries
    receiver.otherwise = 204
    setting.clock.move(PROBE_SECONDS[-1])
    await setting.send()
    untried = 60 - len(set(receiver.ids[: first + len(PROBE_SECONDS)]))
    assert len(receiver.sent) >= first + len(PROBE_SECONDS) + untried
    setting.clock.move(3600)
    await setting.send()
    assert states(await setting.deliveries()) == ["delivered"] * 60


async def test_overloaded_endpoint_is_left_alone_as_asked(setting: Setting):
    receiver = await setting.endpoint(event_types=("account.created",))
    receiver.answers.append(web.Response(status=429, headers={"retry-after": "120"}))
    await tell(setting.store, opening())
    await setting.send()
    await tell(setting.store, of(merchant(1), opening()))
    setting.clock.move(119)
    await setting.send()
    assert len(receiver.sent) == 1
    setting.clock.move(1)
    await setting.send()
    assert len(receiver.sent) == 3


async def test_requested_delivery_is_sent_to_a_failing_endpoint(setting: Setting):
    receiver = await setting.endpoint()
    receiver.otherwise = 500
    await tell(setting.store, *[of(merchant(index), opening()) for index in range(9)])
    await setting.send()
    tried = len(receiver.sent)
    await setting.ask()
    await setting.send()
    assert receiver.sent[tried].event["type"] == "evt.credits.webhook_test"
    assert receiver.sent[tried].event["data"]["endpoint_id"] == "one"
    Webhook(SECRET).verify(receiver.sent[tried].body, receiver.sent[tried].headers)
    ((test,),) = [[one for one in await setting.deliveries() if one.account is None]]
    assert (test.state, test.attempts, test.error) == ("failed", 1, "It answered 500.")
    assert len(receiver.sent) == tried + 1

    await WebhookEndpoints(setting.store).change("one", disabled_at=setting.clock.now, disabled_reason="…")
    receiver.otherwise = 204
    first = (await setting.deliveries())[0]
    await setting.ask(type=first.type, account=first.account, event=first.event, redelivers=first.number)
    await setting.send()
    assert receiver.ids[-1] == receiver.ids[0]
    assert len(receiver.sent) == tried + 2


# ---- queues


async def test_slow_endpoint_delays_no_other(setting: Setting):
    slow, quick = await setting.endpoint(), await setting.endpoint("two")
    goes_on = asyncio.Event()

    async def waits(request: web.Request) -> web.StreamResponse:
        await goes_on.wait()
        return web.Response()

    slow.otherwise = waits
    await tell(setting.store, *[of(merchant(index), opening()) for index in range(30)])
    while len(quick.sent) < 90:
        await setting.sender.once()
        await asyncio.sleep(0)
    assert slow.under_way == len(slow.sent) == webhook_queue.AT_ONCE, "and it is sent only a few at once"
    goes_on.set()
    await setting.send()
    assert len(slow.sent) == 90
    assert slow.most_under_way == webhook_queue.AT_ONCE


async def test_pending_deliveries_of_an_endpoint_are_bounded(setting: Setting, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(webhooks, "MOST_PENDING", 7)
    monkeypatch.setattr(webhooks, "_PAGE", 4)
    receiver, other = await setting.endpoint(), await setting.endpoint("two")
    receiver.otherwise = 500
    await tell(setting.store, *[of(merchant(index), opening()) for index in range(9)])
    await setting.send()
    assert len(await setting.deliveries()) == 8
    assert setting.sender.pending == 8
    assert len(other.sent) == 27
    receiver.otherwise = 204
    setting.clock.move(3600)
    await setting.send()
    assert set(receiver.ids) == set(other.ids), "what it was not given waited in the outbox"


async def test_deleted_endpoint_gets_nothing_more(setting: Setting):
    receiver, other = await setting.endpoint(), await setting.endpoint("two")
    ended = asyncio.Event()

    async def waits(request: web.Request) -> web.StreamResponse:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return web.Response()

    receiver.otherwise = waits
    await tell(setting.store, opening())
    await setting.sender.once()
    await receiver.wait_for(1)
    await WebhookEndpoints(setting.store).delete("one", setting.clock.now)
    await setting.sender.once()
    await asyncio.wait_for(ended.wait(), 20)
    await tell(setting.store, use(1))
    await setting.send()
    assert (len(receiver.sent), len(other.sent)) == (1, 4)


async def test_events_of_a_period_are_redelivered_with_the_same_ids(setting: Setting):
    receiver = await setting.endpoint()
    await tell(setting.store, opening())
    await setting.send()
    setting.clock.move(60)
    await tell(setting.store, use(1), use(2))
    await setting.send()
    first = list(receiver.ids)
    assert await WebhookEndpoints(setting.store).change(
        "one", position=await Outbox(setting.store).position_at(setting.clock.now)
    )
    await setting.send()
    assert receiver.ids[5:] == first[3:]
    assert await WebhookEndpoints(setting.store).change("one", position=await Outbox(setting.store).position_at(0))
    await setting.send()
    assert receiver.ids[7:] == first


# ---- processes


async def test_delivery_without_a_stored_result_is_sent_again(setting: Setting, monkeypatch: pytest.MonkeyPatch):
    receiver = await setting.endpoint(event_types=("account.created",))
    await tell(setting.store, opening())
    note = WebhookEndpoints.note_attempts

    async def away(*_: Any) -> None:
        raise StorageUnavailable("The database is away.")

    monkeypatch.setattr(WebhookEndpoints, "note_attempts", away)
    await setting.sender.once()
    (failure,) = await asyncio.gather(*setting.sender._sending.values(), return_exceptions=True)
    assert isinstance(failure, StorageUnavailable)
    assert states(await setting.deliveries()) == ["pending"]
    monkeypatch.setattr(WebhookEndpoints, "note_attempts", note)
    await setting.sender.stop()
    await setting.send(setting.process())
    assert len(receiver.sent) == 2
    assert len(set(receiver.ids)) == 1
    assert [(one.state, one.attempts) for one in await setting.deliveries()] == [("delivered", 1)]


async def test_one_process_sends_and_another_takes_over(setting: Setting):
    receiver = await setting.endpoint()
    others = [setting.process() for _ in range(3)]
    await tell(setting.store, opening())
    for process in (setting.sender, *others):
        await setting.send(process)
    assert len(receiver.sent) == 3
    assert [process._claim is not None for process in (setting.sender, *others)] == [True, False, False, False]

    setting.clock.move(LEASE_SECONDS)  # the first one is silent
    await tell(setting.store, use(1))
    for process in others:
        await setting.send(process)
    assert len(receiver.sent) == 4
    await tell(setting.store, use(1))
    await setting.send()
    assert len(receiver.sent) == 4, "it has lost its turn"
    assert setting.sender._claim is None
    await setting.send(others[0])
    assert len(receiver.sent) == 5
    await others[0].stop()
    await tell(setting.store, use(1))
    await setting.send()
    assert len(receiver.sent) == 6, "who stops lets another go on at once"


async def test_lease_is_renewed_and_holds_the_lowest_position(setting: Setting):
    await setting.endpoint()
    await setting.endpoint("two", position=(0,) * setting.store.lanes, disabled_at=1, disabled_reason="…")
    await tell(setting.store, opening())
    for number in range(5):
        await tell(setting.store, add(1, key=str(number)))
        await setting.send()
        setting.clock.move(LEASE_SECONDS * 0.6)
    await setting.send()
    (cursor,) = await Outbox(setting.store).cursors()
    assert (cursor.reader, cursor.epoch) == (webhooks.READER, 1)
    assert cursor.position == await Outbox(setting.store).end()


async def test_sending_continues_after_failures_and_logs_them(setting: Setting, monkeypatch: pytest.MonkeyPatch):
    receiver = await setting.endpoint()
    monkeypatch.setattr(webhooks, "_POLL_SECONDS", 0.001)
    due = WebhookEndpoints.due_deliveries
    failures: list[Exception] = [StorageUnavailable("The database is away."), RuntimeError("a bug")]

    async def failing(*asked: Any, **more: Any) -> Any:
        if failures:
            raise failures.pop(0)
        return await due(*asked, **more)

    monkeypatch.setattr(WebhookEndpoints, "due_deliveries", failing)
    with capture_logs() as logs:
        running = asyncio.create_task(setting.sender.run())
        await tell(setting.store, opening())
        setting.sender.changed()
        await receiver.wait_for(3)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("webhooks_failed", "warning"),
        ("webhooks_failed", "error"),
    ]


async def test_without_endpoints_only_the_endpoints_are_read(setting: Setting, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def spy(cls: type, name: str) -> None:
        read = getattr(cls, name)

        async def spied(*more: Any) -> Any:
            asked.append(name)
            return await read(*more)

        monkeypatch.setattr(cls, name, spied)

    for cls, name in ((Outbox, "events"), (Outbox, "claim"), (WebhookEndpoints, "backlogs"), (WebhookEndpoints, "all")):
        spy(cls, name)
    running = asyncio.create_task(setting.sender.run())
    await tell(setting.store, opening())
    for number in range(5):
        await tell(setting.store, add(1, key=str(number)))
        setting.sender.committed()
        await asyncio.sleep(0.01)
    assert asked == ["all"]
    receiver = await setting.endpoint()
    setting.sender.changed()
    await setting.ask()
    await receiver.wait_for(1)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_old_finished_deliveries_are_pruned(setting: Setting, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(webhooks, "_PRUNED_AT_ONCE", 2)
    receiver = await setting.endpoint()
    await tell(setting.store, opening())
    await setting.send()
    setting.clock.move(DAY_SECONDS * LOG_DAYS)
    await tell(setting.store, use(1))
    await setting.send()
    assert len(await setting.deliveries()) == 4
    setting.clock.move(3600)
    await setting.send()
    assert [one.number for one in await setting.deliveries()] == [4]
    await WebhookEndpoints(setting.store).delete("one", setting.clock.now)
    setting.clock.move(3600)
    await setting.send()
    assert len(receiver.sent) == 4
    assert await setting.deliveries() == []
