"""Fast decoders change no answer: the same bytes are posted to a service with them and to one without."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import count
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit_service.doors.http.events import post as events
from credit_service.doors.http.keys import NewKey, new_key
from credit_service.doors.http.transactions.batch import post_transactions as many
from credit_service.doors.http.transactions.post import post_transaction as one
from credit_service.messages.envelope import read_fast
from credit_service.service import Service
from credit_service.settings import Settings
from credit_service.storage.keys import Keys
from tests.messages import bodies
from tests.messages.bodies import MERCHANT
from tests.storage.engines import Ledgers, opened

ONE, MANY, EVENTS = "/credits/transactions", "/credits/transactions/batch", "/credits/events"
KEY: NewKey = new_key("test", "admin", 0)  # which may post everything
WAYS = ("fast", "strict")


class Answered(NamedTuple):
    status: int
    headers: dict[str, str]
    body: Any


class Side:
    """One of two services with the same clock, the same account numbers and the same key.

    `way`: what reads bodies, a `fast` decoder where it can, or the `strict` reader alone.
    """

    def __init__(self, url: str, way: str) -> None:
        self._ticks = count(1_800_000_000_000_000, 1000)
        self._now = next(self._ticks)
        numbers = count(1)
        self.store = opened(url, clock=lambda: self._now, draw_number=lambda: next(numbers))
        chosen: dict[str, Any] = {"database_url": url, "sweep_seconds": 3600, "rate_limit_enabled": False}
        settings = Settings(_env_file=None, **chosen)  # type: ignore[call-arg]
        self.service = Service(self.store, settings)
        self.taken = 0  # bodies that a fast decoder read
        self._decoders = [self._decoder(fast, way) for fast in (one._fast, many._fast, read_fast)]

    def _decoder(self, fast: Any, way: str) -> Any:
        def decode(*body: Any, **more: Any) -> Any:
            found = fast(*body, **more) if way == "fast" else None
            self.taken += found is not None
            return found

        return decode

    async def post(self, path: str, body: bytes, headers: dict[str, bytes]) -> Answered:
        """POST in this process."""
        self._now = next(self._ticks)
        sent: list[Any] = []
        received = iter([{"type": "http.request", "body": body, "more_body": False}])
        scope = {
            "type": "http",
            "method": "POST",
            "path": f"/api/v1{path}",
            "raw_path": f"/api/v1{path}".encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "http_version": "1.1",
            "headers": [
                (b"content-length", b"%d" % len(body)),
                *[(name.encode(), value) for name, value in headers.items()],
            ],
            "credit.arrived": True,
        }

        async def receive() -> Any:
            return next(received)

        async def send(message: Any) -> None:
            sent.append(message)

        patches = zip(((one, "_fast"), (many, "_fast"), (events, "read_fast")), self._decoders, strict=True)
        with ExitStack() as stack:
            for (owner, name), decode in patches:
                stack.enter_context(patch.object(owner, name, decode))
            await self.service.app(scope, receive, send)
        start, *rest = sent
        told = {name.decode(): value.decode() for name, value in start["headers"]}
        return Answered(start["status"], told, json.loads(b"".join(part["body"] for part in rest)))


class Pair:
    """Both services, and the loop in which they run."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.loop = asyncio.new_event_loop()
        self.sides = [Side(url, way) for url, way in zip(urls, WAYS, strict=True)]
        self.stop = asyncio.Event()
        for side in self.sides:
            self.loop.run_until_complete(Keys(side.store).add(KEY.key))
        self.running = [self.loop.create_task(self._run(side)) for side in self.sides]

    async def _run(self, side: Side) -> None:
        async with side.service.running():
            await self.stop.wait()

    def close(self) -> None:
        self.stop.set()
        self.loop.run_until_complete(asyncio.gather(*self.running))
        self.loop.close()

    def post(self, path: str, body: bytes, **headers: bytes) -> Answered:
        """POST to both with our key, check that they answer alike, and return the answer."""
        answered = self.post_as(
            path,
            body,
            {
                "content-type": b"application/json",
                "authorization": f"Bearer {KEY.whole}".encode(),
                "x-correlation-id": b"c",
                **{name.replace("_", "-"): value for name, value in headers.items()},
            },
        )
        assert answered.status in (200, 201, 400, 402, 404, 409, 422)
        return answered

    def post_as(self, path: str, body: bytes, headers: dict[str, bytes]) -> Answered:
        """POST with these headers and a request id only."""
        one, other = [
            self.loop.run_until_complete(side.post(path, body, {**headers, "x-request-id": b"r"}))
            for side in self.sides
        ]
        assert comparable(one) == comparable(other)
        return one

    @property
    def taken(self) -> list[int]:
        """How many bodies each service has read by a fast decoder."""
        return [side.taken for side in self.sides]


