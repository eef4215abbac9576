"""Admission: who may use up what. Every request is counted once, before its body is read."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from credit_service.doors.http import app
from credit_service.doors.http.addresses import Addresses, bucket
from credit_service.doors.http.call import Call
from credit_service.doors.http.keys import new_id, new_key
from credit_service.doors.http.single_flight import single_flight
from credit_service.messages.content import Limits
from credit_service.setting_types import networks_of
from credit_service.settings import SettingsError, load
from credit_service.storage.engine import StorageUnavailable
from tests.doors.running import API, Running, head, new_merchant, posting, request
from tests.doors.test_framing import resident_bytes, wait_until

Start = Callable[..., Running]
PROXIES = networks_of("10.0.0.0/8, 2001:db8:1::/48")[0]
PEER = "10.0.0.1"


def call(**headers: str | list[str]) -> Call:
    """A request with these headers, _ for -; lists are several headers of a name."""
    sent = [
        (name.replace("_", "-").encode(), value.encode())
        for name, values in headers.items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    return Call({"method": "GET", "path": "/", "query_string": b"", "headers": sent}, Limits())


# ---- the client's address


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        ("192.0.2.1", {}, "192.0.2.1"),
        ("192.0.2.1", {"x_forwarded_for": "198.51.100.9"}, "192.0.2.1"),
        ("192.0.2.1", {"forwarded": "for=198.51.100.9"}, "192.0.2.1"),
        (PEER, {}, PEER),
        (PEER, {"x_forwarded_for": "198.51.100.9"}, "198.51.100.9"),
        (PEER, {"x_forwarded_for": "198.51.100.9:4711"}, "198.51.100.9"),
        (PEER, {"x_forwarded_for": "1.1.1.1, 198.51.100.9"}, "198.51.100.9"),
        (PEER, {"x_forwarded_for": "198.51.100.9, 10.9.9.9, 10.8.8.8"}, "198.51.100.9"),
        (PEER, {"x_forwarded_for": ["1.1.1.1", "198.51.100.9"]}, "198.51.100.9"),
        (PEER, {"x_forwarded_for": "10.7.7.7"}, "10.7.7.7"),
        (PEER, {"x_forwarded_for": "198.51.100.9, nonsense"}, PEER),
        (PEER, {"x_forwarded_for": "nonsense, 10.7.7.7"}, "10.7.7.7"),
        (PEER, {"x_forwarded_for": ""}, PEER),
        (PEER, {"forwarded": "for=198.51.100.9"}, "198.51.100.9"),
        (PEER, {"forwarded": 'For="[2001:db8:2::9]:4711";proto=https;by=10.0.0.1'}, "2001:db8:2::/64"),
        (PEER, {"forwarded": "for=1.1.1.1, proto=http;for=198.51.100.9, for=10.2.2.2"}, "198.51.100.9"),
        (PEER, {"forwarded": "for=198.51.100.9, for=_hidden"}, PEER),
        (PEER, {"forwarded": "for=198.51.100.9, proto=https"}, PEER),
        (PEER, {"forwarded": "for=198.51.100.9", "x_forwarded_for": "198.51.100.9"}, "198.51.100.9"),
        (PEER, {"forwarded": "for=1.1.1.1", "x_forwarded_for": "198.51.100.9"}, PEER),
        ("2001:db8:1::7", {"x_forwarded_for": "198.51.100.9"}, "198.51.100.9"),
        ("::ffff:10.0.0.1", {"x_forwarded_for": "198.51.100.9"}, "198.51.100.9"),
        ("", {"x_forwarded_for": "198.51.100.9"}, ""),
    ],
)
def test_client_is_the_rightmost_address_that_is_no_trusted_proxy(
    peer: str, headers: dict[str, Any], client: str
) -> None:
    assert Addresses(PROXIES).client(peer, call(**headers)) == client


def test_without_trusted_proxies_the_peer_is_the_client() -> None:
    assert Addresses([]).client(PEER, call(x_forwarded_for="198.51.100.9")) == PEER


def test_ipv6_clients_of_one_network_share_a_limit() -> None:
    assert bucket("2001:db8:0:1::1") == bucket("2001:db8:0:1:ffff::2") != bucket("2001:db8:0:2::1")
    assert bucket("::ffff:192.0.2.1") == bucket("192.0.2.1")


@pytest.mark.parametrize("proxies", ["public", "10.0.0.0/8,public", "proxy.example", "10.0.0.1/8", "10.0.0.0/8,,"])
def test_trusted_proxies_are_networks(proxies: str) -> None:
    with pytest.raises(SettingsError, match="TRUSTED_PROXIES: must be networks"):
        load(trusted_proxies=proxies)


def test_visitors_behind_a_trusted_proxy_have_limits_of_their_own(start: Start) -> None:
    limits = {"rate_limit_enabled": True, "rate_limit_address_per_second": 0.001, "rate_limit_address_burst": 2}
    path = f"{API}/credits/plugin-status/{new_merchant()}"

    def asked(running: Running, client: str) -> list[int]:
        headers = {"x-forwarded-for": f"203.0.113.99, {client}"}
        return [running.client.get(path, headers=headers).status_code for _ in range(3)]

    running = start(trusted_proxies="127.0.0.0/8", **limits)
    assert [asked(running, "198.51.100.1"), asked(running, "198.51.100.2")] == [[200, 200, 429]] * 2
    untrusting = start(**limits)
    assert [asked(untrusting, "198.51.100.1"), asked(untrusting, "198.51.100.2")] == [[200, 200, 429], [429] * 3]


# ---- keys


@pytest.fixture
def strict(start: Start) -> Running:
    """A service that takes five requests of an address."""
    return start(rate_limit_enabled=True, rate_limit_address_per_second=0.001, rate_limit_address_burst=5)


class Asked:
    """Counts the questions that a service asks its store about keys."""

    def __init__(self, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ids: list[str] = []
        self.away = False
        keys = running.service.keyring._keys
        get = keys.get

        async def asked(key_id: str) -> Any:
            self.ids.append(key_id)
            if self.away:
                raise StorageUnavailable("gone")
            return await get(key_id)

        monkeypatch.setattr(keys, "get", asked)


def test_unknown_keys_are_counted_before_the_store_is_asked(strict: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(strict, monkeypatch)
    statuses = []
    for _ in range(20):
        unknown = {"authorization": f"Bearer cs_{new_id()}_{'a' * 43}"}
        statuses.append(strict.client.get(f"{API}/credits/accounts", headers=unknown).status_code)
    assert statuses == [401] * 5 + [429] * 15
    assert len(asked.ids) == 5


def test_wrong_secret_of_a_known_key_is_counted_for_the_address(strict: Running) -> None:
    assert strict.get("/credits/accounts").status_code == 200
    wrong = {"authorization": f"Bearer {strict.keys['read'][:-4]}AAAA"}
    statuses = [strict.client.get(f"{API}/credits/accounts", headers=wrong).status_code for _ in range(7)]
    assert statuses == [401] * 5 + [429] * 2
    assert strict.get("/credits/accounts").status_code == 200


def test_new_key_pays_for_itself_and_not_for_its_address(strict: Running) -> None:
    for scope in ("read", "write", "admin"):
        answer = strict.get("/credits/accounts", scope)
        assert (answer.status_code, answer.headers["ratelimit"].partition(";")[0]) == (200, '"key"')
    answer = strict.get("/health", None)
    assert answer.headers["ratelimit"].startswith('"address";r=4')


def test_scope_is_checked_before_the_body_is_read(running: Running) -> None:
    for body in (b"{", b"not JSON", b" " * 60_000):
        assert running.post("/credits/transactions", body, "read").json()["code"] == "scope_missing"


def test_bodies_of_unknown_callers_do_not_fill_memory(start: Start) -> None:
    running = start(rate_limit_enabled=True)
    wrong = {"authorization": f"Bearer cs_{'a' * 12}_{'b' * 43}", "content_length": 900_000}
    sent = head(running, "/credits/transactions/batch", **wrong) + b"\r\n" + b" " * 899_999
    before = resident_bytes()
    with ExitStack() as stack:
        connections = [stack.enter_context(running.connection()) for _ in range(200)]
        for connection in connections:
            connection.socket.setblocking(False)
            with suppress(BlockingIOError):
                connection.socket.send(sent)
        for connection in connections:
            connection.socket.settimeout(5)
            assert connection.problem() == "unauthenticated"
        assert resident_bytes() - before < 60_000_000


def test_bodies_in_flight_have_a_budget(start: Start) -> None:
    running = start(bodies_in_flight_max_bytes=1024 * 1024)
    merchant = running.open()
    unfinished = head(running, "/credits/transactions/batch", content_length=600_000) + b"\r\n" + b" " * 500_000
    with running.connection() as first, running.connection() as second:
        first.send(unfinished)
        wait_until(lambda: bodies(running)._held > 400_000)
        second.send(unfinished.replace(b"600000", b"700000") + b" " * 150_000)
        assert second.problem() == "overloaded"
        assert running.spend(merchant).status_code == 201
        first.socket.close()
        wait_until(lambda: bodies(running)._held == 0)
    assert running.spend(merchant).status_code == 201
    assert bodies(running)._held == 0


def bodies(running: Running) -> Any:
    """The part of a service that reads bodies."""
    app: Any = running.service.app
    return app._bodies


# ---- a revoked key, while the database is away


def test_revoked_key_is_refused_within_the_stale_seconds_while_the_store_is_away(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(plugin_status_auth="publishable", gate_stale_seconds=300)
    made = new_key("page", "status", 0)
    running.run(running.service.keyring._keys.add(made.key))
    asked = Asked(running, monkeypatch)
    clock = 1000.0
    monkeypatch.setattr(running.service.keyring, "_clock", lambda: clock)

    def status() -> int:
        headers = {"authorization": f"Bearer {made.whole}"}
        path = f"{API}/credits/plugin-status/{MERCHANT}"
        return running.client.get(path, headers=headers).status_code

    assert status() == 200
    asked.away = True
    clock += 299
    assert status() == 200
    clock += 1  # from now on it may have been revoked elsewhere, also long ago
    assert status() == 503


MERCHANT = "6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11"


# ---- what is expensive to answer


def test_openapi_document_is_written_once(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    first = running.client.get("/openapi.json")
    monkeypatch.setattr(app, "encode", None)
    monkeypatch.setattr(app, "make_fastapi", None)
    again = running.client.get("/openapi.json", headers={"content-type": "text/plain"})
    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["content-type"] == "application/json"


async def test_single_flight_asks_once_for_all_that_wait() -> None:
    asked: list[int] = []
    go = asyncio.Event()

    class Subject:
        """What is asked about."""

    @single_flight
    async def ask(subject: Subject) -> int:
        asked.append(len(asked))
        number = len(asked)
        await go.wait()
        return number

    subject = Subject()
    first = asyncio.ensure_future(ask(subject))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    others = [asyncio.ensure_future(ask(subject)) for _ in range(100)]
    await asyncio.sleep(0)
    others[0].cancel()
    go.set()
    assert await first == 1
    assert {await other for other in others[1:]} == {2}  # asked after they came
    assert await ask(subject) == 3
    assert await ask(Subject()) == 4


@pytest.mark.parametrize("path", ["/openapi.json", "/metrics", "/docs/errors", "/readyz"])
def test_livez_answers_while_others_hammer(running: Running, path: str) -> None:
    one = f"GET {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode()
    assert running.client.get(path).status_code == 200  # what is made once is made
    with ExitStack() as stack:
        connections = [stack.enter_context(running.connection()) for _ in range(50)]
        for connection in connections:  # which never read
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.send(one * 300)
        waits = []
        for _ in range(10):
            began = time.perf_counter()
            assert running.client.get("/livez").status_code == 200
            waits.append(time.perf_counter() - began)
        assert sorted(waits)[5] < 1, waits  # not the longest, since the machine of the tests may be busy


# ---- headers of every answer


def test_every_answer_forbids_sniffing(running: Running) -> None:
    for path in ("/livez", "/docs", "/docs/errors", "/openapi.json", "/nothing", f"{API}/credits/accounts"):
        assert running.client.get(path).headers["x-content-type-options"] == "nosniff"
    with running.connection() as connection:
        connection.send(b"nonsense\r\n\r\n")
        assert connection.answer()[1]["x-content-type-options"] == "nosniff"


def test_html_pages_cannot_be_framed(running: Running) -> None:
    for path in ("/docs", "/docs/errors"):
        assert "frame-ancestors 'none'" in running.client.get(path).headers["content-security-policy"]
    assert "content-security-policy" not in running.client.get("/livez").headers


@pytest.mark.parametrize("encoding", ["gzip", "br", "gzip, identity", "x"])
def test_compressed_bodies_are_refused(running: Running, encoding: str) -> None:
    merchant = running.open()
    answer = running.transact(posting(merchant), headers={"content-encoding": encoding})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    assert "uncompressed" in answer.json()["detail"]
    assert running.transact(posting(merchant), headers={"content-encoding": "identity"}).status_code == 201


def test_pages_of_other_origins_can_read_when_to_try_again(start: Start) -> None:
    answer = start(cors_origins="*").client.get(f"{API}/health", headers={"origin": "https://shop.example"})
    assert "Retry-After" in answer.headers["access-control-expose-headers"]


# ---- clients that leave


def test_pipelined_client_that_leaves_early_leaves_no_traceback(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with running.connection() as connection:
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.send(b"GET /openapi.json HTTP/1.1\r\nhost: a\r\n\r\n" * 100)
        wait_until(lambda: paused(running))
        connection.socket.close()
    wait_until(lambda: not paused(running))
    wait_until(lambda: not running.server.server_state.tasks)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def paused(running: Running) -> bool:
    """Whether a client does not read what was written to it."""
    connections: list[Any] = list(running.server.server_state.connections)
    return any(protocol.flow.write_paused for protocol in connections)


def test_stopping_server_answers_outcome_unknown(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    running = start(posting_deadline_seconds=0.1)
    merchant = running.open()
    begun = threading.Event()

    async def never(command: Any) -> Any:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(running.service.posting, "submit", never)
    with running.connection() as connection:
        connection.send(request(running, posting(merchant)))
        assert begun.wait(5)
        running.server.should_exit = True
        status, headers, body = connection.answer()
        assert (status, headers["retry-after"]) == (503, "1")
        assert b"outcome_unknown" in body
