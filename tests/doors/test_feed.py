"""Outbound events over HTTP: pages from any point, and a stream that sends each event once."""

import json
import re
import socket
import threading
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from credit_service.doors.http.events import stream
from tests.doors.listening import Listener
from tests.doors.running import Running, new_merchant, posting
from tests.served import served

EVENTS = "/credits/events"
OPENED = ["account.created", "recharged", "plugin_status_changed"]
"""The events of an account that was opened."""


def page(service: Running, **query: Any) -> Any:
    """A page of events."""
    answer = service.get(EVENTS, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def end(service: Running, **query: Any) -> str:
    """The cursor after the last event."""
    return str(page(service, start="now", **query)["pagination"]["next_cursor"])


def sequences(found: Any) -> list[int]:
    """The sequences of the events of a page."""
    return [int(event["sequence"]) for event in found["data"]]


# ---- pages


def test_page_has_events_oldest_first_and_leads_to_the_next(running: Running) -> None:
    cursor = end(running)
    merchant = running.open()
    first = page(running, cursor=cursor, limit=2)
    assert [event["type"] for event in first["data"]] == ["evt.credits.account.created", "evt.credits.recharged"]
    assert (first["pagination"]["has_next"], first["pagination"]["has_previous"]) == (True, True)
    second = running.client.get(first["links"]["next"], headers={"authorization": f"Bearer {running.keys['read']}"})
    assert [event["type"] for event in second.json()["data"]] == ["evt.credits.plugin_status_changed"]
    assert {event["subject"] for event in first["data"]} == {merchant}


def test_last_page_has_a_cursor_for_later_events(running: Running) -> None:
    merchant = running.open()
    found = page(running, merchant_id=merchant)
    assert (found["pagination"]["has_next"], found["links"]["next"]) == (False, None)
    cursor = found["pagination"]["next_cursor"]
    empty = page(running, merchant_id=merchant, cursor=cursor)
    assert (empty["data"], empty["pagination"]["next_cursor"]) == ([], cursor)
    running.spend(merchant)
    assert sequences(page(running, merchant_id=merchant, cursor=cursor)) == [4]


def test_events_begin_with_the_first_without_a_cursor(start: Callable[..., Running]) -> None:
    service = start()
    assert page(service)["data"] == []
    merchants = [service.open() for _ in range(3)]
    found = page(service)
    assert {event["subject"] for event in found["data"]} == set(merchants)
    assert sequences(found).count(1) == 3
    assert not found["pagination"]["has_previous"]


def test_pages_have_each_event_once_in_its_accounts_order(running: Running) -> None:
    cursor = end(running)
    merchants = [running.open() for _ in range(5)]
    for merchant in merchants * 3:
        running.spend(merchant)
    told: dict[str, list[int]] = {}
    while (found := page(running, cursor=cursor, limit=7))["data"]:
        cursor = found["pagination"]["next_cursor"]
        for event in found["data"]:
            told.setdefault(event["subject"], []).append(int(event["sequence"]))
    assert told == {merchant: [1, 2, 3, 4, 5, 6] for merchant in merchants}


@pytest.mark.parametrize(("after", "expected"), [(0, [1, 2, 3, 4]), (2, [3, 4]), (4, []), (2**53 - 1, [])])
def test_events_of_a_merchant_are_read_from_any_sequence(running: Running, after: int, expected: list[int]) -> None:
    merchant = running.open()
    running.open()
    running.spend(merchant)
    assert sequences(page(running, merchant_id=merchant, after=after)) == expected
    assert sequences(page(running, merchant_id=merchant.upper(), after=after)) == expected


def test_event_of_a_page_is_a_cloudevent(running: Running) -> None:
    merchant = running.open()
    spent = running.transact(posting(merchant, amount=5), headers={"x-correlation-id": "checkout-77"}).json()["data"]
    (told,) = page(running, merchant_id=merchant, after=3)["data"]
    parsed = JSONFormat().read(CloudEvent, json.dumps(told))
    assert (parsed.get_type(), parsed.get_extension("sequence")) == ("evt.credits.consumed", "4")
    assert (told["correlationid"], told["time"]) == ("checkout-77", spent["created_at"])
    common = {"account_id", "amount", "shortfall", "balance_before", "balance_after", "transaction_type", "reference"}
    assert {name: told["data"][name] for name in common} == {name: spent[name] for name in common}
    assert (told["data"]["transaction_id"], told["data"]["transaction_sequence"]) == (spent["id"], spent["sequence"])


@pytest.mark.parametrize(
    ("query", "pointers"),
    [
        ({"after": 1}, ["/query/after"]),
        ({"merchant_id": new_merchant(), "after": 1, "start": "now"}, ["/query/after", "/query/start"]),
        ({"start": "now", "cursor": "x"}, ["/query/start", "/query/cursor"]),
        ({"start": "then"}, ["/query/start"]),
        ({"merchant_id": "no body"}, ["/query/merchant_id"]),
        ({"merchant_id": new_merchant(), "after": -1}, ["/query/after"]),
        ({"limit": 201}, ["/query/limit"]),
        ({"from": 1}, ["/query/from"]),
    ],
)
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_invalid_question_is_refused(running: Running, accept: str, query: dict[str, Any], pointers: list[str]) -> None:
    problem = running.get(EVENTS, params=query, headers={"accept": accept}).json()
    assert problem["code"] == "validation_failed"
    assert [fault["pointer"] for fault in problem["errors"]] == pointers


def test_cursor_of_another_merchant_is_refused(running: Running) -> None:
    merchant, other = running.open(), running.open()
    of_all, of_one = end(running), end(running, merchant_id=merchant)
    for query in (
        {"cursor": of_one},
        {"cursor": of_all, "merchant_id": merchant},
        {"cursor": of_one, "merchant_id": other},
    ):
        assert running.get(EVENTS, params=query).json()["code"] == "cursor_invalid"
    streamed = {"accept": "text/event-stream", "last-event-id": of_one}
    assert running.get(EVENTS, headers=streamed).json()["code"] == "cursor_invalid"


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_unknown_account_and_missing_key_are_refused(running: Running, accept: str) -> None:
    headers = {"accept": accept}
    unknown = running.get(EVENTS, params={"merchant_id": new_merchant()}, headers=headers)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "account_not_found")
    stranger = running.get(EVENTS, None, headers=headers)
    assert (stranger.status_code, stranger.json()["code"]) == (401, "unauthenticated")


