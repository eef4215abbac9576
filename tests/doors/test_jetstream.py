"""Events over JetStream: each event counts once and delays no other event, even after failures."""

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig
from structlog.testing import capture_logs

from credit_service.doors.jetstream import taking
from credit_service.messages import envelope, inbound
from credit_service.messages.dead_letters import subject_of
from credit_service.storage.engine import BadRow, OutcomeUnknown, StorageUnavailable
from credit_service.storage.letters import Letters
from tests.doors.running import Running, new_merchant
from tests.doors.streaming import CONSUMER, STREAM, Peer, consumed, event, letters, older, orders, total
from tests.servers.nats import Nats
from tests.servers.processes import wait_until
from tests.storage.engines import only_on

CREATED = "evt.merchant.created"
PAID = "evt.shopify.webhook.order_paid"
REFUNDED = "evt.shopify.webhook.order_refunded"
ADJUSTED = "cmd.credits.manual_adjustment"
ADJUSTMENT = {"adjustment_id": "a", "operation_type": "DECREASE", "credits": 1, "reason": "r", "admin_id": "bo"}

ONE_OF_EACH: dict[str, tuple[dict[str, Any], int]] = {
    CREATED: ({}, 100),
    "evt.billing.trial_started": ({"trial_id": "t", "credits": 40}, 0),  # the merchant has had its trial
    PAID: ({"order_id": 2**60, "total": "9.99", "currency": "EUR"}, -1),
    REFUNDED: ({"refund_id": "r", "order_id": str(2**60), "refund_amount": 9.99, "currency": "EUR"}, 1),
    "evt.billing.payment_succeeded": ({"payment_id": 1, "credits": 50}, 50),
    "evt.billing.payment_refunded": ({"payment_id": "1", "refund_id": 1, "credits": 20}, -20),
    "evt.billing.payment_disputed": ({"payment_id": 1, "dispute_id": 1}, -30),  # the other 20 were refunded
    "evt.billing.payment_dispute_closed": ({"payment_id": 1, "dispute_id": 1, "outcome": "won"}, 30),
    "evt.billing.subscription_renewed": ({"subscription_id": "s", "period": "2026-01", "credits": 9}, 9),
    ADJUSTED: ({**ADJUSTMENT, "credits": 3}, -3),
    "evt.credits.manual_adjustment": ({**ADJUSTMENT, "adjustment_id": "b", "operation_type": "INCREASE"}, 1),
}
"""One event of each type in a realistic order, and its change of the balance."""


@pytest.fixture(scope="module")
def broker() -> Iterator[Nats]:
    """A NATS server for tests that do not stop it."""
    with Nats() as server:
        yield server


@pytest.fixture
def peer(broker: Nats) -> Iterator[Peer]:
    """Another client of the NATS server, which has no streams yet."""

    async def clean(streams: JetStreamContext) -> None:
        for stream in await streams.streams_info():
            await streams.delete_stream(str(stream.config.name))

    with Peer(broker.url) as other:
        other.ask(clean)
        yield other


@pytest.fixture
def running(start: Callable[..., Running], broker: Nats, peer: Peer) -> Running:
    """A service with NATS."""
    return start(nats_url=broker.url)


def test_every_event_type_is_covered() -> None:
    assert set(ONE_OF_EACH) == set(inbound.CATALOGUE)


@pytest.mark.parametrize("envelope", [event, older])
@pytest.mark.parametrize("token", ["", ".{merchant}", ".3"])
def test_repeated_event_has_its_effect_once(
    running: Running, peer: Peer, envelope: Callable[..., bytes], token: str
) -> None:
    merchant = new_merchant()
    messages = [
        (subject + token.format(merchant=merchant), envelope(subject, {"merchant_id": merchant, **data}))
        for subject, (data, _) in ONE_OF_EACH.items()
    ]
    peer.send(*messages)
    peer.settle()
    assert running.balance(merchant) == sum(change for _, change in ONE_OF_EACH.values())
    transactions = running.sequence(merchant)
    peer.send(*messages)
    peer.settle()
    assert running.sequence(merchant) == transactions == len(ONE_OF_EACH) - 1
    assert letters(running) == []
    trial = "evt.billing.trial_started"
    expected = {(subject, "posted"): 1 for subject in ONE_OF_EACH if subject != trial}
    expected |= {(subject, "replayed"): 1 for subject in ONE_OF_EACH} | {(trial, "replayed"): 2}
    assert consumed(running) == expected


