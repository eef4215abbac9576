"""The logs of a real service: every line has one format and the ids of its request."""

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

# This service fails after it started to answer, so uvicorn logs an error. It also makes a library log a warning.
BROKEN_STREAM = """
import sys, warnings
from credit_service.doors.http import shell
result = shell.Shell._result
async def broken(self, scope, receive, call, route):
    if call.path == "/warned":
        warnings.warn("something is old")
    if call.path != "/broken":
        return await result(self, scope, receive, call, route)
    return breaks
async def breaks(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise RuntimeError("a bug")
shell.Shell._result = broken
"""


def lines(service: Served, log_format: str) -> list[dict[str, Any]]:
    """Return the log lines as dictionaries. In the console format, return only lines that begin with a time."""
    httpx2.get(f"{service.url}/livez")  # the service answers this only after it has logged earlier requests
    output = service.errors()
    if log_format == "json":
        return [json.loads(line) for line in output.splitlines()]
    found = []
    for line in output.splitlines():
        head = re.match(r"(?P<timestamp>\S+Z) \[(?P<level>\w+) *\] (?P<event>.*?) *(?=\w+=|$)", line)
        if head is not None:
            found.append(head.groupdict() | dict(re.findall(r"(\w+)=(\S+)", line[head.end() :])))
    return found


def requests(service: Served, log_format: str) -> list[dict[str, Any]]:
    """Return the log lines of requests in order, without the requests that `lines` makes."""
    records = lines(service, log_format)
    return [line for line in records if line["event"] == "request" and line["route"] != "/livez"]


