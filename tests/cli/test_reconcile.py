"""`credit-service events reconcile` publishes the events again that NATS lost, and no others."""

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext
from nats.js.api import RetentionPolicy

from credit_service.outlets.jetstream import STREAM
from credit_service.outlets.reconcile import Numbers
from credit_service.storage.engine import Engine
from tests.cli.ledgers import url_of
from tests.commands import Ran, command
from tests.ledger.telling import opening, use
from tests.outlets.publishing import Publishing, announced, connection, create, stream
from tests.servers.nats import connected
from tests.storage.contract import Clock, merchant, tell
from tests.storage.engines import opened
from tests.storage.values import of

pytestmark = pytest.mark.usefixtures("on_each_engine")
WINDOW_SECONDS = 0.1


class Setting:
    """A ledger, a NATS server, and the command that compares them."""

    def __init__(self, folder: Path, nats_url: str) -> None:
        self.folder = folder
        self.nats_url = nats_url
        assert command("migrate", cwd=folder).code == 0

    def reconcile(self, *arguments: str, **environment: str) -> Ran:
        return command("events", "reconcile", *arguments, cwd=self.folder, **{"NATS_URL": self.nats_url, **environment})

    def store(self, do: Callable[[Engine], Coroutine[Any, Any, Any]], **options: Any) -> Any:
        """Run `do` on the engine of the ledger, and return its result."""

        async def done() -> Any:
            store = opened(url_of(self.folder / "credit-service.db"), **options)
            try:
                return await do(store)
            finally:
                await store.close()

        return asyncio.run(done())

    def nats(self, do: Callable[[JetStreamContext], Coroutine[Any, Any, Any]]) -> Any:
        """Run `do` on JetStream, and return its result."""

        async def done() -> Any:
            async with connected(self.nats_url) as nats:
                return await do(nats.jetstream())

        return asyncio.run(done())

    def announce(self, accounts: int = 5, first: int = 0, **options: Any) -> None:
        """Make postings that announce four events of each account."""

        async def do(store: Engine) -> None:
            merchants = [merchant(first + index) for index in range(accounts)]
            await tell(store, *[of(one, opening()) for one in merchants])
            await tell(store, *[of(one, use(2)) for one in merchants])

        self.store(do, **options)

    def publish(self, **config: Any) -> None:
        """Publish all events to a stream. Its duplicate window is short unless `config` changes it."""

        async def do(store: Engine) -> None:
            await create(self.nats_url, **{"duplicate_window": WINDOW_SECONDS, **config})
            async with connection(self.nats_url) as broker:
                await broker.jetstream()
                await Publishing(store, broker).drain()

        self.store(do)

    def lose(self, *sequences: int) -> None:
        """Delete these messages from the stream, and wait until a short duplicate window has passed."""

        async def do(streams: JetStreamContext) -> None:
            for sequence in sequences:
                await streams.delete_msg(STREAM, sequence)

        self.nats(do)
        time.sleep(2 * WINDOW_SECONDS)

    def missing(self) -> list[str]:
        """Return the ids of the events that the stream does not hold."""
        there = {message.event["id"] for message in asyncio.run(stream(self.nats_url))}
        return [id_ for id_ in self.store(announced) if id_ not in there]


@pytest.fixture
def setting(tmp_path: Path, nats_url: str) -> Setting:
    return Setting(tmp_path, nats_url)


def result(**numbers: int) -> dict[str, int]:
    return {"accounts": 5, "lost": 0, "published": 0, "remembered": 0} | numbers


def test_nothing_is_published_if_no_event_is_lost(setting: Setting) -> None:
    setting.announce()
    setting.publish()
    assert setting.reconcile("--json").json == result()
    ran = setting.reconcile()
    assert (ran.code, ran.out) == (0, "5 accounts compared: 0 events lost, 0 published again\n")