def test_transaction_keeps_the_fields_of_its_event(running: Running, peer: Peer) -> None:
    merchant = new_merchant()
    data = {"merchant_id": merchant, "order_id": 7, "total": "9.99", "metadata": {"ä": [1]}}
    peer.send((PAID, event(PAID, data, time="2026-01-02T03:04:05Z", correlationid="c-1")))
    peer.settle()
    (transaction,) = running.get(f"/credits/transactions?merchant_id={merchant}").json()["data"]
    told = [transaction[name] for name in ("actor", "correlation_id", "occurred_at", "metadata", "idempotency_key")]
    assert told == ["jetstream", "c-1", "2026-01-02T03:04:05.000000Z", {"ä": [1]}, "shopify:order:7"]


def test_events_of_one_merchant_are_posted_in_order(running: Running, peer: Peer) -> None:
    merchant = new_merchant()
    peer.send(*orders(merchant, range(1200)))
    peer.settle()
    keys = running.run(_keys(running, merchant))
    assert keys == [f"shopify:order:{number}" for number in range(1200)]


async def _keys(running: Running, merchant: str) -> list[str]:
    return [t.key async for books in running.service.engine.books() for t in books.transactions]


# ---- events that can never be applied


OTHER = new_merchant()
UNCOVERED = {"merchant_id": OTHER, **ADJUSTMENT}
BAD: dict[str, tuple[str, bytes, str]] = {
    "nothing": (CREATED, b"", "validation_failed"),
    "an invisible reason": (ADJUSTED, event(ADJUSTED, {**UNCOVERED, "reason": "\u200b"}), "validation_failed"),
    "no JSON": (CREATED, b"{no", "validation_failed"),
    "no UTF-8": (CREATED, b'{"a":"\xff"}', "validation_failed"),
    "NaN": (CREATED, event(CREATED, {"merchant_id": float("nan")}), "validation_failed"),
    "no object": (CREATED, b"[1]", "validation_failed"),
    "too deep": (CREATED, b'{"a":' * 40 + b"1" + b"}" * 40, "validation_failed"),
    "a key twice": (CREATED, b'{"type":"x","type":"y"}', "validation_failed"),
    "NUL in a key": (CREATED, event(CREATED, {"merchant_id": "x", "a\0": 1}), "validation_failed"),
    "a lone surrogate": (CREATED, event(CREATED, {"a\ud800": 1}), "validation_failed"),
    "no merchant": (CREATED, event(CREATED, {}), "validation_failed"),
    "an unknown type": (CREATED, event("evt.merchant.renamed", {}), "event_type_unknown"),
    "the type of another subject": (CREATED, event(ADJUSTED, UNCOVERED), "validation_failed"),
    "another merchant": (f"{CREATED}.{new_merchant()}", event(CREATED, {"merchant_id": OTHER}), "validation_failed"),
    "too large": (CREATED, event(CREATED, {"merchant_id": "x" * 5000}), "body_too_large"),
    "a refused command": (ADJUSTED, event(ADJUSTED, UNCOVERED), "insufficient_credits"),
    "out of range": (
        "evt.billing.payment_succeeded",
        event("evt.billing.payment_succeeded", {"merchant_id": "{merchant}", "payment_id": 1, "credits": 2**53 - 1}),
        "amount_out_of_range",
    ),
}