@pytest.fixture(scope="module", params=FORMATS)
def log_format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def shared_debug_service(log_format: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = {"LOG_FORMAT": log_format, "LOG_LEVEL": "debug"}
    with served(tmp_path_factory.mktemp("logs") / "a.db", settings=settings) as service:
        yield service


@pytest.fixture
def debug_service(shared_debug_service: Served, log_format: str) -> Served:
    """Return the shared service at log level debug, with earlier log lines skipped."""
    lines(shared_debug_service, log_format)
    shared_debug_service.skip_errors()
    return shared_debug_service


def test_every_request_is_one_line_at_level_debug(debug_service: Served, log_format: str) -> None:
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
    with debug_service.client() as client:
        for method, path, sent, status, _ in asked:
            assert client.request(method, path, **sent).status_code == status  # type: ignore[arg-type]  # as sent
        ids = client.get("/health").headers
    records = requests(debug_service, log_format)
    assert [(line["route"], int(line["status"])) for line in records[:-1]] == [
        (route, status) for *_, status, route in asked
    ]
    assert [line["method"] for line in records] == ["POST", "GET", "POST", "GET", "GET", "HEAD", "GET", "DELETE", "GET"]
    assert all(float(line["milliseconds"]) >= 0 for line in records)
    assert records[-1]["request_id"] == records[-1]["correlation_id"] == ids["x-request-id"]
    assert len({line["request_id"] for line in records}) == len(records)
    assert "x=1" not in debug_service.errors()


def test_request_logs_nothing_at_level_info(tmp_path: Path, log_format: str) -> None:
    with served(tmp_path / "a.db", settings={"LOG_FORMAT": log_format}) as service, service.client() as client:
        quiet = service.errors()
        for _ in range(3):
            client.get("/health")
            client.get("/nothing", headers={"traceparent": PARENT})
        assert service.errors() == quiet


def test_every_log_line_of_a_request_has_its_ids(tmp_path: Path, log_format: str) -> None:
    with served(tmp_path / "a.db", settings={"LOG_FORMAT": log_format}) as service, service.client() as client:
        with closing(sqlite3.connect(tmp_path / "a.db")) as database:
            database.execute("DROP TABLE grants")
        names = {"x-request-id": "request-1", "x-correlation-id": "walk-1", "traceparent": PARENT}
        assert client.post("/credits/accounts", json={"merchant_id": MERCHANT}, headers=names).status_code == 500
        (line,) = [line for line in lines(service, log_format) if line["event"] == "internal_error"]
        assert (line["request_id"], line["correlation_id"], line["trace_id"]) == ("request-1", "walk-1", TRACE)
        assert "no such table: grants" in service.errors()


def test_pipelined_request_does_not_log_ids_of_earlier_request(debug_service: Served, log_format: str) -> None:
    first = f"GET /api/v1/health HTTP/1.1\r\nhost: x\r\nx-request-id: first\r\ntraceparent: {PARENT}\r\n\r\n"
    second = "GET /api/v1/health HTTP/1.1\r\nhost: x\r\nx-request-id: second\r\nconnection: close\r\n\r\n"
    with closing(socket.create_connection(("127.0.0.1", debug_service.port))) as connection:
        connection.sendall((first + second).encode())
        while connection.recv(65536):
            pass
    records = {line["request_id"]: line for line in requests(debug_service, log_format)}
    assert records["first"]["trace_id"] == records["first"]["correlation_id"] == TRACE
    assert "trace_id" not in records["second"]
    assert records["second"]["correlation_id"] == "second"


def test_library_messages_have_same_format_and_request_ids(tmp_path: Path, log_format: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(BROKEN_STREAM)
    settings = {"LOG_FORMAT": log_format, "PYTHONPATH": str(tmp_path)}
    with served(tmp_path / "a.db", settings=settings) as service, service.client() as client:
        base = service.url
        with pytest.raises(httpx2.RemoteProtocolError):
            client.get(f"{base}/broken", headers={"x-request-id": "broken"})
        client.get(f"{base}/warned", headers={"x-request-id": "warned"})
        records = {line.get("request_id"): line for line in lines(service, log_format)}
        assert (records["broken"]["event"], records["broken"]["level"]) == ("Exception in ASGI application", "error")
        assert "RuntimeError: a bug" in service.errors()
        assert records["warned"]["level"] == "warning"
        assert "something is old" in service.errors()


# ---- trace context


WELL_FORMED = (PARENT, PARENT[:-1] + "0", f"01-{PARENT[3:]}", f"cc-{PARENT[3:]}-more-to-come")


def test_service_takes_trace_id_from_traceparent(debug_service: Served, log_format: str) -> None:
    with debug_service.client() as client:
        for given in WELL_FORMED:
            answer = client.get("/health", headers={"traceparent": given, "x-request-id": "mine"})
            assert answer.headers["x-correlation-id"] == TRACE
            assert answer.headers["x-request-id"] == "mine"
            own = client.get("/health", headers={"traceparent": given, "x-correlation-id": "own"})
            assert own.headers["x-correlation-id"] == "own"
    records = requests(debug_service, log_format)
    assert {line["trace_id"] for line in records} == {TRACE}
    assert [line["correlation_id"] for line in records] == [TRACE, "own"] * len(WELL_FORMED)


def test_cached_plugin_status_answer_has_the_trace_id(tmp_path: Path) -> None:
    with served(tmp_path / "a.db") as service, service.client() as client:
        for _ in range(2):
            answer = client.get(f"/credits/plugin-status/{MERCHANT}", headers={"traceparent": PARENT})
            assert answer.headers["x-correlation-id"] == TRACE


MALFORMED = {
    "upper case": PARENT.upper(),
    "version ff": f"ff-{PARENT[3:]}",
    "version 00 with extra text": f"{PARENT}-more",
    "later version with extra text but no dash": f"01-{PARENT[3:]}more",
    "trace id of zeros": PARENT.replace(TRACE, "0" * 32),
    "parent id of zeros": PARENT.replace("00f067aa0ba902b7", "0" * 16),
    "short trace id": PARENT.replace(TRACE, TRACE[1:]),
    "no flags": PARENT[:-3],
    "not hexadecimal": PARENT.replace("4bf9", "4bg9"),
    "empty": "",
    "wrong format": "hello",
    "inner spaces": PARENT.replace("-", " - "),
}


def test_service_ignores_malformed_traceparent(debug_service: Served, log_format: str) -> None:
    with debug_service.client() as client:
        for what, given in MALFORMED.items():
            answer = client.get("/health", headers={"traceparent": given, "x-request-id": "mine"})
            assert answer.headers["x-correlation-id"] == "mine", what
        twice = client.get(
            "/health", headers=[("traceparent", PARENT), ("traceparent", PARENT), ("x-request-id", "mine")]
        )
        assert twice.headers["x-correlation-id"] == "mine"
    records = requests(debug_service, log_format)
    assert len(records) == len(MALFORMED) + 1
    assert not any("trace_id" in line for line in records)


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
    output = capsys.readouterr().err
    assert all(line.isprintable() for line in output.split("\n"))
    assert "a\\x1b[2J" in output
    assert "shop=b\\nc" in output
    assert "ValueError: d\\x1b\\u202e" in output
