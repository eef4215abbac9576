"""The composition root: the only place where real parts are plugged together, started and stopped."""

import asyncio
import contextlib
import gc
import os
import shlex
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from credit_service import __version__
from credit_service.doors.http.app import make_app
from credit_service.doors.http.call import Application
from credit_service.doors.http.endpoints import PREFIX
from credit_service.doors.http.events.list import cursor_at
from credit_service.doors.http.keys import Keyring, new_key
from credit_service.doors.http.ledger import Ledger
from credit_service.doors.http.parts import Parts
from credit_service.doors.http.plugin_status.shared import render
from credit_service.doors.http.server import MetricsServer, Server, listen
from credit_service.doors.shopify_inbox import Inbox
from credit_service.erasure import Erasure
from credit_service.gate.status import Gate
from credit_service.jobs.auditor import Auditor
from credit_service.jobs.sweeper import keep_sweeping
from credit_service.ledger.decide import Outcome
from credit_service.observability import Metrics
from credit_service.outlets.reader import OutboxReader
from credit_service.outlets.stream import Stream
from credit_service.outlets.targets import Targets
from credit_service.outlets.wake import Wake
from credit_service.outlets.webhooks import Webhooks
from credit_service.posting import Posting
from credit_service.rounds import keep_doing
from credit_service.settings import Settings, channel_of, database_of, redis_of
from credit_service.storage.accounts import Accounts
from credit_service.storage.engine import Committed, Engine, StorageError
from credit_service.storage.keys import Keys
from credit_service.storage.letters import Letters
from credit_service.storage.outbox import Outbox
from credit_service.storage.policies import FailPolicies
from credit_service.storage.shops import Shops
from credit_service.storage.transactions import Transactions
from credit_service.storage.webhooks import WebhookEndpoints
from credit_service.storage.write_check import WriteCheck
from credit_service.supervision import Supervisor

if TYPE_CHECKING:
    from credit_service.broker import Broker
    from credit_service.doors.http.tracing import Tracing

_KEY_USE_SECONDS = 60
"""How often the last uses of API keys are written down."""
_log = structlog.get_logger()


