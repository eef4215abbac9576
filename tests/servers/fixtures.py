"""Real servers for tests: one for all processes of a run, started when the first test asks for it.

The process that hands out the tests keeps it, since it outlives every worker; they ask it over a socket.
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
    """What all processes of a run share."""

    def __init__(self) -> None:
        self.prefix = f"test_{uuid4().hex[:8]}"
        self._postgres: str | None = None
        self._held = ExitStack()
        self._listener: Listener | None = None
        self._thread = threading.Thread(target=self._answer, name="servers of the tests", daemon=True)

    def postgres(self) -> str:
        """The URL of the run's PostgreSQL."""
        if self._postgres is None:
            self._postgres = self._held.enter_context(databases(self.prefix)).url("postgres")
        return self._postgres

    def address(self) -> str:
        """Where workers ask for it."""
        if self._listener is None:
            self._listener = Listener(family="AF_UNIX")
            self._thread.start()
        return str(self._listener.address)

    def close(self) -> None:
        if self._listener is None:
            self._held.close()
        else:
            with Client(self._listener.address) as thread:
                thread.send(False)
            self._thread.join()
            self._listener.close()

    def _answer(self) -> None:
        assert self._listener is not None
        with self._held:  # closed by the thread that starts the server: the kernel ends it with its thread
            while True:
                with self._listener.accept() as worker, suppress(EOFError, OSError):  # a worker may be killed
                    if not worker.recv():
                        return
                    worker.send(self._postgres_or_why_not())

    def _postgres_or_why_not(self) -> str | Exception:
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
    """The PostgreSQL of this run, to make databases on. Nobody stops it; who must starts one by `new_postgres`.

    A migrated database for each test, from a template that is made once in a run:

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
    address, prefix = pytestconfig.workerinput["servers"]  # type: ignore[attr-defined] # of pytest-xdist
    return Databases(_have(lambda: _ask(address)), prefix)


@pytest.fixture
def postgres_url(postgres: Databases) -> Iterator[str]:
    """The URL of an empty database of the test's own."""
    with postgres.database() as url:
        yield url


@pytest.fixture
def new_postgres() -> Iterator[Callable[..., Postgres]]:
    """Starts a PostgreSQL of the test's own, to be stopped, killed and paused."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(_have(lambda: Postgres(**options)))


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of a Valkey or Redis that others use, too: what a test keeps there needs a name of its own."""
    with ExitStack() as stack:
        yield _have(lambda: stack.enter_context(cache()))


@pytest.fixture
def new_valkey() -> Iterator[Callable[[], Valkey]]:
    """Starts a Valkey of the test's own, to be stopped, killed, paused and flushed."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(_have(Valkey))


@pytest.fixture
def nats_url() -> Iterator[str]:
    """The URL of a NATS with JetStream, on which there is no stream of ours yet."""
    with ExitStack() as stack:
        yield _have(lambda: stack.enter_context(broker()))


@pytest.fixture
def new_nats() -> Iterator[Callable[..., Nats]]:
    """Starts a NATS of the test's own, to be stopped, killed and paused."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(_have(lambda: Nats(**options)))


@pytest.fixture
def proxied() -> Iterator[Callable[[str], Proxy]]:
    """Puts a proxy in front of the server of a URL, to cut, hold and delay what passes."""
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(Proxy(url))


@pytest.fixture
def pooled() -> Iterator[Callable[..., PgBouncer]]:
    """Puts a PgBouncer in front of the PostgreSQL of a URL."""
    with ExitStack() as stack:

        def start(url: str, **options: int) -> PgBouncer:
            try:
                return stack.enter_context(PgBouncer(url, **options))
            except Missing as missing:  # also in CI, whose own step installs it where that is possible
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
    """A server, or the test is skipped; in CI it fails, since there a skip would go unseen."""
    try:
        return start()
    except Missing as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))
