"""Traces of requests and postings, sent to an OpenTelemetry collector (OTLP over HTTP).

Imported only if tracing is on, because it needs the extra `credit-service[tracing]`.
"""

import asyncio
import time
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from credit_service import __version__
from credit_service.doors.http.call import Application, Receive, Scope, Send
from credit_service.ledger.decide import Outcome
from credit_service.settings import Settings

_CONTEXT = (b"traceparent", b"tracestate")
_EXPORT_SECONDS = 5


class Tracing:
    """Makes spans and sends them to the collector of the settings. `close` sends the rest."""

    def __init__(self, settings: Settings) -> None:
        resource = Resource.create({"service.name": settings.service_source, "service.version": __version__})
        sampler = ParentBased(TraceIdRatioBased(settings.tracing_sample_ratio))
        self._provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(settings.tracing_endpoint, timeout=_EXPORT_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("credit_service", __version__)
        self._propagation = TraceContextTextMapPropagator()

    def around(self, app: Application) -> Application:
        """The application with a span for each request, a child of its `traceparent`."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            sent = [(name, value) for name, value in scope["headers"] if name in _CONTEXT]
            carrier: dict[str, list[str]] = {}
            for name, value in sent:
                carrier.setdefault(name.decode(), []).append(value.decode("latin-1"))
            method = scope["method"]
            span = self._tracer.start_span(
                method, self._propagation.extract(carrier), SpanKind.SERVER, {"http.request.method": method}
            )

            def answered(route: str, status: int) -> None:
                span.update_name(f"{method} {route}")
                span.set_attributes({"http.route": route, "http.response.status_code": status})
                if status >= 500:
                    span.set_status(StatusCode.ERROR)

            # The application and its log lines belong to this span, and not to the span of the caller.
            own = span.get_span_context()
            traceparent = b"00-%032x-%016x-%02x" % (own.trace_id, own.span_id, own.trace_flags)
            headers = [*(pair for pair in scope["headers"] if pair[0] not in _CONTEXT), (_CONTEXT[0], traceparent)]
            try:
                await app({**scope, "headers": headers, "credit.traced": answered}, receive, send)
            finally:
                span.end()

        return traced

    def posted(self, outcomes: Sequence[Outcome], seconds: Sequence[float]) -> None:
        """Make a span for a batch of postings. `seconds`: how long ago each of its commands arrived."""
        now = time.time_ns()
        begun = now - int(max(seconds, default=0) * 1e9)
        attributes = {"credits.commands": len(outcomes)}
        self._tracer.start_span("posting batch", attributes=attributes, start_time=begun).end(now)

    async def close(self) -> None:
        """Send the remaining spans. Waits some seconds for a collector that does not answer."""
        await asyncio.to_thread(self._provider.shutdown)
