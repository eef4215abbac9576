"""Running services for the tests of the doors."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import structlog

from tests.doors.running import Running
from tests.storage.engines import Ledgers


@pytest.fixture(scope="session", autouse=True)
def _plain_logs() -> Iterator[None]:
    """Tracebacks without colours and the values of all variables, which take seconds."""
    plain = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[structlog.processors.add_log_level, plain])
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def running(ledgers: Ledgers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service as it is by default, on each engine. Tests share it, each with merchants of its own."""
    with ledgers.new(tmp_path_factory.mktemp("running")) as url, Running(database_url=url) as service:
        yield service


@pytest.fixture
def start(new_ledger: Callable[[], str]) -> Iterator[Callable[..., Running]]:
    """Starts a service of the test's own on each engine, with other settings."""
    with ExitStack() as stack:

        def started(**settings: Any) -> Running:
            return stack.enter_context(Running(database_url=new_ledger(), **settings))

        yield started
