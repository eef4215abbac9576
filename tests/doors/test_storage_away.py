"""A database that is locked, read-only, full or gone: the answer is 503, and nothing is lost or posted twice."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from credit_service.storage.engine import OutcomeUnknown, Writes
from tests.doors.running import Running, cloud_event, new_merchant, posting
from tests.storage.engines import on_server, only_on


def pragma(running: Running, statement: str) -> Any:
    """Run a PRAGMA on the connection that writes."""
    store: Any = running.service.engine

    async def run() -> Any:
        def execute() -> Any:
            return store._writer.execute(f"PRAGMA {statement}").fetchone()

        return await asyncio.get_running_loop().run_in_executor(store._writing, execute)

    return running.run(run())


@contextmanager
def locked(running: Running) -> Iterator[None]:
    """Another process holds the write lock."""
    with closing(sqlite3.connect(running.settings.database_path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def read_only(running: Running) -> Iterator[None]:
    """The file cannot be written."""
    pragma(running, "query_only = 1")
    yield
    pragma(running, "query_only = 0")


@contextmanager
def full(running: Running) -> Iterator[None]:
    """The disk is full."""
    pages = pragma(running, "page_count")[0]
    pragma(running, f"max_page_count = {pages}")
    yield
    pragma(running, "max_page_count = 1073741823")


def every_writing_route(running: Running, merchant: str) -> dict[str, Callable[[], httpx2.Response]]:
    large = {"large": "x" * 8000}  # does not fit into the free pages
    one = posting(merchant, metadata=large)
    items = [{**one, "idempotency_key": f"batch-{number}"} for number in range(20)]
    data = {"merchant_id": merchant, "order_id": 1, "credits": 1, "metadata": large}
    other, another = new_merchant(), new_merchant()
    return {
        "one": lambda: running.transact(one, "one"),
        "batch": lambda: running.post("/credits/transactions/batch", {"items": items}),
        "atomic": lambda: running.post("/credits/transactions/batch", {"atomic": True, "items": items}),
        "event": lambda: running.tell(cloud_event("evt.shopify.webhook.order_paid", data)),
        "events": lambda: running.tell([cloud_event("evt.merchant.created", {"merchant_id": other})] * 2),
        "account": lambda: running.post("/credits/accounts", {"merchant_id": another}),
    }


def held_up(running: Running, monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """Hold postings in the store. The first event is set when one has begun; set the second to let them go on."""
    store: Any = running.service.engine
    post = store.post
    begun, gate = asyncio.Event(), asyncio.Event()

    async def slow(*args: Any) -> Writes:
        begun.set()
        await gate.wait()
        found: Writes = await post(*args)
        return found

    monkeypatch.setattr(store, "post", slow)
    return begun, gate


@only_on("sqlite")
@pytest.mark.parametrize("away", [locked, read_only, full], ids=lambda away: away.__name__)
def test_unwritable_database_answers_503_and_loses_nothing(
    start: Callable[..., Running], away: Callable[[Running], Any]
) -> None:
    running = start(sweep_seconds=3600)
    merchant = running.open()
    running.spend(merchant, 1, "before")
    fill(running, merchant)
    hurry(running, 0.2)
    balance, sequence = running.balance(merchant), running.sequence(merchant)
    calls = every_writing_route(running, merchant)
    with away(running):
        for name, call in calls.items():
            if away is full and name in ("events", "account"):
                continue  # small enough for the free pages
            answer = call()
            assert (answer.status_code, answer.json()["code"]) in TOLD[away], name
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["content-type"] == "application/problem+json"
        let_go_of(running)
        # Reads still work, and nothing was posted.
        assert (running.balance(merchant), running.sequence(merchant)) == (balance, sequence)
        assert running.get(f"/credits/plugin-status/{merchant}", None).json()["data"]["status"] == "enabled"
        if away is not full:
            ready = running.client.get("/readyz")
            assert (ready.status_code, ready.headers["retry-after"]) == (503, "1")
            detailed = running.get("/health/detailed").json()["data"]
            assert (detailed["status"], detailed["components"]["database"]["status"]) == ("degraded", "unavailable")
        assert running.client.get("/livez").status_code == 200
    hurry(running, 10)
    # The same requests again, now that the database can be written: each is posted once.
    assert [call().status_code for call in calls.values()] == [201, 200, 200, 200, 200, 201]
    assert running.balance(merchant) == balance - 1 - 20 - 1
    assert running.client.get("/readyz").status_code == 200


@contextmanager
def table_locked(url: str) -> Iterator[None]:
    """Another transaction locks a table that every posting writes."""
    with on_server(url, "BEGIN", "LOCK TABLE accounts IN EXCLUSIVE MODE"):
        yield


@contextmanager
def made_read_only(url: str) -> Iterator[None]:
    """The server is read-only, as after a failover."""
    database = urlsplit(url).path[1:]
    others = f"datname = '{database}' AND pid <> pg_backend_pid()"
    reconnect = f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE {others}"
    with on_server(url, f'ALTER DATABASE "{database}" SET default_transaction_read_only = on', reconnect):
        yield
    with on_server(url, "SET default_transaction_read_only = off", f'ALTER DATABASE "{database}" RESET ALL', reconnect):
        pass


# A posting that waits for a lock when its deadline passes may still get it, and others wait behind it.
WAITING = {(503, "outcome_unknown"), (503, "deadline_exceeded")}
TOLD: dict[Any, set[tuple[int, str]]] = {
    away: {(503, "storage_unavailable")} | (WAITING if away in (locked, table_locked) else set())
    for away in (locked, read_only, full, table_locked, made_read_only)
}


def let_go_of(running: Running) -> None:
    """Wait until no posting of an answered caller is left in the store."""
    until = time.monotonic() + 30
    while any(stream.batches or stream.queue for stream in running.service.posting._streams):
        assert time.monotonic() < until
        time.sleep(0.005)


@only_on("postgres")
@pytest.mark.parametrize("away", [table_locked, made_read_only], ids=lambda away: away.__name__)
def test_unwritable_server_answers_503_and_loses_nothing(
    start: Callable[..., Running], away: Callable[[str], Any]
) -> None:
    running = start(sweep_seconds=3600, database_timeout_seconds=0.5)
    merchant = running.open()
    running.spend(merchant, 1, "before")
    balance, sequence = running.balance(merchant), running.sequence(merchant)
    calls = every_writing_route(running, merchant)
    hurry(running, 0.2)
    with away(running.settings.database_url.get_secret_value()):
        for name, call in calls.items():
            answer = call()
            assert (answer.status_code, answer.json()["code"]) in TOLD[away], name
            assert answer.headers["retry-after"] == "1"
        let_go_of(running)
        assert (running.balance(merchant), running.sequence(merchant)) == (balance, sequence)
        assert running.get(f"/credits/plugin-status/{merchant}", None).json()["data"]["status"] == "enabled"
        ready = running.client.get("/readyz").status_code
        assert ready == (503 if away is made_read_only else 200)  # readiness does not need the lock
    hurry(running, 10)
    assert [call().status_code for call in calls.values()] == [201, 200, 200, 200, 200, 201]
    assert running.balance(merchant) == balance - 1 - 20 - 1
    assert running.client.get("/readyz").status_code == 200


def hurry(running: Running, seconds: float) -> None:
    """Change the deadline of postings."""
    running.service.posting._deadline_seconds = seconds


def fill(running: Running, merchant: str) -> None:
    """Fill the free pages of the file."""
    for number in range(3):
        assert running.transact(posting(merchant, metadata={"large": "x" * 8000}), f"fill-{number}").status_code == 201


def test_lost_answer_of_the_database_is_outcome_unknown(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start()
    merchant = running.open()
    hurry(running, 0.2)
    store: Any = running.service.engine
    post = store.post

    async def lost(*args: Any) -> Writes:
        await post(*args)
        raise OutcomeUnknown("the connection was lost at commit")

    monkeypatch.setattr(store, "post", lost)
    answer = running.spend(merchant, 10, "lost")
    assert (answer.status_code, answer.json()["code"]) == (503, "outcome_unknown")
    assert "same key" in answer.json()["detail"]
    assert answer.headers["retry-after"] == "1"
    monkeypatch.undo()
    hurry(running, 10)
    again = running.spend(merchant, 10, "lost")
    assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
    assert running.balance(merchant) == 90


def test_full_queue_and_passed_deadline_have_their_codes(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(posting_queue_size=2, posting_deadline_seconds=1)
    merchant = running.open()
    begun, gate = held_up(running, monkeypatch)

    async def four() -> list[httpx2.Response]:
        headers = {"authorization": f"Bearer {running.keys['write']}"}
        async with httpx2.AsyncClient(base_url=running.url, headers=headers, timeout=10) as client:

            def spend(key: str) -> Any:
                path = "/api/v1/credits/transactions"
                return asyncio.ensure_future(
                    client.post(path, json=posting(merchant), headers={"idempotency-key": key})
                )

            first = spend("first")
            await asyncio.to_thread(running.run, begun.wait())  # the store has begun it
            waiting = [spend("second"), spend("third")]
            while running.service.posting.queued < 2:  # noqa: ASYNC110 - in another thread's loop
                await asyncio.sleep(0.005)
            refused = await spend("fourth")
            late = [await one for one in waiting]
            running.loop.call_soon_threadsafe(gate.set)
            return [await first, *late, refused]

    first, second, third, fourth = asyncio.run(four())
    # The store may still post the first one; a repeat with its key finds out.
    assert (first.status_code, first.json()["code"]) == (503, "outcome_unknown")
    assert running.spend(merchant, 1, "first").status_code == 200
    assert (fourth.status_code, fourth.json()["code"]) == (503, "overloaded")
    for late in (second, third):
        assert (late.status_code, late.json()["code"]) == (503, "deadline_exceeded")
    assert {answer.headers["retry-after"] for answer in (first, second, third, fourth)} == {"1"}
    assert running.balance(merchant) == 99
    assert running.spend(merchant, 1, "second").status_code == 201  # its key is still free


def test_internal_error_says_nothing_about_its_cause(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    running = start()
    merchant = running.open()
    store: Any = running.service.engine

    async def broken(*_: Any) -> Any:
        raise ExceptionGroup("outer", [RuntimeError("the secret inside")])

    for name in ("read", "post"):
        monkeypatch.setattr(store, name, broken)
    answers = [
        running.get(f"/credits/accounts/{merchant}"),
        running.get("/credits/transactions"),
        running.get(f"/credits/plugin-status/{new_merchant()}", None),
        running.get("/api-keys", "admin"),
        running.spend(merchant),
        running.post("/credits/accounts", {"merchant_id": merchant}),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (500, "internal")
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
        assert "secret" not in answer.text
        assert "Traceback" not in answer.text
    assert capfd.readouterr().out.count("internal_error") == len(answers)
    monkeypatch.undo()
    assert running.spend(merchant).status_code == 201


def test_caller_that_leaves_does_not_cancel_its_posting(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start()
    merchant = running.open()
    begun, gate = held_up(running, monkeypatch)
    with running.connection() as connection:
        body = str(posting(merchant)).replace("'", '"')
        connection.send(
            f"POST /api/v1/credits/transactions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {running.keys['write']}\r\nidempotency-key: k\r\n"
            f"content-length: {len(body)}\r\n\r\n{body}".encode()
        )
        running.run(begun.wait())
    running.loop.call_soon_threadsafe(gate.set)
    monkeypatch.undo()
    assert running.spend(merchant, 1, "k").status_code == 200
    assert running.balance(merchant) == 99