class Service:
    """A running service: the parts, and the HTTP application that serves them; one of several `workers`, or alone."""

    def __init__(self, engine: Engine, settings: Settings, worker: int = 0, workers: int = 1) -> None:
        policy = settings.policy
        self.metrics = Metrics()
        self.supervisor = Supervisor()
        faults = "Background tasks that died and are not healthy again"
        self.metrics.gauge("credits_background_tasks_failing", faults, lambda: len(self.supervisor.faults))
        self.wake = Wake()
        self.redis = redis_of(settings)
        self.gate = Gate(
            Accounts(engine),
            FailPolicies(engine),
            policy,
            ttl_seconds=settings.plugin_status_cache_ttl,
            stale_seconds=settings.gate_stale_seconds,
            shared=self.redis,
            channel=self.redis or channel_of(settings, engine),
            fail=settings.gate_fail,
            size=settings.plugin_status_cache_size,
            clock=lambda: engine.clock.estimate(),
            render=render,
            on_heard=self.wake.committed_elsewhere,
        )
        self.write_check = WriteCheck(engine)
        self.posting = Posting(
            engine,
            policy,
            on_committed=self._committed,
            on_measured=self._measured,
            on_failed=self.write_check.doubt,
            deadline_seconds=settings.posting_deadline_seconds,
            max_queue=settings.posting_queue_size,
        )
        self.metrics.gauge("credits_posting_queue_depth", "Commands that wait for a batch", lambda: self.posting.queued)
        moved = "1 while nothing is posted because the clock jumped"
        self.metrics.gauge("credits_clock_moved", moved, lambda: engine.clock.fault is not None)
        self.engine = engine
        self.settings = settings
        self.stopping = False  # told to, and about to
        self.keyring = Keyring(Keys(engine), is_storage_silent=lambda: self.gate.is_storage_silent)
        networks, public = settings.webhook_networks
        source = settings.service_source
        outbox, targets = Outbox(engine), Targets(networks, public=public)
        self.webhooks = Webhooks(WebhookEndpoints(engine), outbox, targets, source, self.metrics.sent)
        self.metrics.gauge("credits_webhook_pending", "Webhooks that are to be sent", lambda: self.webhooks.pending)
        disabled = "Webhook endpoints that are disabled"
        self.metrics.gauge("credits_webhook_endpoints_disabled", disabled, lambda: self.webhooks.disabled)
        self.auditor = Auditor(Accounts(engine))
        drifting = "Accounts that disagree with their last transaction or their grants"
        self.metrics.gauge("credits_ledger_drift_accounts", drifting, lambda: self.auditor.drifting)
        self.stream = Stream(outbox, self.wake, source, cursor_at, self.supervisor)
        self.broker: Broker | None = None
        self.publishing: OutboxReader | None = None
        if url := settings.nats_url.get_secret_value():
            self._use_nats(url, worker, workers)
        shops, letters = Shops(engine), Letters(engine)
        erasure = Erasure(engine)
        self.inbox = Inbox(shops, letters, erasure, self.posting, settings, self.metrics)
        parts = Parts(
            ledger=Ledger(engine.now, Accounts(engine), Transactions(engine), policy),
            settings=settings,
            metrics=self.metrics,
            keyring=self.keyring,
            posting=self.posting,
            gate=self.gate,
            outbox=outbox,
            keys=Keys(engine),
            endpoints=WebhookEndpoints(engine),
            shops=shops,
            fail_policies=FailPolicies(engine),
            erasure=erasure,
            inbox=self.inbox,
            supervisor=self.supervisor,
            sender=self.webhooks,
            follow=self.stream.follow,
            is_stopping=self._is_stopping,
            check_storage=self.write_check.check,
            check_redis=None if self.redis is None else self.redis.check,
            broker=self.broker,
            publishing=self.publishing,
        )
        self.app: Application = make_app(parts, self.running)
        self.tracing: Tracing | None = None
        if settings.tracing_enabled:
            from credit_service.doors.http import tracing  # takes long to import, and is rarely asked for

            self.tracing = tracing.Tracing(settings)
            self.app = self.tracing.around(self.app)

    def _use_nats(self, url: str, worker: int, workers: int) -> None:
        """Make the parts that speak to NATS; they take long to import."""
        from credit_service.broker import Broker
        from credit_service.doors.jetstream.consumer import Consumer
        from credit_service.doors.jetstream.subjects import Subjects
        from credit_service.doors.jetstream.taking import Taking
        from credit_service.outlets.dead_letters import DeadLetters
        from credit_service.outlets.jetstream import Publisher, publishing

        settings, letters = self.settings, Letters(self.engine)
        self.broker = Broker(url, name=settings.nats_consumer, replicas=settings.nats_stream_replicas)
        self.dead_letters = DeadLetters(letters, self.broker)
        subjects, wake = Subjects(settings.remapped_subjects), self.dead_letters.wake
        taking = Taking(letters, self.posting, self.metrics, subjects, settings, wake)
        self.consumer = Consumer(self.broker, subjects, taking, settings, worker, workers)
        publisher = Publisher(self.broker, settings.service_source, self.metrics.published)
        self.publishing = publishing(Outbox(self.engine), publisher, self.wake)

    def end_streams(self) -> None:
        """End the streams of events."""
        self.stream.close()

    def _is_stopping(self) -> bool:
        return self.stopping

    def _committed(self, committed: Committed) -> None:
        writes = committed.writes
        self.gate.committed(writes.accounts.values(), writes.announcements)
        self.metrics.committed(writes)
        if writes.announcements:
            self.wake.committed(committed)
            self.webhooks.committed()
        if writes.dead_letters and self.broker is not None:
            self.dead_letters.wake()

    def _measured(self, outcomes: Sequence[Outcome], seconds: Sequence[float]) -> None:
        self.metrics.decided(outcomes, seconds)
        if self.tracing is not None:
            self.tracing.posted(outcomes, seconds)

    @contextlib.asynccontextmanager
    async def running(self, app: object = None) -> AsyncIterator[None]:
        """Run the background tasks; at the end post what is queued, and close the store."""
        settings, supervisor = self.settings, self.supervisor
        self.posting.start(supervisor)
        await self.gate.start(supervisor)
        jobs: dict[str, Callable[[], Awaitable[object]]] = {
            "sweeper": partial(keep_sweeping, Accounts(self.engine), self.posting, settings.sweep_seconds),
            "key uses": partial(keep_doing, self._keep_key_uses, "key_uses_failed", _KEY_USE_SECONDS),
            "webhooks": self.webhooks.run,
        }
        if accounts := settings.audit_accounts_per_second:
            jobs["auditor"] = partial(self.auditor.keep_auditing, accounts)
        if settings.shopify_webhook_secret is not None:
            jobs["shopify inbox"] = partial(keep_doing, self.inbox.catch_up, "shopify_failed", settings.sweep_seconds)
        if self.broker is not None:
            self.broker.start(supervisor)
            self.consumer.start(supervisor)
            jobs["dead letters"] = self.dead_letters.keep_publishing
        if self.publishing is not None:
            jobs["publisher"] = self.publishing.run
        tasks = [supervisor.start(name, run) for name, run in jobs.items()]
        try:
            yield
        finally:
            if self.broker is not None:
                await self.consumer.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            try:
                await self.posting.drain()
                with contextlib.suppress(StorageError):
                    await self.keyring.flush()
            finally:
                await self.gate.close()  # after the last posting, of which the other processes are still told
                if self.redis is not None:
                    await self.redis.close()
                if self.broker is not None:
                    await self.broker.close()
                await self.engine.close()
                if self.tracing is not None:
                    await self.tracing.close()

    async def _keep_key_uses(self) -> bool:
        await self.keyring.flush()
        return False


