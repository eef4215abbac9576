"""Traces: a span for each request and each batch of postings, sent to a collector."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from credit_service import settings as module
from credit_service.settings import SettingsError, load
from tests.commands import clean_environment, command
from tests.doors.running import Running, posting
from tests.served import served

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{PARENT}-01"


class Collector(ThreadingHTTPServer):
    """A collector that keeps the traces it receives."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ExportTraceServiceRequest]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/traces"

    @property
    def spans(self) -> list[Span]:
        """All spans, in the order of their start times."""
        found = [
            span
            for _, request in self.told
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        return sorted(found, key=lambda span: span.start_time_unix_nano)


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.told.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def attributes(span: Span) -> dict[str, Any]:
    """A span's attributes as plain values."""
    kinds = {entry.key: entry.value.WhichOneof("value") for entry in span.attributes}
    return {entry.key: getattr(entry.value, str(kinds[entry.key])) for entry in span.attributes}


@pytest.fixture
def traced(tmp_path: Path, collector: Collector) -> Callable[[Callable[[Running], None]], list[Span]]:
    """Runs a function against a traced service, and returns the spans."""

    def run(do: Callable[[Running], None], **given: Any) -> list[Span]:
        traces = {"tracing_enabled": True, "tracing_endpoint": collector.url}
        with Running(tmp_path, **traces, **given) as running:
            do(running)
        return collector.spans  # the service has sent all spans when it stopped

    return run


Traced = Callable[..., list[Span]]


def test_each_request_is_a_span_named_after_its_route(traced: Traced, collector: Collector) -> None:
    def call(running: Running) -> None:
        merchant = running.open()
        running.spend(merchant, 1000)
        for _ in range(2):  # first from the store, then from memory
            running.get(f"/credits/plugin-status/{merchant}", None)
        running.call("HEAD", f"/credits/accounts/{merchant}?secret=x", "read")
        running.client.get("/nothing")

    spans = [span for span in traced(call) if span.kind == Span.SPAN_KIND_SERVER]
    assert [span.name for span in spans] == [
        "POST /api/v1/credits/accounts",
        "POST /api/v1/credits/transactions",
        "GET /api/v1/credits/plugin-status/{merchant_id}",
        "GET /api/v1/credits/plugin-status/{merchant_id}",
        "HEAD /api/v1/credits/accounts/{merchant_id}",
        "GET none",
    ]
    assert [attributes(span)["http.response.status_code"] for span in spans] == [201, 402, 200, 200, 422, 404]
    assert attributes(spans[0]) == {
        "http.request.method": "POST",
        "http.route": "/api/v1/credits/accounts",
        "http.response.status_code": 201,
    }
    assert len({span.trace_id for span in spans}) == len(spans)
    assert all(span.parent_span_id == b"" and span.status.code == Status.STATUS_CODE_UNSET for span in spans)
    assert all(0 < span.end_time_unix_nano - span.start_time_unix_nano < 60e9 for span in spans)
    (path, first), *_ = collector.told
    assert path == "/v1/traces"
    named = {entry.key: entry.value.string_value for entry in first.resource_spans[0].resource.attributes}
    assert named["service.name"] == "credit-service"


def test_span_is_the_child_of_the_traceparent(traced: Traced) -> None:
    seen: list[str] = []

    def call(running: Running) -> None:
        for headers in ({"traceparent": SAMPLED}, {}, {"x-correlation-id": "own"}, {"traceparent": SAMPLED.upper()}):
            seen.append(running.get("/health", None, headers=headers).headers["x-correlation-id"])

    child, *roots = traced(call)
    assert (child.trace_id.hex(), child.parent_span_id.hex()) == (TRACE, PARENT)
    assert all(root.parent_span_id == b"" for root in roots)
    assert seen == [TRACE, roots[0].trace_id.hex(), "own", roots[2].trace_id.hex()]


def test_span_of_an_internal_error_hides_its_message(traced: Traced, collector: Collector) -> None:
    def call(running: Running) -> None:
        async def broken() -> Any:
            raise RuntimeError("the words")

        running.service.gate.totals = broken  # type: ignore[method-assign]
        assert running.get("/credits/plugin-status").status_code == 500

    (span,) = traced(call)
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert b"the words" not in b"".join(request.SerializeToString() for _, request in collector.told)


def test_each_batch_of_postings_is_a_span(traced: Traced) -> None:
    def call(running: Running) -> None:
        merchant = running.open()
        items = [posting(merchant, idempotency_key=f"{number}") for number in range(7)]
        assert running.post("/credits/transactions/batch", {"atomic": False, "items": items}).status_code == 200

    spans = [span for span in traced(call) if span.name == "posting batch"]
    assert [attributes(span) for span in spans] == [{"credits.commands": 1}, {"credits.commands": 7}]
    assert all(span.end_time_unix_nano >= span.start_time_unix_nano for span in spans)


def test_share_of_sent_traces_is_a_setting(traced: Traced) -> None:
    def call(running: Running) -> None:
        for headers in ({}, {"traceparent": SAMPLED}, {"traceparent": f"{SAMPLED[:-1]}0"}):
            running.get("/health", None, headers=headers)

    (span,) = traced(call, tracing_sample_ratio=0)
    assert span.parent_span_id.hex() == PARENT


def test_service_works_while_the_collector_is_away(traced: Traced, collector: Collector, tmp_path: Path) -> None:
    away = {"TRACING_ENABLED": "true", "TRACING_ENDPOINT": "http://127.0.0.1:9/v1/traces"}
    with served(tmp_path / "b.db", settings=away) as service, service.client() as client:
        assert client.get("/health").status_code == 200
        service.process.terminate()
        assert service.process.wait(30) is not None
        assert "Traceback" not in service.errors()


# ---- off, and not installed


def test_tracing_that_is_off_imports_and_sends_nothing(tmp_path: Path, collector: Collector) -> None:
    # The telemetry of FastAPI must stay off as well: it would export whole queries.
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}"}
    environment["FASTAPI_OTEL_AUTO_CONFIGURE"] = "true"
    with served(tmp_path / "a.db", settings=environment) as service:
        with service.client() as client:
            client.get("/health?secret=x")
        service.stop()
    assert collector.told == []
    imported = "import sys, credit_service.service; print('opentelemetry.sdk' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", imported], env=clean_environment(), capture_output=True, text=True)
    assert ran.stdout == "False\n"


def test_start_without_the_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FOR_TRACING", ("opentelemetry.not_there", "not_there.at_all"))
    ran = command("serve", cwd=tmp_path, TRACING_ENABLED="true")
    assert ran.code == 2
    assert ran.err == (
        'credit-service: TRACING_ENABLED: needs more to be installed: pip install "credit-service[tracing]".\n'
    )
    assert command("config", cwd=tmp_path, TRACING_ENABLED="false").code == 0


@pytest.mark.parametrize(
    "url",
    ["collector:4318", "grpc://collector", "http://user:hunter2@c/v1/traces", "http://c/?token=hunter2", "http:///"],
)
def test_collector_url_has_no_credentials(url: str) -> None:
    with pytest.raises(SettingsError, match="TRACING_ENDPOINT: must be a URL like") as refused:
        load(tracing_endpoint=url)
    assert "hunter2" not in str(refused.value)