def test_malformed_event_is_a_dead_letter_and_delays_nothing(
    start: Callable[..., Running], broker: Nats, peer: Peer
) -> None:
    running = start(nats_url=broker.url, batch_body_max_bytes=4096)
    merchant = new_merchant()
    bad = {
        name: (subject, body.replace(b"{merchant}", merchant.encode()), code)
        for name, (subject, body, code) in BAD.items()
    }
    peer.send((CREATED, event(CREATED, {"merchant_id": merchant})))
    for number, (subject, body, _) in enumerate(bad.values()):
        peer.send(*orders(merchant, [number]), (subject, body))
    peer.settle()
    assert running.balance(merchant) == 100 - len(bad)
    assert {(one.subject, one.original, one.code) for one in letters(running)} == set(bad.values())
    assert total(running, "credits_dead_letters_total") == len(bad)
    told = peer.published(len(bad))
    assert [list(body) for _, body, _ in told] == [["code", "reason", "subject", "original", "received_at"]] * len(bad)
    assert {(body["subject"], base64.b64decode(body["original"]), body["code"]) for _, body, _ in told} == set(
        bad.values()
    )
    assert all(subject == f"dlq.credits.{body['subject']}" for subject, body, _ in told)
    assert {id_ for *_, id_ in told} == {f"dlq-{one.id}" for one in letters(running)}
    wait_until(lambda: all(one.published_at is not None for one in letters(running)), "published dead letters")
    assert sum(count for (_, outcome), count in consumed(running).items() if outcome == "refused") == len(bad)


def test_repeated_malformed_event_is_one_dead_letter(running: Running, peer: Peer) -> None:
    peer.send(*[(CREATED, b"{no")] * 5)
    peer.settle()
    peer.send((CREATED, b"{no"))
    peer.settle()
    assert len(letters(running)) == 1
    assert len(peer.published(1)) == 1


def test_bad_orders_of_an_event_do_not_stop_the_others(running: Running, peer: Peer) -> None:
    merchant = new_merchant()
    items = [{"order_id": 1, "credits": 2}, {"order_id": "no price"}, "nonsense", {"order_id": 4, "credits": 5}]
    body = event(PAID, {"merchant_id": merchant, "order_items": items})
    peer.send((PAID, body))
    peer.settle()
    assert running.balance(merchant) == -7
    (letter,) = letters(running)
    assert (letter.code, letter.original) == ("validation_failed", body)
    assert "order no price: /data/order_items/1/total: " in letter.reason
    assert "/data/order_items/2" in letter.reason
    assert consumed(running) == {(PAID, "posted"): 2, (PAID, "refused"): 2}


def test_refund_without_its_order_becomes_a_dead_letter(
    start: Callable[..., Running], broker: Nats, peer: Peer
) -> None:
    running = start(nats_url=broker.url, sweep_seconds=0.05)
    merchant = new_merchant()
    refund = {"merchant_id": merchant, "refund_id": "r", "order_id": "o", "refund_amount": "1.5", "currency": "EUR"}
    peer.send((REFUNDED, event(REFUNDED, refund)))
    peer.settle()
    assert consumed(running) == {(REFUNDED, "parked"): 1}
    running.run(_end_the_wait(running))
    ((subject, told, _),) = peer.published(1)
    assert (subject, told["code"]) == (f"dlq.credits.{REFUNDED}", "order_unknown")
    assert json.loads(base64.b64decode(told["original"]))["data"] == refund
    assert [subject_of(letter) for letter in letters(running)] == [REFUNDED]


async def _end_the_wait(running: Running) -> None:
    from sqlalchemy import update

    from credit_service.storage import tables
    from credit_service.storage.questions import Ask

    assert await running.service.engine.write([Ask(update(tables.parked).values(until=1))]) == 1


def test_too_large_dead_letter_is_published_without_its_original(
    start: Callable[..., Running], broker: Nats, peer: Peer
) -> None:
    running = start(nats_url=broker.url)
    body = b"{" + b"x" * 900_000
    peer.send((CREATED, body), (CREATED, b"{small"))
    peer.settle()
    assert [len(one.original or b"") for one in letters(running)] == [900_001, 6]
    assert [told["original"] is None for _, told, _ in peer.published(2)] == [True, False]


def test_message_with_a_status_header_is_consumed(running: Running, peer: Peer) -> None:
    merchant = new_merchant()
    wait_until(lambda: peer.has(STREAM), "the stream")
    body = event(CREATED, {"merchant_id": merchant})
    peer.ask(
        lambda streams: streams.publish(CREATED, body, headers={"Status": "409", "Description": "Consumer Deleted"})
    )
    peer.settle()
    assert running.balance(merchant) == 100