def key_file(settings: Settings) -> Path:
    """Where the first admin key is written: beside the SQLite file, else where the service was started."""
    return Path("credit-service.admin-key" if settings.is_postgres else f"{settings.database_path}.admin-key")


async def first_key(keys: Keys, path: Path, *, terminal: bool) -> str | None:
    """Make the first admin key of a service that has none; returns how to say it in a shell, None where there is one.

    On a terminal the key itself is returned, to be shown once. Elsewhere it is written to `path`, readable by its owner
    alone.
    """
    if await keys.all():
        return None
    made = new_key("first admin key", "admin", await keys.now())
    if terminal:
        await keys.add(made.key)
        return made.whole
    # The file first: a key that exists and that nobody can read would lock everybody out.
    file = _write_key(path, made.whole)
    await keys.add(made.key)
    _log.info("first_admin_key_written", path=str(file))
    return f"$(cat {shlex.quote(str(file))})"


def _write_key(file: Path, key: str) -> Path:
    file.unlink(missing_ok=True)  # one that others hold open, or a link, must not get the key
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as handle:
        handle.write(f"{key}\n")
    return file.resolve()


async def serve(settings: Settings) -> None:
    """Serve until told to stop. Raises StorageError where the start fails, with one readable line."""
    with contextlib.closing(listen(settings)) as listening:
        await _serve(settings, listening, await _prepared(settings, listening))


async def prepare(settings: Settings, listening: socket.socket) -> None:
    """What is done once before several workers serve: the schema, the first key, the greeting."""
    engine = await _prepared(settings, listening)
    await engine.close()


async def serve_on(settings: Settings, listening: socket.socket, worker: int, workers: int) -> None:
    """Serve on a socket that several workers share, everything being prepared."""
    await _serve(settings, listening, await database_of(settings).opened(), worker, workers)


async def _prepared(settings: Settings, listening: socket.socket) -> Engine:
    database = database_of(settings)
    engine = await database.opened()
    try:
        key = await first_key(Keys(engine), key_file(settings), terminal=sys.stdout.isatty())
    except OSError as error:
        await engine.close()
        raise StorageError(f"{error.filename}: the first admin key cannot be written: {error.strerror}.") from None
    host, port = listening.getsockname()[:2]
    _greet(f"http://{f'[{host}]' if ':' in host else host}:{port}", database.name, key)
    return engine


async def _serve(
    settings: Settings, listening: socket.socket, engine: Engine, worker: int = 0, workers: int = 1
) -> None:
    quieten_garbage_collection()
    service = Service(engine, settings, worker, workers)
    with contextlib.ExitStack() as stack:
        beside = None
        if settings.metrics_port:
            try:
                own = stack.enter_context(contextlib.closing(listen(settings, settings.metrics_port + worker)))
            except StorageError:
                await engine.close()
                raise
            beside = service.supervisor.start("metrics server", lambda: MetricsServer(service, settings).serve([own]))
        try:
            await Server(service, settings).serve([listening])
        finally:
            if beside is not None:
                beside.cancel()
                await asyncio.gather(beside, return_exceptions=True)


def longest_stop_seconds(settings: Settings) -> float:
    """How long a service may take to stop: requests under way are finished, and what was queued is posted."""
    return settings.shutdown_delay_seconds + 2 * settings.posting_deadline_seconds + 5


def quieten_garbage_collection() -> None:
    """What is loaded by now stays; looked through again and again, it would make every batch wait.

    The little garbage in it stays, too: to look for it takes a tenth of a second.
    """
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)


def _greet(url: str, ledger: str, key: str | None) -> None:
    """Say where the service is, and how to make the first call."""
    print(f"credit-service {__version__} on {url}, ledger in {ledger}", flush=True)
    if key is None:
        return
    if key.startswith("cs_"):
        print(f"\nThe first admin key, shown this once:\n\n  {key}")
    print(
        f"\nOpen an account:\n\n"
        f"  curl -X POST {url}{PREFIX}/credits/accounts \\\n"
        f'    -H "Authorization: Bearer {key}" -H "Content-Type: application/json" \\\n'
        f'    -d \'{{"merchant_id": "6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11"}}\'\n',
        flush=True,
    )
