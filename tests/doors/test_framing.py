"""Limits below a request, over raw sockets: size, time, framing, pipelines, connections."""

import asyncio
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from credit_service.doors.http.call import Call
from credit_service.messages.content import Limits
from tests.doors.running import Running, head, posting, request

HEALTH = b"GET /api/v1/health HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service with small size limits."""
    limits = {"headers_max_bytes": 1024, "body_max_bytes": 1024, "batch_body_max_bytes": 4096}
    with Running(tmp_path_factory.mktemp("small"), **limits) as running:
        yield running


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service with short timeouts."""
    limits = {"header_timeout_seconds": 0.2, "body_timeout_seconds": 0.2}
    with Running(tmp_path_factory.mktemp("hurried"), **limits) as running:
        yield running


def answers_still(running: Running) -> bool:
    return running.get("/health", None).status_code == 200


# ---- size


def test_headers_above_the_limit_are_refused(small: Running) -> None:
    with small.connection() as connection:
        connection.send(HEALTH[:-2] + b"x-long: " + b"x" * 1100 + b"\r\n\r\n")
        assert connection.problem() == "headers_too_large"
        assert connection.is_closed()


def test_many_headers_above_the_limit_are_refused(small: Running) -> None:
    with small.connection() as connection:
        connection.send(HEALTH[:-2] + b"".join(b"x%d: y\r\n" % number for number in range(200)) + b"\r\n")
        assert connection.problem() == "headers_too_large"


def test_headers_within_the_limit_are_accepted(small: Running) -> None:
    with small.connection() as connection:
        connection.send(HEALTH[:-2] + b"x-long: " + b"x" * 900 + b"\r\n\r\n")
        assert connection.answer()[0] == 200


@pytest.mark.parametrize("target", [b"/" + b"x" * 1100, b"/api/v1/health?" + b"x" * 1100])
def test_path_and_query_count_with_the_headers(small: Running, target: bytes) -> None:
    with small.connection() as connection:
        connection.send(b"GET %s HTTP/1.1\r\nhost: a\r\n\r\n" % target)
        assert connection.problem() == "headers_too_large"


@pytest.mark.parametrize("endless", [b"x-long: ", b"x", b"GET /", b"G"])
def test_headers_without_an_end_are_refused(small: Running, endless: bytes) -> None:
    with small.connection() as connection:
        connection.send(b"" if endless.startswith(b"G") else HEALTH[:-2])
        connection.send(endless + b"x" * 500_000)
        assert connection.problem() in ("headers_too_large", "bad_request")  # there is no method Gxxx
        assert connection.is_closed()


def test_slowly_growing_headers_are_refused_at_the_limit(small: Running) -> None:
    with small.connection() as connection:
        connection.send(HEALTH[:-2])
        for number in range(24):
            connection.send(b"x%d: %s\r\n" % (number, b"y" * 100))
            time.sleep(0.001)  # else they would arrive together
        assert connection.problem() == "headers_too_large"


def test_headers_of_a_later_request_have_the_same_limit(small: Running) -> None:
    with small.connection() as connection:
        for _ in range(3):
            connection.send(HEALTH[:-2] + b"x-long: " + b"x" * 900 + b"\r\n\r\n")
            assert connection.answer()[0] == 200
        connection.send(HEALTH[:-2] + b"x-long: " + b"x" * 3000)
        assert connection.problem() == "headers_too_large"


def test_body_of_the_previous_request_does_not_count_as_headers(small: Running) -> None:
    merchant = small.open()
    items = [{**posting(merchant), "idempotency_key": str(number)} for number in range(20)]
    content = json.dumps({"items": items}).encode()
    assert len(content) > 3000
    first = head(small, "/credits/transactions/batch", content_length=len(content)) + b"\r\n" + content
    with small.connection() as connection:
        connection.send(first + HEALTH[:20])
        assert connection.answer()[0] == 200
        connection.send(HEALTH[20:])
        assert connection.answer()[0] == 200


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("/credits/transactions", 1024),
        ("/credits/accounts", 1024),
        ("/credits/transactions/batch", 4096),
        ("/credits/events", 4096),
        ("/credits/plugin-status/batch", 4096),
    ],
)
def test_body_above_the_limit_is_refused(small: Running, path: str, limit: int) -> None:
    for size, chunked in ((limit + 1, False), (limit + 1, True), (500_000, False), (500_000, True)):
        with small.connection() as connection:
            if chunked:
                framed = b"%x\r\n%s\r\n" % (size, b" " * size)
                connection.send(head(small, path, transfer_encoding="chunked") + b"\r\n" + framed)
            else:
                connection.send(head(small, path, content_length=size) + b"\r\n" + b" " * size)
            assert connection.problem() == "body_too_large", (size, chunked)
    fits = small.post(path, b" " * limit)
    assert fits.status_code in (404, 403, 422)


def test_body_with_a_too_large_content_length_is_refused_at_once(small: Running) -> None:
    with small.connection() as connection:
        connection.send(head(small, content_length=10**9) + b"\r\n")
        assert connection.problem() == "body_too_large"


def test_endless_body_is_refused_at_the_limit(small: Running) -> None:
    with small.connection() as connection:
        connection.send(head(small, transfer_encoding="chunked") + b"\r\n")
        connection.send_until_answered(repeat(b"400\r\n" + b" " * 1024 + b"\r\n", 100_000))
        assert connection.problem() == "body_too_large"


def test_client_that_sends_all_first_can_read_the_refusal(running: Running) -> None:
    for _ in range(5):
        answer = running.post("/credits/transactions", b" " * 5_000_000)
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
        assert answer.headers["connection"] == "close"


def test_expect_100_continue_is_answered(small: Running) -> None:
    merchant = small.open()
    content = json.dumps(posting(merchant)).encode()
    with small.connection() as connection:
        connection.send(head(small, content_length=len(content), expect="100-continue") + b"\r\n")
        assert connection.answer()[0] == 100
        connection.send(content)
        assert connection.answer()[0] == 201
    with small.connection() as connection:
        connection.send(head(small, content_length=2000, expect="100-continue") + b"\r\n")
        assert connection.problem() == "body_too_large"


# ---- trailers and chunk extensions


def chunked(running: Running, content: bytes, **more: Any) -> bytes:
    """A POST whose body is one chunk, without the line that ends the body."""
    return head(running, transfer_encoding="chunked", **more) + b"\r\n%x\r\n%b\r\n0\r\n" % (len(content), content)


def test_trailers_are_dropped(running: Running) -> None:
    merchant = running.open()
    content = json.dumps(posting(merchant)).encode()
    without = {"authorization": None, "idempotency_key": None}
    trailers = [line.encode() for line in head(running).decode().split("\r\n") if line.startswith(("auth", "idemp"))]
    for name, missing in (("authorization", "unauthenticated"), ("idempotency_key", "idempotency_key_missing")):
        sent = chunked(running, content, **{name: without[name]})
        with running.connection() as connection:
            connection.send(sent + b"".join(trailer + b"\r\n" for trailer in trailers) + b"\r\n")
            _, _, body = connection.answer()
        assert json.loads(body)["code"] == missing
    assert running.sequence(merchant) == 1
    with running.connection() as connection:
        connection.send(chunked(running, content, idempotency_key="own") + b"idempotency-key: other\r\n\r\n" + HEALTH)
        assert json.loads(connection.answer()[2])["data"]["idempotency_key"] == "own"
        assert connection.answer()[0] == 200


@pytest.mark.parametrize("line", [b"a:\r\n", b"a: %b\r\n" % (b"x" * 5000)], ids=["many", "long"])
def test_endless_trailers_are_cut_off_and_fill_no_memory(running: Running, line: bytes) -> None:
    before = resident_bytes()
    with running.connection() as connection:
        connection.send(chunked(running, b"{}"))
        wait_until(lambda: bool(running.server.server_state.tasks))  # the request is being served
        with suppress(ConnectionError):  # the server closes while the client still sends
            connection.send_until_answered(repeat(line * (100_000 // len(line)), 380))
    assert resident_bytes() - before < 20_000_000
    assert answers_still(running)


def test_endless_trailers_are_refused_with_431(running: Running) -> None:
    with running.connection() as connection:
        connection.send(chunked(running, b"{}"))
        wait_until(lambda: bool(running.server.server_state.tasks))
        connection.send(b"a:\r\n" * 12_000)
        assert connection.problem() == "headers_too_large"
        assert connection.is_closed()


@pytest.mark.parametrize(
    "endless",
    [
        b"2;" + b"x" * 50_000,
        b"0" * 50_000,
        b"1;" + b"x" * 2000 + b"\r\n{\r\n" + (b"1;" + b"x" * 2000 + b"\r\n \r\n") * 200,
    ],
    ids=["one extension", "leading zeros", "an extension of each chunk"],
)
def test_endless_chunk_sizes_are_refused_with_431(running: Running, endless: bytes) -> None:
    with running.connection() as connection:
        connection.send(head(running, transfer_encoding="chunked") + b"\r\n" + endless)
        assert connection.problem() == "headers_too_large"
        assert connection.is_closed()


def test_chunk_extensions_within_the_limit_are_ignored(running: Running) -> None:
    merchant = running.open()
    content = json.dumps(posting(merchant)).encode()
    with running.connection() as connection:
        framed = b"%x;a=b;c\r\n%b\r\n0\r\n\r\n" % (len(content), content)
        connection.send(head(running, transfer_encoding="chunked") + b"\r\n" + framed)
        assert connection.answer()[0] == 201


def test_headers_are_read_only_for_handlers() -> None:
    call = Call({"method": "GET", "path": "/", "query_string": b"", "headers": [(b"a", b"1"), (b"a", b"2")]}, Limits())
    assert (call.headers[b"a"], call.sent(b"a")) == (b"2", [b"1", b"2"])
    with pytest.raises(TypeError):
        call.headers[b"a"] = b"3"  # type: ignore[index]


# ---- connections


def test_connections_beyond_the_limit_are_refused(start: Callable[..., Running]) -> None:
    running = start(connections_max=3)
    with ExitStack() as stack:
        running.client.close()
        connections = [stack.enter_context(running.connection()) for _ in range(4)]
        for connection in connections[:3]:
            connection.send(HEALTH)
            assert connection.answer()[0] == 200
        status, headers, body = connections[3].answer()
        assert (status, headers["retry-after"], json.loads(body)["code"]) == (503, "1", "overloaded")
        assert connections[3].is_closed()
        connections[0].socket.close()
        wait_until(lambda: len(running.server.server_state.connections) < 3)
        again = stack.enter_context(running.connection())
        again.send(HEALTH)
        assert again.answer()[0] == 200


def test_connections_of_an_address_are_limited_except_for_trusted_proxies(start: Callable[..., Running]) -> None:
    for trusted, status in (("", 503), ("127.0.0.0/8", 200)):
        running = start(connections_max_per_address=2, trusted_proxies=trusted)
        with ExitStack() as stack:
            running.client.close()
            *_, last = [stack.enter_context(running.connection()) for _ in range(3)]
            last.send(HEALTH)
            assert last.answer()[0] == status


def test_client_that_reads_nothing_is_disconnected(start: Callable[..., Running]) -> None:
    running = start(write_timeout_seconds=0.4, keep_alive_seconds=1)
    with running.connection() as connection:
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.send(b"GET /openapi.json HTTP/1.1\r\nhost: a\r\n\r\n" * 100)
        wait_until(lambda: bool(running.server.server_state.total_requests))
        assert len(running.server.server_state.connections) == 1
        wait_until(lambda: not running.server.server_state.connections)
    assert answers_still(running)


def test_idle_connection_stays_open_longer_than_proxies_keep_it(running: Running) -> None:
    assert {protocol.timeout_keep_alive for protocol in protocols(running)} == {75}


def protocols(running: Running) -> list[Any]:
    """The open connections of a service; its client has one."""
    assert answers_still(running)
    return list(running.server.server_state.connections)


# ---- time


@pytest.mark.parametrize("sent", [b"", b"G", HEALTH[:-2], b"\r\n"])
def test_late_headers_end_the_connection(hurried: Running, sent: bytes) -> None:
    with hurried.connection() as connection:
        connection.send(sent)
        assert connection.problem() == "request_timeout"
        assert connection.is_closed()


@pytest.mark.parametrize("sent", [b"G", HEALTH[:-2], b"\r\n"])
def test_headers_of_a_later_request_have_the_same_time(hurried: Running, sent: bytes) -> None:
    with hurried.connection() as connection:
        connection.send(HEALTH)
        assert connection.answer()[0] == 200
        connection.send(sent)
        assert connection.problem() == "request_timeout"


def test_dripping_headers_gain_no_time(hurried: Running) -> None:
    with hurried.connection() as connection:
        connection.send(HEALTH[:-2])
        connection.send_until_answered(repeat(b"x: y\r\n", 500), pause=0.01)
        assert connection.problem() == "request_timeout"


@pytest.mark.parametrize(
    ("framing", "sent"),
    [
        ({"content_length": 20}, b""),
        ({"content_length": 20}, b"{"),
        ({"transfer_encoding": "chunked"}, b""),
        ({"transfer_encoding": "chunked"}, b"2\r\n{}\r\n"),
    ],
)
def test_late_body_is_refused(hurried: Running, framing: dict[str, Any], sent: bytes) -> None:
    with hurried.connection() as connection:
        connection.send(head(hurried, **framing) + b"\r\n" + sent)
        assert connection.problem() == "request_timeout"
        assert connection.is_closed()


def test_dripping_body_gains_no_time(hurried: Running) -> None:
    with hurried.connection() as connection:
        connection.send(head(hurried, content_length=1000) + b"\r\n")
        connection.send_until_answered(repeat(b" ", 500), pause=0.01)
        assert connection.problem() == "request_timeout"


def test_connection_may_rest_longer_than_headers_may_take(hurried: Running) -> None:
    with hurried.connection() as connection:
        for _ in range(3):
            connection.send(HEALTH)
            assert connection.answer()[0] == 200
            time.sleep(0.25)  # longer than the header timeout, shorter than the keep-alive


# ---- framing


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\na b: c\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: \x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\n x: folded\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET http:// HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET nonsense HTTP/1.1\r\nhost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}x\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /livez\r\n\r\n",
        b"GET /livez HTTP/0.9\r\n\r\n",
        b"GET /livez HTTP/2.0\r\nhost: a\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
        b"GET /livez HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost:\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: a b\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: a, b\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: a/b\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: a@b\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: a:port\r\n\r\n",
    ],
)
def test_invalid_http_is_refused_and_ends_the_connection(running: Running, sent: bytes) -> None:
    with running.connection() as connection:
        connection.send(sent)
        assert connection.problem() == "bad_request"
        assert connection.is_closed()


@pytest.mark.parametrize("host", [b"a", b"a.example:80", b"127.0.0.1:8015", b"[::1]:8015", b"a_b-c.example.", b"A"])
def test_usual_hosts_are_accepted(running: Running, host: bytes) -> None:
    with running.connection() as connection:
        connection.send(b"GET /livez HTTP/1.1\r\nhost: %b\r\nte: trailers\r\n\r\n" % host)
        assert connection.answer()[0] == 200


def test_broken_chunks_after_good_ones_post_nothing(running: Running) -> None:
    merchant = running.open()
    content = json.dumps(posting(merchant)).encode()
    with running.connection() as connection:
        connection.send(head(running, transfer_encoding="chunked") + b"\r\n")
        connection.send(b"%x\r\n%s\r\nnonsense\r\n" % (len(content), content))
        assert connection.problem() == "bad_request"
    assert running.sequence(merchant) == 1


def test_client_that_leaves_within_its_body_posts_nothing(running: Running, capfd: pytest.CaptureFixture[str]) -> None:
    merchant = running.open()
    content = json.dumps(posting(merchant)).encode()
    for framing, sent in (
        ({"content_length": len(content) + 1}, content),
        ({"transfer_encoding": "chunked"}, b"%x\r\n%s\r\n" % (len(content), content)),
    ):
        with running.connection() as connection:
            connection.send(head(running, **framing) + b"\r\n" + sent)
    wait_until(lambda: not running.server.server_state.tasks)
    assert running.sequence(merchant) == 1
    assert "rror" not in capfd.readouterr().err


def test_chunked_body_is_read(running: Running) -> None:
    merchant = running.open()
    content = json.dumps(posting(merchant)).encode()
    with running.connection() as connection:
        connection.send(head(running, transfer_encoding="chunked") + b"\r\n")
        for at in range(len(content)):
            connection.send(b"1\r\n%c\r\n" % content[at])
        connection.send(b"0\r\n\r\n")
        assert connection.answer()[0] == 201


def test_http_1_0_is_answered_and_closed(running: Running) -> None:
    with running.connection() as connection:
        connection.send(b"GET /api/v1/health HTTP/1.0\r\n\r\n")
        status, headers, _ = connection.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert connection.is_closed()


@pytest.mark.parametrize("path", ["/livez", "/api/v1/credits/plugin-status/6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11"])
def test_HEAD_is_answered_as_GET_without_a_body(running: Running, path: str) -> None:
    with running.connection() as connection:
        for _ in range(2):
            connection.send(f"HEAD {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
            head = connection.head()
            assert head.startswith("HTTP/1.1 200 ")
            assert int(re.findall(r"content-length: (\d+)", head)[0]) > 10
        connection.send(HEALTH)
        assert connection.answer()[2] == b'{"data":{"status":"ok"}}'


def test_offer_of_another_protocol_is_ignored(running: Running) -> None:
    offers = (
        b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
        b"connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: eA==\r\n",
    )
    merchant = running.open()
    for number, offer in enumerate(offers):
        with running.connection() as connection:
            connection.send(HEALTH[:-2] + offer + b"\r\n")
            assert connection.answer()[0] == 200
            connection.send(HEALTH)
            assert connection.answer()[0] == 200
        with running.connection() as connection:
            sent = request(running, posting(merchant), idempotency_key=number)
            connection.send(sent.replace(b"host: a\r\n", b"host: a\r\n" + offer))
            assert connection.answer()[0] == 201


# ---- pipelines


def test_pipelined_requests_are_answered_in_order(running: Running) -> None:
    merchant = running.open()
    with running.connection() as connection:
        connection.send(b"".join(request(running, posting(merchant), idempotency_key=number) for number in range(50)))
        answers = [connection.answer() for _ in range(50)]
    assert [status for status, _, _ in answers] == [201] * 50
    assert [json.loads(body)["data"]["idempotency_key"] for _, _, body in answers] == [str(n) for n in range(50)]


@pytest.mark.parametrize(
    "broken",
    [
        b"nonsense\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n",
    ],
)
@pytest.mark.parametrize("before", [1, 3])
def test_invalid_http_is_refused_after_earlier_answers(running: Running, broken: bytes, before: int) -> None:
    merchant = running.open()
    with running.connection() as connection:
        requests = [request(running, posting(merchant), idempotency_key=number) for number in range(before)]
        connection.send(b"".join(requests) + broken + HEALTH)
        for _ in range(before):
            assert connection.answer()[0] == 201
        assert connection.problem() == "bad_request"
        assert connection.is_closed()
    assert running.sequence(merchant) == 1 + before


def test_late_request_is_refused_after_earlier_answers(hurried: Running) -> None:
    merchant = hurried.open()
    with hurried.connection() as connection:
        connection.send(request(hurried, posting(merchant)) + HEALTH[:20])
        assert connection.answer()[0] == 201
        assert connection.problem() == "request_timeout"


@pytest.mark.parametrize("path", ["/api/v1/credits/plugin-status/{merchant}", "/livez"])
def test_pipeline_is_bounded(running: Running, path: str) -> None:
    path = path.format(merchant=running.open())
    one = f"GET {path} HTTP/1.1\r\nhost: a\r\nx: {'y' * 4000}\r\n\r\n".encode()
    with running.connection(buffer=65_536) as connection:
        connection.send(one)
        assert connection.answer()[0] == 200
        client = connection.socket.getsockname()
        connections: list[Any] = list(running.server.server_state.connections)
        (protocol,) = [each for each in connections if each.client == client]
        protocol.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        connection.socket.setblocking(False)
        most = 50_000_000
        sent = longest = unparsed = 0
        flood = one * 500
        # The client does not read, so after some time the server does not read either.
        stuck_since = time.monotonic()
        while sent < most and time.monotonic() - stuck_since < 0.3:
            try:
                sent += connection.socket.send(flood[sent % len(one) :])
                stuck_since = time.monotonic()
            except BlockingIOError:
                time.sleep(0.001)
            longest = max(longest, len(protocol.pipeline))
            unparsed = max(unparsed, len(protocol._unparsed))
        assert sent < most
        # At most one read (256 KiB) waits, as bytes and as requests.
        assert longest <= 256 * 1024 // len(one) + 1
        assert unparsed <= 256 * 1024
        # Every request that was sent is answered once the client reads.
        connection.socket.settimeout(5)
        answered, token, tail = 0, b"HTTP/1.1 200 OK", b""
        while answered < sent // len(one):
            received = connection.socket.recv(1_000_000)
            assert received, f"the server closed after {answered} of {sent // len(one)} answers"
            read = tail + received
            answered += read.count(token)
            tail = read[1 - len(token) :]
    assert answers_still(running)


def test_headers_have_their_time_anew_after_earlier_answers(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(header_timeout_seconds=1)
    merchant = running.open()
    submit, go = running.service.posting.submit, asyncio.Event()

    async def held(command: Any) -> Any:
        await go.wait()
        return await submit(command)

    monkeypatch.setattr(running.service.posting, "submit", held)
    with running.connection() as connection:
        connection.send(request(running, posting(merchant)) + HEALTH + HEALTH[:20])
        time.sleep(0.8)
        running.loop.call_soon_threadsafe(go.set)
        assert [connection.answer()[0] for _ in range(2)] == [201, 200]
        time.sleep(0.5)
        connection.send(HEALTH[20:])
        assert connection.answer()[0] == 200


# ---- bodies that no route reads


@pytest.mark.parametrize("path", ["/credits/plugin-status/6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11", "/health"])
def test_GET_with_a_body_is_answered_and_the_connection_stays_open(running: Running, path: str) -> None:
    with running.connection() as connection:
        for _ in range(2):
            connection.send(f"GET /api/v1{path} HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{{}}".encode())
            assert connection.answer()[0] == 200


@pytest.mark.parametrize(
    ("path", "more", "code"),
    [
        ("/credits/transactions", {"authorization": "Bearer x"}, "unauthenticated"),
        ("/api-keys", {}, "scope_missing"),
        ("/nothing", {}, "not_found"),
        ("/health", {}, "method_not_allowed"),
        ("/credits/transactions", {"content_encoding": "gzip"}, "unsupported_media_type"),
    ],
)
def test_refusal_does_not_wait_for_the_body_and_ends_the_connection(
    running: Running, path: str, more: dict[str, Any], code: str
) -> None:
    with running.connection() as connection:
        connection.send(head(running, path, content_length=1000, **more) + b"\r\n")
        assert connection.problem() == code
        assert connection.is_closed()


def resident_bytes() -> int:
    """The memory of this process, in which the service runs."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