def comparable(answered: Answered) -> Any:
    """An answer without hashes, which depend on random salts, and without the order of headers."""

    def without_hashes(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: without_hashes(entry) for name, entry in value.items() if name != "hash"}
        if isinstance(value, list):
            return [without_hashes(entry) for entry in value]
        return value

    return (answered.status, answered.headers, without_hashes(answered.body))


@pytest.fixture(scope="module")
def pair(ledgers: Ledgers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both services, with the account of the merchant in the bodies."""
    with ExitStack() as stack:
        both = Pair([stack.enter_context(ledgers.new(tmp_path_factory.mktemp(way))) for way in WAYS])
        assert both.post("/credits/accounts", json.dumps({"merchant_id": MERCHANT}).encode()).status == 201
        yield both
        both.close()


# Keys that come again: with the same content they replay, with other content they are refused.
KEYS = st.sampled_from(
    [
        *(f"key-{number}".encode() for number in range(400)),
        b'"key-1"',
        b"key 2",
        b"",
        b'"',
        b"expiry:1",
        b"\xe9",
        b"x" * 256,
        b"shopify:order:a",
        b"shopify:order:17",
        b"shopify:order:order-1",
        b'"shopify:order:job"',
    ]
)


@given(body=bodies.as_bytes(bodies.postings()), key=st.none() | KEYS)
def test_posting_is_answered_alike(pair: Pair, body: bytes, key: bytes | None) -> None:
    headers = {} if key is None else {"idempotency_key": key}
    answered = pair.post(ONE, body, **headers)
    if answered.status == 201:
        assert pair.post(ONE, body, **headers).status == 200


@given(body=bodies.as_bytes(bodies.batches()))
def test_batch_is_answered_alike(pair: Pair, body: bytes) -> None:
    pair.post(MANY, body)


@given(body=bodies.as_bytes(bodies.events()))
def test_event_is_answered_alike(pair: Pair, body: bytes) -> None:
    pair.post(EVENTS, body, content_type=b"application/cloudevents+json")


@given(body=bodies.as_bytes(st.lists(bodies.events(), min_size=1, max_size=3)))
def test_batch_of_events_is_answered_alike(pair: Pair, body: bytes) -> None:
    pair.post(EVENTS, body, content_type=b"application/cloudevents-batch+json")


@given(
    body=bodies.as_bytes(bodies.postings()),
    media_type=st.sampled_from(
        [b"", b"text/plain", b"application/cloudevents+json", b"APPLICATION/json;charset=utf-8"]
    ),
)
def test_media_type_is_judged_alike(pair: Pair, body: bytes, media_type: bytes) -> None:
    sent = {"content-type": media_type, "authorization": f"Bearer {KEY.whole}".encode(), "idempotency-key": b"media"}
    for path in (ONE, MANY, EVENTS):
        pair.post_as(path, body, sent)


@pytest.mark.parametrize(
    "authorization", [b"", b"Bearer x", f"Bearer {KEY.whole}x".encode()], ids=["nothing", "nonsense", "nearly"]
)
def test_unknown_caller_is_answered_alike(pair: Pair, authorization: bytes) -> None:
    for path in (ONE, MANY, EVENTS):
        sent = {"content-type": b"application/json", "authorization": authorization}
        assert pair.post_as(path, b"{", sent).status == 401


def test_fast_decoders_read_what_they_can(pair: Pair) -> None:
    item = f'{{"merchant_id":"{MERCHANT}","operation_type":"INCREASE","transaction_type":"SUBSCRIPTION","amount":1'
    event = (
        f'{{"specversion":"1.0","id":"1","source":"s","type":"evt.billing.payment_succeeded",'
        f'"data":{{"merchant_id":"{MERCHANT}","payment_id":"worth","credits":1}}}}'
    )
    before = pair.taken
    pair.post(ONE, f"{item}}}".encode(), idempotency_key=b"worth-1")
    pair.post(MANY, f'{{"items":[{item},"idempotency_key":"worth-2"}}]}}'.encode())
    pair.post(EVENTS, event.encode(), content_type=b"application/cloudevents+json")
    assert [now - then for now, then in zip(pair.taken, before, strict=True)] == [3, 0]
