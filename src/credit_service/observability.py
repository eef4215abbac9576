"""What the service says about itself: logs, one structured line for each thing worth knowing, and metrics."""

import logging
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextvars import ContextVar
from functools import partial
from io import StringIO
from itertools import accumulate
from typing import Any, TextIO

import prometheus_client as prometheus
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from credit_service.gate.totals import Totals
from credit_service.ledger.decide import Outcome, Replayed
from credit_service.ledger.refusals import Refused
from credit_service.settings import Settings
from credit_service.storage.engine import Writes
from credit_service.storage.webhooks import WebhookDelivery
from credit_service.terminal import printable

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
request_names: ContextVar[Callable[[], Mapping[str, str]]] = ContextVar("request_names", default=dict)
"""Gives the ids of the request that is being served; every log line carries them."""
_SIZES = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000)


def configure_logs(settings: Settings) -> None:
    """Send the service's logs, and those of the libraries under it, to standard error in the chosen format."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _name_request,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if settings.log_format == "json":
        last: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        console = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_traceback)
        last = [_printable, console]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[_plain, *last]))
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
    logging.captureWarnings(True)
    # It warns of every request that is not HTTP; those are answered, and would fill the log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


def _printable(logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Every text as one line that cannot control the terminal: it may come from a caller."""
    return {key: printable(value) if isinstance(value, str) else value for key, value in event.items()}


def _traceback(out: TextIO, info: Any) -> None:
    # A plain one: a pretty one shows the values of variables, and so the secrets in them.
    plain = StringIO()
    structlog.dev.plain_traceback(plain, info)
    out.write("\n".join(map(printable, plain.getvalue().split("\n"))))


