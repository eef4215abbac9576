"""The logs of a real service: every line in one format, and with the names of the request it belongs to."""

import json
import logging
import re
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog

from credit_service.observability import configure_logs
from credit_service.settings import load
from tests.doors.running import posting
from tests.served import Served, served

MERCHANT = "6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
FORMATS = ("console", "json")

# A service that breaks after it has begun to answer, so that uvicorn has something to say; and a warning of a library.
BROKEN_STREAM = """
import sys, warnings
from credit_service.doors.http import shell
serve = shell.Shell._serve
async def broken(self, scope, receive, reply, call, route):
    if call.path == "/warned":
        warnings.warn("something is old")
    if call.path != "/broken":
        return await serve(self, scope, receive, reply, call, route)
    await reply({"type": "http.response.start", "status": 200, "headers": []})
    raise RuntimeError("a bug")
shell.Shell._serve = broken
"""


def lines(service: Served, log_format: str) -> list[dict[str, Any]]:
    """The lines of the log, as values by name; of the console's, those that begin with a time."""
    httpx2.get(f"{service.url}/livez")  # answered only after those before it were told of
    said = service.errors()
    if log_format == "json":
        return [json.loads(line) for line in said.splitlines()]
    found = []
    for line in said.splitlines():
        head = re.match(r"(?P<timestamp>\S+Z) \[(?P<level>\w+) *\] (?P<event>.*?) *(?=\w+=|$)", line)
        if head is not None:
            found.append(head.groupdict() | dict(re.findall(r"(\w+)=(\S+)", line[head.end() :])))
    return found


def requests(service: Served, log_format: str) -> list[dict[str, Any]]:
    """The lines of answered requests, in their order, but for those of `lines` itself."""
    told = lines(service, log_format)
    return [line for line in told if line["event"] == "request" and line["route"] != "/livez"]