# ---- failures and restarts


def failing(running: Running, monkeypatch: pytest.MonkeyPatch, name: str, *errors: Exception | None) -> list[float]:
    """Let the next calls of a posting method post, then raise these errors (if not None). Return the call times."""
    original: Any = getattr(running.service.posting, name)
    left, calls = list(errors), []

    async def fail(*arguments: Any) -> Any:
        calls.append(time.monotonic())
        outcome = await original(*arguments)
        if left and (error := left.pop(0)) is not None:
            raise error
        return outcome

    monkeypatch.setattr(running.service.posting, name, fail)
    return calls


def test_event_with_unknown_outcome_is_replayed(running: Running, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(running, monkeypatch, "submit_many", OutcomeUnknown("The answer was lost."))
    merchant = new_merchant()
    peer.send((CREATED, event(CREATED, {"merchant_id": merchant})))
    peer.settle()
    assert (running.balance(merchant), running.sequence(merchant)) == (100, 1)
    assert consumed(running) == {(CREATED, "replayed"): 1}
    assert letters(running) == []


def test_events_wait_in_order_while_the_database_is_away(
    running: Running, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = True
    calls = 0
    post = running.service.engine.post

    async def unavailable(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if away:
            raise StorageUnavailable("Gone.")
        return await post(*arguments)

    monkeypatch.setattr(running.service.engine, "post", unavailable)
    merchant = new_merchant()
    with capture_logs() as logs:
        peer.send(*orders(merchant, range(2_500)))
        time.sleep(1.5)
        assert calls < 10
        info = peer.consumer()
        assert info.num_ack_pending is not None
        assert info.num_ack_pending <= 2 * running.settings.nats_batch_size + 1  # the rest waits in the stream
        away = False
        peer.settle()
    assert [line["event"] for line in logs].count("events_wait") == 1
    assert running.run(_keys(running, merchant)) == [f"shopify:order:{number}" for number in range(2_500)]
    assert letters(running) == []


def test_long_waiting_events_go_to_another_replica(
    running: Running, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taking, "_AWAY_SECONDS", 0.2)
    monkeypatch.setattr(running.service.consumer._taking, "_ways", taking.Ways(hold=(0.01,)))
    failing(running, monkeypatch, "submit_many", *[StorageUnavailable("Gone.")] * 5)
    merchant = new_merchant()
    peer.send((CREATED, event(CREATED, {"merchant_id": merchant})))
    peer.settle()
    assert running.balance(merchant) == 100
    assert total(running, "credits_events_redelivered_total") == 2
    assert letters(running) == []


def test_event_that_fails_in_posting_ends_as_a_dead_letter(
    running: Running, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running.service.consumer._taking, "_ways", taking.Ways(first_pause=0.02))
    post = running.service.engine.post

    async def breaks(needs: Any, *more: Any) -> Any:
        if any(need.key == "shopify:order:13" for need in needs):
            raise BadRow("It breaks.")
        return await post(needs, *more)

    monkeypatch.setattr(running.service.engine, "post", breaks)
    merchant = new_merchant()
    peer.send(*orders(merchant, range(100)))
    peer.settle()
    assert running.balance(merchant) == -99
    (letter,) = letters(running)
    assert (letter.code, letter.reason) == ("internal", "The service failed: BadRow.")
    assert total(running, "credits_events_redelivered_total") == 4
    # The service may submit the other 99 events twice, until it knows which event fails. Each of them counts once.
    found = consumed(running)
    assert found.pop((PAID, "refused")) == 1
    assert sum(found.values()) == 99


def test_event_that_fails_in_reading_ends_as_a_dead_letter(
    running: Running, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running.service.consumer._taking, "_ways", taking.Ways(first_pause=0.02))
    read_fast = envelope.read_fast

    def breaks(body: bytes, *more: Any) -> Any:
        if b"poison" in body:
            raise ZeroDivisionError
        return read_fast(body, *more)

    monkeypatch.setattr("credit_service.messages.envelope.read_fast", breaks)
    merchant = new_merchant()
    peer.send((CREATED, b"poison"), (CREATED, event(CREATED, {"merchant_id": merchant})))
    peer.settle()
    assert running.balance(merchant) == 100
    assert [(one.code, one.original) for one in letters(running)] == [("internal", b"poison")]


def test_failing_dead_letter_is_retried_and_delays_no_other(
    running: Running, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running.service.consumer._taking, "_ways", taking.Ways(first_pause=0.02))
    put_aside = Letters.put_aside
    refusals = 6

    async def refuses(letters: Letters, some: Any) -> int:
        nonlocal refusals
        if any(letter.original == b"poison" for letter in some) and refusals:
            refusals -= 1
            raise BadRow("It cannot be kept.")
        return await put_aside(letters, some)

    monkeypatch.setattr(Letters, "put_aside", refuses)
    peer.send((CREATED, b"poison"), (CREATED, b"other"))
    peer.settle()
    assert {one.original for one in letters(running)} == {b"poison", b"other"}


@pytest.mark.parametrize("end", ["stop", "kill"])
@only_on("sqlite")
def test_consuming_continues_after_a_restart_of_nats(
    start: Callable[..., Running], new_nats: Callable[..., Nats], end: str
) -> None:
    server = new_nats()
    running = start(nats_url=server.url)
    merchant = new_merchant()
    with Peer(server.url) as peer:
        for round_ in range(2):
            peer.send(*orders(merchant, range(round_ * 10, round_ * 10 + 10)))
            getattr(server, end)()
            server.start()
    # NATS redelivers unacknowledged events after newer ones. The ledger knows their keys and posts each event once.
    every = sorted(f"shopify:order:{one}" for one in range(20))
    wait_until(lambda: sorted(running.run(_keys(running, merchant))) == every, "orders")
    assert running.balance(merchant) == -20


@only_on("sqlite")
def test_consuming_survives_an_absent_and_a_silent_nats(
    start: Callable[..., Running], new_nats: Callable[..., Nats], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("credit_service.broker._PING_SECONDS", 0.5)  # tests/test_broker.py uses the real value
    server = new_nats()
    server.stop()
    running = start(nats_url=server.url)
    merchant = running.open()
    assert running.spend(merchant).status_code == 201
    told = running.get("/health/detailed").json()["data"]
    assert (told["status"], told["components"]["nats"]["status"]) == ("degraded", "unavailable")
    assert running.client.get("/readyz").status_code == 200  # HTTP does not need NATS
    server.start()
    with Peer(server.url) as peer:
        peer.send(*orders(merchant, range(5)))
        peer.settle()
        server.pause()
        wait_until(lambda: not running.service.broker.connected, "the end of a silent connection")  # type: ignore[union-attr]
        assert running.spend(merchant).status_code == 201
        server.resume()
        began = time.monotonic()
        peer.send(*orders(merchant, range(5, 10)))
        peer.settle()
        wait_until(lambda: running.get("/health/detailed").json()["data"]["status"] == "ok", "health")
        assert time.monotonic() - began < 10
    assert running.balance(merchant) == 100 - 2 - 10


def test_fetched_messages_are_returned_when_the_service_stops(
    new_ledger: Callable[[], str], broker: Nats, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, merchant = new_ledger(), new_merchant()
    with Running(database_url=url, nats_url=broker.url, nats_batch_size=10) as first:
        failing(first, monkeypatch, "submit_many", *[StorageUnavailable("Gone.")] * 1000)
        peer.send(*orders(merchant, range(100)))
        wait_until(lambda: (peer.consumer().num_ack_pending or 0) >= 20, "messages fetched ahead")
    with Running(database_url=url, nats_url=broker.url) as other:
        began = time.monotonic()
        peer.settle()
        assert time.monotonic() - began < other.service.consumer._ack_wait / 2  # NATS did not wait for a timeout
        assert other.balance(merchant) == -100


@only_on("sqlite")
def test_deleted_consumer_or_stream_is_created_again(running: Running, peer: Peer) -> None:
    merchant = new_merchant()
    peer.send(*orders(merchant, [1]))
    peer.settle()
    peer.ask(lambda streams: streams.delete_consumer(STREAM, CONSUMER))
    peer.send(*orders(merchant, [2]))
    peer.settle()
    peer.ask(lambda streams: streams.delete_stream(STREAM))
    peer.send(*orders(merchant, [3]))
    peer.settle()
    assert running.balance(merchant) == -3


# ---- existing streams and subjects


@only_on("sqlite")
def test_foreign_streams_are_consumed_and_never_altered(
    start: Callable[..., Running], broker: Nats, peer: Peer
) -> None:
    async def add(streams: JetStreamContext) -> None:
        await streams.add_stream(name="SHOP", subjects=["evt.shopify.>", "evt.other"])

    peer.ask(add)
    running = start(nats_url=broker.url)
    merchant = new_merchant()
    peer.send((CREATED, event(CREATED, {"merchant_id": merchant})))
    peer.send(*orders(merchant, [1]), ("evt.shopify.something.else", b"not ours"), stream="SHOP")
    peer.settle()
    peer.settle("SHOP")
    assert running.balance(merchant) == 99
    assert letters(running) == []
    config = peer.ask(lambda streams: streams.stream_info("SHOP")).config
    assert config.subjects == ["evt.shopify.>", "evt.other"]
    assert PAID not in (peer.ask(lambda streams: streams.stream_info(STREAM)).config.subjects or [])


@only_on("sqlite")
def test_stream_conflict_is_reported_and_other_subjects_are_consumed(
    start: Callable[..., Running], broker: Nats, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("credit_service.doors.jetstream.consumer._CONFLICT_SECONDS", 0.2)
    rest = [pattern for type_ in inbound.CATALOGUE if type_ != CREATED for pattern in (type_, f"{type_}.*")]

    async def add(streams: JetStreamContext, subjects: list[str]) -> None:
        await streams.add_stream(name=STREAM, subjects=subjects)

    peer.ask(lambda streams: add(streams, rest))
    merchant = new_merchant()
    with capture_logs() as logs:
        running = start(nats_url=broker.url)
        peer.send(*orders(merchant, [1]))
        peer.settle()
        told = running.get("/health/detailed").json()["data"]["components"]["nats"]
        assert told["status"] == "unavailable"
        assert told["reason"].startswith(f"The stream {STREAM} is there, without the subject {CREATED}, ")
        time.sleep(0.5)
    assert [line["event"] for line in logs].count("nats_conflict") == 1

    async def mend(streams: JetStreamContext) -> None:
        await streams.update_stream(name=STREAM, subjects=[*rest, CREATED, f"{CREATED}.*"])

    peer.ask(mend)
    peer.send((CREATED, event(CREATED, {"merchant_id": merchant})))
    wait_until(lambda: running.balance(merchant) == 99, "the event on the added subject")
    wait_until(lambda: running.get("/health/detailed").json()["data"]["status"] == "ok", "health")


@only_on("sqlite")
def test_unusable_consumer_is_reported(start: Callable[..., Running], broker: Nats, peer: Peer) -> None:
    async def add(streams: JetStreamContext) -> None:
        await streams.add_stream(name=STREAM, subjects=["evt.>", "cmd.>"])
        await streams.add_consumer(STREAM, ConsumerConfig(durable_name=CONSUMER, ack_policy=AckPolicy.NONE))

    peer.ask(add)
    running = start(nats_url=broker.url)

    def reason() -> str:
        return str(running.get("/health/detailed").json()["data"]["components"]["nats"].get("reason"))

    wait_until(lambda: f"The consumer {CONSUMER} of {STREAM} cannot be created: " in reason(), "the reason in health")


@only_on("sqlite")
def test_subjects_can_be_remapped(start: Callable[..., Running], broker: Nats, peer: Peer) -> None:
    running = start(nats_url=broker.url, nats_subjects=f"{PAID}=shop.orders.paid, {CREATED}=shop.opened")
    merchant = new_merchant()
    order = {"merchant_id": merchant, "credits": 1}
    peer.send(
        ("shop.opened", event(CREATED, {"merchant_id": merchant})),
        ("shop.orders.paid", event("shop.orders.paid", {**order, "order_id": 1})),
        (f"shop.orders.paid.{merchant}", older("shop.orders.paid", {**order, "order_id": 2})),
        ("shop.orders.paid", older(PAID, {**order, "order_id": 3})),
        ("shop.orders.paid", b"{no"),
    )
    peer.settle()
    assert running.balance(merchant) == 97
    assert [one.subject for one in letters(running)] == ["shop.orders.paid"]
    assert not {PAID, CREATED} & set(peer.ask(lambda streams: streams.stream_info(STREAM)).config.subjects or [])


def test_replicas_share_partitions_and_keep_order(start: Callable[..., Running], broker: Nats, peer: Peer) -> None:
    settings = {"nats_url": broker.url, "nats_partitions": 4}
    one = start(**settings, nats_partitions_taken="0-1")
    other = start(**settings, nats_partitions_taken="2,3")
    merchants = [new_merchant() for _ in range(12)]
    messages = [
        message
        for number in range(40)
        for merchant in merchants
        for message in orders(merchant, [number], f"{PAID}.{merchant}")
    ]
    peer.send(*messages, (CREATED, event(CREATED, {"merchant_id": merchants[0]})), (PAID, b"{no"))

    def done() -> bool:
        return sum(sum(consumed(running).values()) for running in (one, other)) == len(messages) + 2

    wait_until(done, "all partitions")
    found: dict[str, list[str]] = {}
    for running in (one, other):
        for merchant, keys in running.run(_by_merchant(running)).items():
            assert merchant not in found or merchant == merchants[0]  # its created event has no merchant in its subject
            found.setdefault(merchant, []).extend(key for key in keys if "order" in key)
        assert any(outcome == "posted" and count > 1 for (_, outcome), count in consumed(running).items())
    assert found == {merchant: [f"shopify:order:{number}" for number in range(40)] for merchant in merchants}
    assert [letter.subject for letter in letters(one)] == [PAID]  # without a merchant, partition 0 takes the event
    for number in range(4):
        peer.settle(f"{STREAM}_4", f"{CONSUMER}-{number}")


async def _by_merchant(running: Running) -> dict[str, list[str]]:
    return {
        str(books.account.merchant_id): [t.key for t in books.transactions]
        async for books in running.service.engine.books()
    }


# ---- settings


@only_on("sqlite")
def test_documented_permissions_are_enough(start: Callable[..., Running], new_nats: Callable[..., Nats]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "nats.md").read_text()
    publish, subscribe = re.findall(r"^(?:publish|subscribe):((?:.|\n)*?)(?=\nsubscribe|\n```)", page, re.MULTILINE)
    allowed = f"publish: [{_listed(publish)}], subscribe: [{_listed(subscribe)}]"
    admin, ours = "{user: tester, password: p}", f"{{user: ours, password: p, permissions: {{{allowed}}}}}"
    server = new_nats(settings=f"authorization {{ users: [{admin}, {ours}] }}")
    running = start(nats_url=f"nats://ours:p@127.0.0.1:{server.port}", nats_partitions=2)
    merchant = new_merchant()
    with capture_logs() as logs, Peer(f"nats://tester:p@127.0.0.1:{server.port}") as peer:
        peer.send((f"{CREATED}.{merchant}", event(CREATED, {"merchant_id": merchant})), (CREATED, b"{no"))
        assert len(peer.published(1)) == 1
        wait_until(lambda: running.get(f"/credits/accounts/{merchant}").status_code == 200, "an event")
        assert running.get("/health/detailed").json()["data"]["status"] == "ok"
    assert [line for line in logs if "permission" in line["event"]] == []


def _listed(subjects: str) -> str:
    return ", ".join([f'"{subject.strip()}"' for subject in subjects.replace("\n", " ").split(",")])


@only_on("sqlite")
def test_service_without_nats_has_no_nats_parts(start: Callable[..., Running]) -> None:
    running = start()
    assert running.service.broker is None
    assert "nats" not in running.get("/health/detailed").json()["data"]["components"]