@pytest.mark.parametrize("accept", ["application/json", "*/*", "text/event-stream, application/json", "text/html"])
def test_caller_that_also_accepts_json_gets_a_page(running: Running, accept: str) -> None:
    answer = running.get(EVENTS, params={"limit": 1}, headers={"accept": accept})
    assert answer.headers["content-type"] == "application/json"


def test_head_never_streams(running: Running) -> None:
    answer = running.call("HEAD", EVENTS, headers={"accept": "text/event-stream"})
    assert (answer.status_code, answer.content) == (200, b"")


# ---- the stream


def test_stream_sends_past_and_new_events(running: Running) -> None:
    merchant = running.open()
    with Listener(running, {"merchant_id": merchant}) as listener:
        assert [told.type for told in listener.wait_for(3)] == [f"evt.credits.{word}" for word in OPENED]
        running.spend(merchant)
        told = listener.wait_for(4)
    assert [told.event for told in told] == page(running, merchant_id=merchant)["data"]
    assert [told.event["type"] for told in told] == [told.type for told in told]


def test_stream_begins_with_the_first_or_the_next_event(running: Running) -> None:
    running.open()
    first = page(running, limit=1)["data"]
    with Listener(running) as all_, Listener(running, {"start": "now"}) as new:
        merchant = running.open()
        assert [told.event for told in all_.wait_for(1)] == first
        assert {told.event["subject"] for told in new.wait_for(3)} == {merchant}


def test_stream_of_a_merchant_begins_after_a_sequence(running: Running) -> None:
    merchant, other = running.open(), running.open()
    with Listener(running, {"merchant_id": merchant, "after": 2}) as listener:
        for _ in range(3):
            running.spend(other)
            running.spend(merchant)
        listener.wait_for(4)
    assert listener.sequences() == {merchant: [3, 4, 5, 6]}


def test_last_event_id_wins_over_the_query(running: Running) -> None:
    merchant = running.open()
    query = {"merchant_id": merchant, "after": 0}
    with Listener(running, query) as listener:
        second = listener.wait_for(2)[1].cursor
    assert sequences(page(running, merchant_id=merchant, cursor=second)) == [3]
    with Listener(running, query, last_event_id=second) as listener:
        assert listener.wait_for(1)[0].event["sequence"] == "3"