def _name_request(logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event.update(request_names.get()())
    return event


def _plain(logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Without what the standard library's records bring along, and in one line."""
    event["event"] = " ".join(str(event["event"]).split())
    return {key: value for key, value in event.items() if not key.startswith("_")}


class Metrics:
    """What Prometheus may ask of this process. Counters begin at 0 with the process, as Prometheus expects.

    What happens thousands of times a second is a plain number, turned into a metric when it is asked for; the rest are
    the client library's own.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.status_checks: Counter[tuple[str, str]] = Counter()  # by status and source
        named = partial(prometheus.Counter, registry=self.registry)
        self._transactions = named("credits_transactions", "Transactions posted", ["type", "operation"])
        self._balances = named("credits_balance_updated", "Changes of a balance")
        self._refused = named("credits_refused", "Commands and facts refused", ["code"])
        self._conflicting = named("credits_events_conflicting", "Facts told again with other content")
        self._consumed = named("credits_events_consumed", "Events taken", ["subject", "outcome"])
        self._redelivered = named("credits_events_redelivered", "Events that the broker delivered again", ["subject"])
        self._published = named("credits_events_published", "Events published to NATS", ["event_type"])
        self._dead_letters = named("credits_dead_letters", "Events that could not be applied and were put aside")
        self._webhooks = named("credits_webhook_deliveries", "Attempts to send a webhook", ["outcome"])
        for outcome in ("delivered", "retried", "failed"):
            self._webhooks.labels(outcome)  # all there from the start, so that their first one is a change
        self._webhooks_again = named("credits_webhook_redeliveries", "Those of what had been sent before")
        self.processing = Durations()  # of commands
        self._batch_size = prometheus.Histogram(
            "credits_posting_batch_size", "Commands in one commit", buckets=_SIZES, registry=self.registry
        )
        gauge = partial(prometheus.Gauge, registry=self.registry)
        self._enabled = gauge("credits_plugin_status", "Merchants by their plugin status", ["status"])
        self._exhausted = gauge("credits_merchants_zero_balance", "Merchants with nothing available")
        self._low = gauge("credits_merchants_low_balance", "Merchants at or below their threshold, but not at zero")
        self._parked = gauge(
            "credits_parked_events",
            "Refunds that wait for their order or payment, deliveries that wait for a link",
        )
        self._storage_up = gauge("credits_storage_up", "1 if the database could be read and written just now")
        self._lag = gauge("credits_outbox_lag_seconds", "How long the oldest event waits that NATS does not have yet")
        self.balances: list[tuple[str, int]] = []  # by merchant, asked for at each scrape and only where it is set
        self.answers: dict[tuple[str, str, int], Durations] = {}  # by method, route and status
        self.registry.register(_PlainNumbers(self))

    def committed(self, writes: Writes) -> None:
        """Count what a commit wrote."""
        posted = Counter([(transaction.type, transaction.operation) for transaction in writes.transactions])
        for kind, count in posted.items():
            self._transactions.labels(*kind).inc(count)
        self._balances.inc(len(writes.transactions))
        self._dead_letters.inc(len(writes.dead_letters))

    def decided(self, outcomes: Iterable[Outcome], seconds: Iterable[float]) -> None:
        """Count what became of the commands of one batch, and how long each took."""
        count = 0
        for outcome in outcomes:
            count += 1
            if isinstance(outcome, Refused):
                self._refused.labels(outcome.refusal.code).inc()
            elif isinstance(outcome, Replayed) and outcome.conflicting:
                self._conflicting.inc()
        for taken in seconds:
            self.processing.note(taken)
        self._batch_size.observe(count)

    def consumed(self, subject: str, outcome: str) -> None:
        """Count an event that came in; `subject` is one of the catalogue."""
        self._consumed.labels(subject, outcome).inc()

    def sent(self, delivery: WebhookDelivery) -> None:
        """Count an attempt to send a webhook; the delivery is as it was noted afterwards."""
        self._webhooks.labels("retried" if delivery.state == "pending" else delivery.state).inc()
        self._webhooks_again.inc(delivery.attempts > 1 or delivery.redelivers is not None)

    def redelivered(self, subject: str) -> None:
        """Count an event that the broker delivers not for the first time."""
        self._redelivered.labels(subject).inc()

    def put_aside(self, count: int) -> None:
        """Count events that came in, could not be applied, and are kept as dead letters."""
        self._dead_letters.inc(count)

    def published(self, types: Mapping[str, int]) -> None:
        """Count events that were published to NATS, by their type."""
        for type_, count in types.items():
            self._published.labels(type_).inc(count)

    def lagging(self, seconds: float) -> None:
        """Note how long the oldest event has waited that is not published."""
        self._lag.set(seconds)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request, by its route's template."""
        durations = self.answers.get((method, route, status))
        if durations is None:
            durations = self.answers[method, route, status] = Durations()
        durations.note(seconds)

    def stored(self, totals: Totals, parked: int) -> None:
        """Note how many merchants there are of each kind, and refunds that wait, as asked of the store just now."""
        self._enabled.labels("enabled").set(totals.enabled)
        self._enabled.labels("disabled").set(totals.merchants - totals.enabled)
        self._exhausted.set(totals.exhausted)
        self._low.set(totals.low)
        self._parked.set(parked)
        self._storage_up.set(1)

    def storage_away(self) -> None:
        """Note that the database cannot be read or written now; what it answered before stands."""
        self._storage_up.set(0)

    def gauge(self, name: str, what: str, value: Callable[[], float]) -> None:
        """A gauge whose value is asked for when Prometheus asks."""
        prometheus.Gauge(name, what, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return prometheus.generate_latest(self.registry)


class Durations:
    """How often something took how long, in the buckets of _SECONDS."""

    __slots__ = ("_counts", "_seconds")

    def __init__(self) -> None:
        self._counts = [0] * (len(_SECONDS) + 1)
        self._seconds = 0.0

    def note(self, seconds: float) -> None:
        self._counts[bisect_left(_SECONDS, seconds)] += 1
        self._seconds += seconds

    def as_histogram(self) -> tuple[list[tuple[str, float]], float]:
        """Its buckets, each with those before it, and the sum, as Prometheus counts."""
        return list(zip(map(str, (*_SECONDS, "+Inf")), accumulate(self._counts), strict=True)), self._seconds


class _PlainNumbers(Collector):
    """The metrics of what happens too often for more than counting."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """The counts so far."""
        checks = CounterMetricFamily(
            "credits_plugin_status_checks", "Plugin statuses asked for", labels=["status", "source"]
        )
        for labels, count in self._metrics.status_checks.items():
            checks.add_metric(labels, count)
        yield checks
        processing = HistogramMetricFamily(
            "credits_transaction_processing_seconds", "From a command's arrival in the queue to its answer"
        )
        processing.add_metric([], *self._metrics.processing.as_histogram())
        yield processing
        answers = HistogramMetricFamily(
            "credits_http_request_duration_seconds", "Time to answer a request", labels=["method", "route", "status"]
        )
        for (method, route, status), durations in self._metrics.answers.items():
            answers.add_metric([method, route, str(status)], *durations.as_histogram())
        yield answers
        if self._metrics.balances:
            balances = GaugeMetricFamily("credits_balance_total", "Balance of each merchant", labels=["merchant_id"])
            for merchant_id, balance in self._metrics.balances:
                balances.add_metric([merchant_id], balance)
            yield balances