@pytest.fixture(scope="module", params=FORMATS)
def log_format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def at_debug(log_format: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = {"LOG_FORMAT": log_format, "LOG_LEVEL": "debug"}
    with served(tmp_path_factory.mktemp("logs") / "a.db", settings=settings) as service:
        yield service


@pytest.fixture
def talkative(at_debug: Served, log_format: str) -> Served:
    """A service at debug that has said nothing yet, as far as a test can see."""
    lines(at_debug, log_format)
    at_debug.pass_over_errors()
    return at_debug


def test_at_debug_each_answered_request_is_one_line(talkative: Served, log_format: str) -> None:
    asked = [
        ("POST", "/credits/accounts", {"json": {"merchant_id": MERCHANT}}, 201, "/api/v1/credits/accounts"),
        ("GET", f"/credits/accounts/{MERCHANT}?x=1", {}, 422, "/api/v1/credits/accounts/{merchant_id}"),
        (
            "POST",
            "/credits/transactions",
            {"json": posting(MERCHANT), "headers": {"idempotency-key": "k"}},
            201,
            "/api/v1/credits/transactions",
        ),
        *[("GET", f"/credits/plugin-status/{MERCHANT}", {}, 200, "/api/v1/credits/plugin-status/{merchant_id}")] * 2,
        ("HEAD", "/health", {}, 200, "/api/v1/health"),
        ("GET", "/nothing", {}, 404, "none"),
        ("DELETE", "/health", {}, 405, "/api/v1/health"),
    ]
    with talkative.client() as client:
        for method, path, sent, status, _ in asked:
            assert client.request(method, path, **sent).status_code == status  # type: ignore[arg-type]  # as sent
        ids = client.get("/health").headers
    told = requests(talkative, log_format)
    assert [(line["route"], int(line["status"])) for line in told[:-1]] == [
        (route, status) for *_, status, route in asked
    ]
    assert [line["method"] for line in told] == ["POST", "GET", "POST", "GET", "GET", "HEAD", "GET", "DELETE", "GET"]
    assert all(float(line["milliseconds"]) >= 0 for line in told)
    assert told[-1]["request_id"] == told[-1]["correlation_id"] == ids["x-request-id"]
    assert len({line["request_id"] for line in told}) == len(told)
    assert "x=1" not in talkative.errors()


def test_at_info_a_request_leaves_nothing_in_the_log(tmp_path: Path, log_format: str) -> None:
    with served(tmp_path / "a.db", settings={"LOG_FORMAT": log_format}) as service, service.client() as client:
        quiet = service.errors()
        for _ in range(3):
            client.get("/health")
            client.get("/nothing", headers={"traceparent": PARENT})
        assert service.errors() == quiet


def test_every_line_of_a_request_has_its_names(tmp_path: Path, log_format: str) -> None:
    with served(tmp_path / "a.db", settings={"LOG_FORMAT": log_format}) as service, service.client() as client:
        with closing(sqlite3.connect(tmp_path / "a.db")) as database:
            database.execute("DROP TABLE grants")
        names = {"x-request-id": "request-1", "x-correlation-id": "walk-1", "traceparent": PARENT}
        assert client.post("/credits/accounts", json={"merchant_id": MERCHANT}, headers=names).status_code == 500
        (line,) = [line for line in lines(service, log_format) if line["event"] == "internal_error"]
        assert (line["request_id"], line["correlation_id"], line["trace_id"]) == ("request-1", "walk-1", TRACE)
        assert "no such table: grants" in service.errors()


def test_a_pipelined_request_has_no_names_of_the_one_before_it(talkative: Served, log_format: str) -> None:
    first = f"GET /api/v1/health HTTP/1.1\r\nhost: x\r\nx-request-id: first\r\ntraceparent: {PARENT}\r\n\r\n"
    second = "GET /api/v1/health HTTP/1.1\r\nhost: x\r\nx-request-id: second\r\nconnection: close\r\n\r\n"
    with closing(socket.create_connection(("127.0.0.1", talkative.port))) as connection:
        connection.sendall((first + second).encode())
        while connection.recv(65536):
            pass
    told = {line["request_id"]: line for line in requests(talkative, log_format)}
    assert told["first"]["trace_id"] == told["first"]["correlation_id"] == TRACE
    assert "trace_id" not in told["second"]
    assert told["second"]["correlation_id"] == "second"


def test_what_libraries_say_comes_in_the_same_format_with_the_names_of_the_request(
    tmp_path: Path, log_format: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(BROKEN_STREAM)
    settings = {"LOG_FORMAT": log_format, "PYTHONPATH": str(tmp_path)}
    with served(tmp_path / "a.db", settings=settings) as service, service.client() as client:
        base = service.url
        with pytest.raises(httpx2.RemoteProtocolError):
            client.get(f"{base}/broken", headers={"x-request-id": "broken"})
        client.get(f"{base}/warned", headers={"x-request-id": "warned"})
        told = {line.get("request_id"): line for line in lines(service, log_format)}
        assert (told["broken"]["event"], told["broken"]["level"]) == ("Exception in ASGI application", "error")
        assert "RuntimeError: a bug" in service.errors()
        assert told["warned"]["level"] == "warning"
        assert "something is old" in service.errors()


# ---- trace context


WELL_FORMED = (PARENT, PARENT[:-1] + "0", f"01-{PARENT[3:]}", f"cc-{PARENT[3:]}-more-to-come")


def test_a_trace_id_is_taken_from_traceparent(talkative: Served, log_format: str) -> None:
    with talkative.client() as client:
        for given in WELL_FORMED:
            answer = client.get("/health", headers={"traceparent": given, "x-request-id": "mine"})
            assert answer.headers["x-correlation-id"] == TRACE
            assert answer.headers["x-request-id"] == "mine"
            own = client.get("/health", headers={"traceparent": given, "x-correlation-id": "own"})
            assert own.headers["x-correlation-id"] == "own"
    told = requests(talkative, log_format)
    assert {line["trace_id"] for line in told} == {TRACE}
    assert [line["correlation_id"] for line in told] == [TRACE, "own"] * len(WELL_FORMED)


def test_a_status_that_is_answered_from_memory_has_the_trace_id_too(tmp_path: Path) -> None:
    with served(tmp_path / "a.db") as service, service.client() as client:
        for _ in range(2):
            answer = client.get(f"/credits/plugin-status/{MERCHANT}", headers={"traceparent": PARENT})
            assert answer.headers["x-correlation-id"] == TRACE


MALFORMED = {
    "upper case": PARENT.upper(),
    "version ff": f"ff-{PARENT[3:]}",
    "version 00 with more": f"{PARENT}-more",
    "a later version with more, but no dash": f"01-{PARENT[3:]}more",
    "a trace id of zeros": PARENT.replace(TRACE, "0" * 32),
    "a parent id of zeros": PARENT.replace("00f067aa0ba902b7", "0" * 16),
    "a short trace id": PARENT.replace(TRACE, TRACE[1:]),
    "no flags": PARENT[:-3],
    "no hexadecimal digits": PARENT.replace("4bf9", "4bg9"),
    "nothing": "",
    "another shape": "hello",
    "spaces within": PARENT.replace("-", " - "),
}


def test_a_malformed_traceparent_is_as_none(talkative: Served, log_format: str) -> None:
    with talkative.client() as client:
        for what, given in MALFORMED.items():
            answer = client.get("/health", headers={"traceparent": given, "x-request-id": "mine"})
            assert answer.headers["x-correlation-id"] == "mine", what
        twice = client.get(
            "/health", headers=[("traceparent", PARENT), ("traceparent", PARENT), ("x-request-id", "mine")]
        )
        assert twice.headers["x-correlation-id"] == "mine"
    told = requests(talkative, log_format)
    assert len(told) == len(MALFORMED) + 1
    assert not any("trace_id" in line for line in told)


def test_console_log_escapes_control_characters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "basicConfig", lambda **options: None)
    configure_logs(load())
    try:
        structlog.get_logger().warning("a\x1b[2J", shop="b\nc", ids=["\x9b"])
        try:
            raise ValueError("d\x1b\u202e")
        except ValueError:
            structlog.get_logger().exception("failed")
    finally:
        structlog.reset_defaults()
    said = capsys.readouterr().err
    assert all(line.isprintable() for line in said.split("\n"))
    assert "a\\x1b[2J" in said
    assert "shop=b\\nc" in said
    assert "ValueError: d\\x1b\\u202e" in said
