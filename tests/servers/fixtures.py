"""Fixtures of real servers. All processes of a test run share one PostgreSQL, which starts with the first test.

The main process of pytest owns the PostgreSQL, because it outlives every worker. The workers ask it over a socket.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from multiprocessing.connection import Client, Listener
from typing import Any, TypeVar
from uuid import uuid4

import pytest

from tests.servers.nats import Nats, broker
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import Databases, Postgres, databases
from tests.servers.processes import Missing
from tests.servers.proxy import Proxy
from tests.servers.valkey import Valkey, cache

T = TypeVar("T")


class _Run:
    """The state that all processes of a test run share."""

    def __init__(self) -> None:
        self.prefix = f"test_{uuid4().hex[:8]}"
        self._postgres: str | None = None
        self._servers = ExitStack()
        self._listener: Listener | None = None
        self._thread = threading.Thread(target=self._answer, name="test servers", daemon=True)

    def postgres(self) -> str:
        """Return the URL of the shared PostgreSQL."""
        if self._postgres is None:
            self._postgres = self._servers.enter_context(databases(self.prefix)).url("postgres")
        return self._postgres

    def address(self) -> str:
        """Return the socket address that workers ask for the URL."""
        if self._listener is None:
            self._listener = Listener(family="AF_UNIX")
            self._thread.start()
        return str(self._listener.address)

    def close(self) -> None:
        if self._listener is None:
            self._servers.close()
        else:
            with Client(self._listener.address) as thread:
                thread.send(False)
            self._thread.join()
            self._listener.close()

    def _answer(self) -> None:
        assert self._listener is not None
        with (
            self._servers
        ):  # this thread starts and closes the server, because the kernel ends a server with its thread
            while True:
                with self._listener.accept() as worker, suppress(EOFError, OSError):  # the worker may have died
                    if not worker.recv():
                        return
                    worker.send(self._postgres_or_error())

    def _postgres_or_error(self) -> str | Exception:
        try:
            return self.postgres()
        except Exception as error:
            return error


_run = pytest.StashKey[_Run]()


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.stash[_run] = _Run()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    run = node.config.stash[_run]
    node.workerinput["servers"] = (run.address(), run.prefix)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _run in config.stash:
        config.stash[_run].close()


@pytest.fixture(scope="session")
def postgres(pytestconfig: pytest.Config) -> Databases:
    """The shared PostgreSQL, for tests that create databases. A test that stops a server uses `new_postgres`.

    To give each test a migrated database, make a template once per run:

        @pytest.fixture(scope="session")
        def migrated(postgres):
            return postgres.template("migrated", migrate)  # migrate(url)

        @pytest.fixture
        def database(postgres, migrated):
            with postgres.database(template=migrated) as url:
                yield url
    """
    if _run in pytestconfig.stash:
        run = pytestconfig.stash[_run]
        return Databases(_have(run.postgres), run.prefix)
    address, prefix = pytestconfig.workerinput["servers"]  # type: ignore[attr-defined] # pytest-xdist sets it
    return Databases(_have(lambda: _ask(address)), prefix)


@pytest.fixture
def postgres_url(postgres: Databases) -> Iterator[str]:
    """Yield the URL of a new, empty database."""
    with postgres.database() as url:
        yield url


@pytest.fixture
def new_postgres() -> Iterator[Callable[..., Postgres]]:
    """Yield a function that starts a new PostgreSQL. The test may stop, kill and pause it."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(_have(lambda: Postgres(**options)))


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Yield the URL of a shared Valkey or Redis. Each test needs unique names for its keys."""
    with ExitStack() as stack:
        yield _have(lambda: stack.enter_context(cache()))


@pytest.fixture
def new_valkey() -> Iterator[Callable[[], Valkey]]:
    """Yield a function that starts a new Valkey. The test may stop, kill, pause and flush it."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(_have(Valkey))


@pytest.fixture
def nats_url() -> Iterator[str]:
    """Yield the URL of a NATS server with JetStream and without streams of the service."""
    with ExitStack() as stack:
        yield _have(lambda: stack.enter_context(broker()))


@pytest.fixture
def new_nats() -> Iterator[Callable[..., Nats]]:
    """Yield a function that starts a new NATS server. The test may stop, kill and pause it."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(_have(lambda: Nats(**options)))


@pytest.fixture
def proxied() -> Iterator[Callable[[str], Proxy]]:
    """Yield a function that puts a proxy in front of the server of a URL. The proxy can cut, hold and delay traffic."""
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(Proxy(url))


@pytest.fixture
def pooled() -> Iterator[Callable[..., PgBouncer]]:
    """Yield a function that puts a PgBouncer in front of the PostgreSQL of a URL."""
    with ExitStack() as stack:

        def start(url: str, **options: int) -> PgBouncer:
            try:
                return stack.enter_context(PgBouncer(url, **options))
            except Missing as missing:  # skip even in CI: .ci/run installs PgBouncer only if it can
                pytest.skip(str(missing))

        yield start


def _ask(address: str) -> str:
    with Client(address) as keeper:
        keeper.send(True)
        answer = keeper.recv()
    if isinstance(answer, Exception):
        raise answer
    return str(answer)


def _have(start: Callable[[], T]) -> T:
    """Start a server. If it is missing, skip the test; in CI fail the test, because a skip there is easy to miss."""
    try:
        return start()
    except Missing as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))