@pytest.mark.parametrize("of_one", [False, True], ids=["of all", "of one merchant"])
def test_listener_that_reconnects_gets_each_event_once(running: Running, of_one: bool) -> None:
    merchants = [running.open() for _ in range(4)]
    query = {"merchant_id": merchants[0]} if of_one else {}
    cursor, spends = end(running, **query), 25
    heard: dict[str, list[int]] = {}

    def post(merchant: str) -> None:
        for _ in range(spends):
            running.spend(merchant)

    posters = [threading.Thread(target=post, args=(merchant,)) for merchant in merchants]
    for poster in posters:
        poster.start()
    expected = spends if of_one else spends * len(merchants)
    for stay in count(1):
        with Listener(running, query, last_event_id=cursor) as listener:
            listener.wait_for(min(stay * 3, expected - sum(map(len, heard.values()))))
        told = listener.told
        cursor = told[-1].cursor
        for merchant, numbers in listener.sequences().items():
            heard.setdefault(merchant, []).extend(numbers)
        if sum(map(len, heard.values())) >= expected:
            break
    for poster in posters:
        poster.join()
    told_of = merchants[:1] if of_one else merchants
    assert heard == {merchant: list(range(4, 4 + spends)) for merchant in told_of}


def test_silent_stream_sends_heartbeats(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT_SECONDS", 0.0)
    with Listener(running, {"start": "now"}) as listener:
        listener.wait_for_comments(2)
    assert listener.told == []


def test_stream_ends_when_its_key_is_revoked(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHECK_SECONDS", 0.0)
    made = running.post("/api-keys", {"name": "listener", "scope": "read"}, "admin").json()["data"]
    with Listener(running, {"start": "now"}, key=made["key"]) as listener, Listener(running, {"start": "now"}) as other:
        assert running.call("DELETE", f"/api-keys/{made['id']}").status_code == 200
        listener.wait_for_the_end()
        assert not other.ended


def test_open_streams_do_not_delay_the_stop(
    new_ledger: Callable[[], str],
) -> None:
    with Running(database_url=new_ledger()) as service:
        merchant = service.open()
        idle, busy = Listener(service, {"start": "now"}), Listener(service, {"merchant_id": merchant})
        with idle, busy:
            busy.wait_for(3)
            service.server.should_exit = True
            idle.wait_for_the_end()
            busy.wait_for_the_end()


def test_stopping_service_ends_its_streams_first(tmp_path: Path) -> None:
    with served(tmp_path / "ledger.db") as service, service.client() as client:
        with client.stream("GET", "/credits/events", headers={"accept": "text/event-stream"}) as answer:
            service.process.terminate()
            rest = b"".join(answer.iter_raw())  # which ends with the stream
        service.stop()
    assert b"retry:" in rest
    assert "Cancel" not in service.errors()


def test_slow_listener_delays_no_other_and_misses_nothing(running: Running) -> None:
    merchant = running.open()
    long = {"type": "x" * 255, "id": "y" * 255}
    asked = f"GET /api/v1{EVENTS}?merchant_id={merchant} HTTP/1.1\r\nHost: here\r\nAccept: text/event-stream\r\n"
    with closing(socket.socket()) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", running.port))
        slow.sendall(f"{asked}Authorization: Bearer {running.keys['read']}\r\n\r\n".encode())
        with Listener(running, {"merchant_id": merchant}) as other:
            for part in range(5):  # more than the connection holds
                items = [
                    {
                        **posting(merchant, reference=long, transaction_type="SUBSCRIPTION"),
                        "idempotency_key": f"{part}-{number}",
                    }
                    for number in range(1_000)
                ]
                grown = [{**item, "operation_type": "INCREASE"} for item in items]
                assert running.post("/credits/transactions/batch", {"items": grown}).status_code == 200
            other.wait_for(5_003)
        received, numbers = b"", list[int]()
        while len(numbers) < 5_003:
            received += slow.recv(1 << 20)
            *whole, received = received.split(b"\n")
            numbers += [int(found[1]) for line in whole if (found := re.search(rb'"sequence":"([0-9]+)"', line))]
    assert numbers == [*range(1, 5_004)] == other.sequences()[merchant]
