"""Running services for the tests of the doors."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.doors.running import Running


@pytest.fixture(scope="session", autouse=True)
def _plain_logs() -> Iterator[None]:
    """Tracebacks without colours and the values of all variables, which take seconds."""
    plain = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[structlog.processors.add_log_level, plain])
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service as it is by default. Tests share it, each with merchants of its own."""
    with Running(tmp_path_factory.mktemp("running")) as service:
        yield service


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts a service of the test's own, with other settings."""
    with ExitStack() as stack:

        def started(**settings: Any) -> Running:
            return stack.enter_context(Running(tmp_path, **settings))

        yield started