def test_lost_events_are_published_again_in_account_order(setting: Setting) -> None:
    setting.announce()
    setting.publish()
    setting.lose(2, 3, 7, 8, 9, 19, 20)
    lost = setting.missing()
    assert len(lost) == 7
    told = setting.reconcile("--dry-run", "--json")
    assert (told.code, told.json) == (1, result(lost=7))
    assert setting.missing() == lost, "a dry run publishes nothing"
    done = setting.reconcile("--json")
    assert (done.code, done.json) == (0, result(lost=7, published=7))
    assert setting.missing() == []
    again = [message.event for message in asyncio.run(stream(setting.nats_url))[-7:]]
    assert {event["id"] for event in again} == set(lost)
    numbers: dict[str, list[int]] = {}
    for event in again:
        numbers.setdefault(event["subject"], []).append(int(event["sequence"]))
    assert all(found == sorted(found) for found in numbers.values())
    assert setting.reconcile("--json").json == result()


def test_deleted_stream_is_created_and_filled_again(setting: Setting) -> None:
    setting.announce()
    setting.publish()
    setting.nats(lambda streams: streams.delete_stream(STREAM))
    told = setting.reconcile("--dry-run")
    assert told.code == 2
    assert "There is no stream CREDITS" in told.err
    assert setting.reconcile("--json").json == result(lost=20, published=20)
    assert setting.missing() == []


def test_unpublished_events_are_not_lost(setting: Setting) -> None:
    setting.announce(4)
    setting.publish()
    setting.announce(1, first=4)
    assert len(setting.missing()) == 4
    assert setting.reconcile("--json").json == result()


def test_events_removed_by_max_msgs_are_not_lost(setting: Setting) -> None:
    setting.announce()
    setting.publish(max_msgs=8)
    assert len(setting.missing()) == 12
    assert setting.reconcile("--json").json == result()


def test_events_older_than_max_age_are_not_lost(setting: Setting) -> None:
    setting.announce(4, clock=Clock())  # this clock is years behind
    setting.announce(1, first=4)
    setting.publish(max_age=3600)
    setting.lose(2, 3, 20)
    assert setting.reconcile("--json").json == result(lost=1, published=1)
    assert len(setting.missing()) == 2


def test_events_in_duplicate_window_must_be_published_later(setting: Setting) -> None:
    setting.announce()
    setting.publish(duplicate_window=60)
    setting.lose(20)
    done = setting.reconcile("--json")
    assert (done.code, done.json) == (1, result(lost=1, remembered=1))
    assert "1 NATS remembers as repeats: try again when its duplicate window has passed" in setting.reconcile().out


def test_stream_that_drops_consumed_events_is_refused(setting: Setting) -> None:
    setting.announce()
    setting.publish(retention=RetentionPolicy.INTEREST)
    ran = setting.reconcile()
    assert ran.code == 2
    assert "The stream CREDITS drops what was consumed" in ran.err


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"NATS_URL": ""}, "NATS_URL: which NATS server?"),
        ({"NATS_URL": "nats://user:secret@127.0.0.1:1"}, "NATS 127.0.0.1:1 cannot be used"),
        ({"DATABASE_URL": "sqlite:///absent.db"}, "absent.db holds no ledger"),
    ],
)
def test_unusable_nats_or_ledger_exits_with_2(
    setting: Setting, environment: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["credit_service.cli.events"], "_CONNECT_SECONDS", 0.5)
    ran = setting.reconcile(**environment)
    assert ran.code == 2
    assert sentence in ran.err
    assert "secret" not in ran.err


@pytest.mark.parametrize(
    ("there", "upto", "gaps"),
    [
        ([], 0, []),
        ([], 3, [(1, 3)]),
        ([1, 2, 3], 3, []),
        ([1, 2, 3], 5, [(4, 5)]),
        ([3, 4, 8, 9], 10, [(1, 2), (5, 7), (10, 10)]),
        ([5, 6, 1, 2, 3, 4], 6, []),
        ([1, 2, 2, 1, 4], 5, [(3, 3), (5, 5)]),
        ([7, 8], 3, [(1, 3)]),
    ],
)
def test_gaps_do_not_depend_on_the_order_of_numbers(there: list[int], upto: int, gaps: list[tuple[int, int]]) -> None:
    numbers = Numbers()
    for number in there:
        numbers.add(number)
    assert list(numbers.gaps(upto)) == gaps
